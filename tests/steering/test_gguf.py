"""GGUF control vectors: what others would read, what they wrote, which block a number means."""

import math
import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from loclin.errors import LoclinError
from loclin.steering.gguf import read_gguf, write_gguf
from loclin.steering.vector import SteeringVector
from tests.steering.test_vector import FACTS, logits, random, same


def raw(
    path: Path,
) -> tuple[dict[str, Any], dict[str, tuple[list[int], int]], dict[str, list[float]]]:
    """Keys, and shape, type and numbers of every tensor, read byte by byte as GGUF 3 lays them out
    (strings, u32 and i32 alone).
    """
    data, at = path.read_bytes(), 24

    def take(code: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from("<" + code, data, at)
        at += struct.calcsize("<" + code)
        return value

    def text() -> str:
        nonlocal at
        length = take("Q")
        at += length
        return data[at - length : at].decode()

    magic, version, tensors, keys = struct.unpack_from("<4sIQQ", data)
    assert (magic, version) == (b"GGUF", 3)
    told: dict[str, Any] = {}
    for _ in range(keys):
        name, kind = text(), take("I")
        told[name] = {8: text, 4: lambda: take("I"), 5: lambda: take("i")}[kind]()
    shapes: dict[str, tuple[list[int], int]] = {}
    places = {}
    for _ in range(tensors):
        name = text()
        shape = [take("Q") for _ in range(take("I"))]
        shapes[name] = (shape, take("I"))
        places[name] = take("Q")
    base = -(-at // 32) * 32
    numbers = {
        n: list(struct.unpack_from(f"<{shapes[n][0][0]}f", data, base + o))
        for n, o in places.items()
    }
    return told, shapes, numbers


def others(
    path: Path,
    directions: dict[str, np.ndarray],
    *,
    kind: str = "controlvector",
    hint: str | None = "llama",
) -> Path:
    """A file as another program would write it: no keys of loclin's."""
    writer = gguf.GGUFWriter(path, kind)
    if hint is not None:
        writer.add_string("controlvector.model_hint", hint)
    writer.add_int32("controlvector.layer_count", len(directions))
    for name, values in directions.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(32).astype(np.float32)


def test_the_round_trip_gives_everything_back(tmp_path: Path) -> None:
    vector = random(
        0,
        (1, 2, 5),
        blocks=6,
        revision="main",
        layers_path="transformer.h",
        about={"η": "0.01", "zwei\nZeilen": "ja"},
    )
    path = tmp_path / "new" / "v.gguf"
    write_gguf(random(1, (1,)), path)
    write_gguf(vector, str(path))
    assert [p.name for p in path.parent.iterdir()] == ["v.gguf"]
    again = read_gguf(path)
    assert all(torch.equal(again.directions[n], vector.directions[n]) for n in (1, 2, 5))
    for name in (*FACTS, "revision", "layers_path", "about", "site", "layers"):
        assert getattr(again, name) == getattr(vector, name)


def test_the_bytes_are_what_llama_cpp_reads(tmp_path: Path) -> None:
    vector = random(0, (1, 3), blocks=4)
    write_gguf(vector, tmp_path / "v.gguf")
    told, shapes, found = raw(tmp_path / "v.gguf")
    assert told["general.architecture"] == "controlvector"
    assert told["controlvector.model_hint"] == "gpt2"
    assert told["controlvector.layer_count"] == 2
    assert told["loclin.data"] == "abc"
    assert shapes == {"direction.1": ([32], 0), "direction.3": ([32], 0)}  # type 0 is F32
    for n in (1, 3):
        assert torch.equal(torch.tensor(found[f"direction.{n}"]), vector.directions[n])


def test_a_file_of_repeng_is_added_where_repeng_adds_it(
    tmp_path: Path, families: dict[str, PreTrainedModel]
) -> None:
    """repeng counts blocks from 0, writes them from the last to the first, and adds to block i what
    it read at block i's output.
    """
    path = others(tmp_path / "v.gguf", {"direction.1": numbers(1), "direction.0": numbers(0)})
    vector = read_gguf(path)
    assert (vector.layers, vector.blocks, vector.model_type, vector.route) == (
        (0, 1),
        None,
        "llama",
        "another program",
    )
    model = families["llama"]
    hooks = [
        block.register_forward_hook(
            lambda module, inputs, out, i=i: out + 0.7 * torch.from_numpy(numbers(i))
        )
        for i, block in enumerate(model.model.layers)
    ]
    wanted = logits(model)
    for hook in hooks:
        hook.remove()
    assert not torch.allclose(logits(model), wanted, atol=1e-2)
    with vector.applied(model, strength=0.7):
        assert torch.allclose(logits(model), wanted, atol=1e-5)


def test_a_file_of_cvector_generator_is_put_back_to_where_it_was_read(tmp_path: Path) -> None:
    path = others(tmp_path / "v.gguf", {f"direction.{i}": numbers(i) for i in (1, 2)})
    as_added, as_read = read_gguf(path), read_gguf(path, shift=1)
    assert (as_added.layers, as_read.layers) == ((1, 2), (0, 1))
    for i in (1, 2):
        assert np.array_equal(as_added.directions[i].numpy(), numbers(i))
        assert np.array_equal(as_read.directions[i - 1].numpy(), numbers(i))
    again = tmp_path / "again.gguf"
    write_gguf(as_added, again)
    assert same(read_gguf(again), as_added)
    assert read_gguf(again).blocks is None


def test_block_0_cannot_be_written_and_a_shift_is_for_others(tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    with pytest.raises(
        LoclinError,
        match=r"found one at block 0, which llama.cpp refuses: leave it out with --layer",
    ):
        write_gguf(random(0), path)
    assert not path.exists()
    write_gguf(random(0).at([1]), path)
    with pytest.raises(
        LoclinError,
        match="expected a shift of 0 for a file that loclin wrote, found 1: leave it out",
    ):
        read_gguf(path, shift=1)
    others(path, {"direction.0": numbers(0)})
    with pytest.raises(LoclinError, match="expected directions from 1 with a shift of 1, found 0"):
        read_gguf(path, shift=1)


F16 = numbers(0).astype(np.float16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"kind": "llama"},
            "found GGUF of architecture 'llama' where a control vector has 'controlvector'",
        ),
        ({"hint": None}, "found no 'controlvector.model_hint' in it"),
        (
            {"directions": {"direction.1": F16}},
            r"found direction.1 of type F16 and shape \[32\] where one dimension of F32",
        ),
        (
            {"directions": {"direction.1": np.ones((2, 3), np.float32)}},
            "found direction.1 of type F32 and shape",
        ),
        ({"directions": {"direction.x": numbers(0)}}, "invalid literal"),
        (
            {"directions": {"other.1": numbers(0)}},
            "found expected a direction for at least one block, found none",
        ),
        (
            {"directions": {"direction.1": 0 * numbers(0)}},
            "found expected a direction at block 1, found zeros",
        ),
        (
            {"directions": {"direction.1": numbers(0) + np.float32(math.nan)}},
            "found expected finite numbers at block 1",
        ),
        (
            {"directions": {"direction.1": numbers(0), "direction.2": numbers(1)[:8]}},
            "found expected vectors of one width",
        ),
    ],
)
def test_what_is_no_control_vector_is_refused_in_one_line(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    path = others(tmp_path / "v.gguf", **{"directions": {"direction.1": numbers(1)}, **content})
    with pytest.raises(
        LoclinError, match=f"expected a steering vector in .*v.gguf, .*{message}"
    ) as error:
        read_gguf(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cut", [0, 3, 40, 200, -20])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "v.gguf"
    write_gguf(random(0).at([1]), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(
        LoclinError, match=r"expected a steering vector in .*, found no GGUF, or a damaged one"
    ) as error:
        read_gguf(path)
    assert "\n" not in str(error.value)
    with pytest.raises(LoclinError, match=r"found nothing at .*nowhere.gguf: check the path"):
        read_gguf(tmp_path / "nowhere.gguf")


def test_a_file_of_a_newer_loclin_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loclin.steering.gguf.VERSION", 2)
    write_gguf(random(0).at([1]), tmp_path / "v.gguf")
    monkeypatch.setattr("loclin.steering.gguf.VERSION", 1)
    with pytest.raises(LoclinError, match="found format 2 where this loclin reads 1"):
        read_gguf(tmp_path / "v.gguf")


def test_vectors_that_nobody_can_use_are_not_written(tmp_path: Path) -> None:
    broken: Tensor = torch.tensor([1.0, math.nan])
    with pytest.raises(LoclinError, match="expected finite numbers at block 1"):
        write_gguf(SteeringVector(directions={1: broken}, **FACTS), tmp_path / "v.gguf")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        LoclinError, match=r"expected to write .*: make room or choose another file"
    ):
        write_gguf(random(0).at([1]), tmp_path / "file" / "v.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_without_the_package_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    for refused in (
        lambda: write_gguf(random(0), tmp_path / "v.gguf"),
        lambda: read_gguf(tmp_path / "v.gguf"),
    ):
        with pytest.raises(
            LoclinError,
            match=r"expected the gguf package .*, found none: pip install 'loclin\[gguf\]'",
        ):
            refused()
