"""Damaged files of every kind, read as the commands read them: one line, or what the file says."""

import json
import math
import random
import shutil
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from loclin.cli import main
from loclin.errors import LoclinError
from loclin.models.direction import read_direction
from loclin.models.folder import open_checkpoint, scaling
from loclin.models.pretrained import read_pretrained
from loclin.options import LoadOptions
from loclin.run.record import Record
from tests.conftest import random_model
from tests.models.runs import hand_made, tiny, tiny_lora
from tests.tasks.test_tokens import bytes_in_pairs, damaged

ODD = (
    *(None, True, False, 0, -1, 3, 2.5, 1e308, 10**30, math.nan, math.inf, "", "x", "\ud800"),
    *([], {}, [1], [[]], {"x": 1}),
)  # fmt: skip
#: What decides what a GPT-2 computes.
MEANING = (
    *("model_type", "n_head", "n_layer", "n_embd", "n_inner", "vocab_size", "n_positions"),
    *("activation_function", "layer_norm_epsilon", "scale_attn_weights", "tie_word_embeddings"),
    *("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"),
)
ROW = torch.arange(5, 13)[None]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Bytes damaged, or a node of the JSON another one, left out, or under another name."""
    try:
        whole = json.loads(content)
    except ValueError:
        return damaged(content, rng)
    if rng.random() < 0.4:
        return damaged(content, rng)
    node, depth = whole, rng.randrange(1, 6)
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = rng.choice(keys)
        inside, depth = node[key], depth - 1
        if depth == 0 or not isinstance(inside, dict | list) or not inside:
            break
        node = inside
    if rng.random() < 0.7:
        node[key] = rng.choice(ODD)
    else:
        value = node.pop(key)
        if isinstance(node, dict) and rng.random() < 0.5:
            node[f"{key}x"] = value
    return json.dumps(whole).encode()


def mutated_tensors(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, another body, or cut."""
    (size,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + size], content[8 + size :]
    match rng.randrange(4):
        case 0:
            header = mutated(header, rng)
            return struct.pack("<Q", len(header)) + header + body
        case 1:
            at = rng.randrange(len(body))
            new = rng.choice(
                [b"\x00\x00\xc0\x7f", b"\xff", bytes([body[at] ^ 1 << rng.randrange(8)])]
            )
            return content[: 8 + size] + body[:at] + new + body[at + len(new) :]
        case 2:
            return (
                struct.pack("<Q", rng.choice([0, 1, size - 1, size + 8, 2**40, 2**63]))
                + header
                + body
            )
        case _:
            return damaged(content[: 8 + size + 200], rng) + content[8 + size + 200 :]


def spelled(path: Path) -> dict[str, np.ndarray]:
    """The float32 tensors of a safetensors file, by the format's description alone."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(body[slice(*about["data_offsets"])], np.float32).reshape(about["shape"])
        for name, about in header.items()
        if about["dtype"] == "F32"
    }


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.array_equal(one, other, equal_nan=True)


def refused(read: Callable[[], None]) -> bool:
    """Whether it ends with one line; whatever else is raised fails the test."""
    line = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers' own, about what it reads
            read()
    except LoclinError as error:
        line = str(error)
    assert "\n" not in line
    return bool(line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer."""
    where = tmp_path_factory.mktemp("whole")
    tokenizer = bytes_in_pairs(None)
    random_model("gpt2", len(tokenizer)).save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


def loaded(folder: Path) -> PreTrainedModel:
    return read_pretrained(str(folder), LoadOptions(model="other", device="cpu"))[0]


def test_weights(folder: Path, tmp_path: Path) -> None:
    """As a model, and as a checkpoint of a run."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    path, rng, count = copy / "model.safetensors", random.Random(1), 0
    whole = path.read_bytes()

    def as_model() -> None:
        weights = loaded(copy).state_dict()
        held = {n.removeprefix("transformer."): t for n, t in spelled(path).items()}
        for name, values in weights.items():
            if name != "lm_head.weight":  # tied
                assert same(values.numpy(), held[name.removeprefix("transformer.")]), name
                assert values.isfinite().all(), name

    def as_checkpoint() -> None:
        checkpoint, held = open_checkpoint(copy, step=None), spelled(path)
        assert checkpoint.files.keys() == held.keys()
        for name, shape in checkpoint.shapes.items():
            values = checkpoint.read(name, slice(None)).reshape(shape)
            assert same(values.numpy(), held[name]), name

    for _ in range(60):
        path.write_bytes(mutated_tensors(whole, rng))
        count += refused(as_model)
        refused(as_checkpoint)
    assert 10 < count < 60


def test_a_models_configuration(folder: Path, tmp_path: Path) -> None:
    """Where what decides the outputs is the same, so are they; and they are finite."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    path, rng, count = copy / "config.json", random.Random(2), 0
    whole = path.read_bytes()
    right, known = loaded(copy)(ROW).logits, json.loads(whole)

    def check() -> None:
        model, said = loaded(copy), json.loads(path.read_bytes())
        logits = model(ROW).logits
        assert logits.isfinite().all()
        if all(said.get(k, "") == known.get(k, "") for k in MEANING):
            assert torch.allclose(logits, right, atol=1e-5), said
        for k in MEANING:
            assert k not in said or getattr(model.config, k) == said[k], k

    for _ in range(80):
        path.write_bytes(mutated(whole, rng))
        count += refused(check)
    assert 10 < count < 80


def test_an_adapters_configuration(tmp_path: Path) -> None:
    """The direction is s·BA with the scale that the file says."""
    adapter = tiny_lora()
    for n, p in adapter.named_parameters():
        if "lora_B" in n:
            torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(0))
    adapter.save_pretrained(tmp_path)
    model = tiny()
    path, rng, count = tmp_path / "adapter_config.json", random.Random(3), 0
    whole = path.read_bytes()
    right, known = read_direction(str(tmp_path), model).tensors, json.loads(whole)

    def check() -> None:
        made, said = read_direction(str(tmp_path), model).tensors, json.loads(path.read_bytes())
        assert made.keys() == right.keys()
        for name, change in made.items():
            weight = "base_model.model." + name.removesuffix(".weight")
            scale = scaling(said, weight)[1] / scaling(known, weight)[1]
            assert torch.allclose(change, scale * right[name], rtol=1e-4, atol=1e-6), (name, said)

    for _ in range(60):
        path.write_bytes(mutated(whole, rng))
        count += refused(check)
    assert 10 < count < 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("run")
    main(["trajectory", str(hand_made(where / "mine")), "--out", str(where / "out")])
    return where / "out"


def test_a_run_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By `loclin report`, which is to end with a page or one line, and by what a resumed command
    reads.
    """
    copy = shutil.copytree(run, tmp_path / "copy")
    (entry,) = (p.parent.name for p in copy.glob("*/results.json"))
    rng, count = random.Random(4), 0
    names = [str(p.relative_to(copy)) for p in copy.rglob("*.json")]
    names += [str(p.relative_to(copy)) for p in copy.rglob("*.safetensors")]

    def check(name: str) -> None:
        record = Record(copy)
        rows, arrays = record.results(entry), record.arrays(entry)
        for row, said in zip(
            rows, json.loads((copy / entry / "results.json").read_text()), strict=True
        ):
            assert all(getattr(row, key) == value for key, value in said.items())
        held = spelled(copy / entry / "arrays.safetensors")
        assert all(same(arrays[key], values) for key, values in held.items())
        for part in (copy / entry / "parts").glob("*.json"):
            record.part(entry, part.stem)
        try:
            main(["report", str(copy)])
        except SystemExit as end:  # what the command makes of a LoclinError, line and code
            line = capsys.readouterr().err.removesuffix("\n")
            raise (LoclinError(line) if end.code == 2 else AssertionError(line)) from end

    for i in range(45):
        name = names[i % len(names)]
        whole = (copy / name).read_bytes()
        change: Mapping[str, Any] = {".json": mutated, ".safetensors": mutated_tensors}
        (copy / name).write_bytes(change[Path(name).suffix](whole, rng))
        count += refused(lambda name=name: check(name))  # type: ignore[misc]
        (copy / name).write_bytes(whole)
    assert 10 < count < 45
