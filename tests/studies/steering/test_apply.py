"""`loclin steer apply`: what is read, what is printed, and what is refused."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.models.loading import load_model
from loclin.options import LoadOptions
from loclin.parameters import ParameterSpace
from loclin.steering.generation import Generation, generations
from loclin.steering.gguf import read_gguf, write_gguf
from loclin.steering.vector import SteeringVector
from loclin.studies.steering.apply import ApplySettings, apply, show
from tests.steering.test_vector import random


def spoken_by(problem: Problem, layers: tuple[int, ...] = (0, 1)) -> SteeringVector:
    return random(0, layers, d=48, model="statements-small")


def printed(width: int) -> tuple[io.StringIO, Console]:
    out = io.StringIO()
    return out, Console(file=out, width=width)


def test_generations_stand_side_by_side_where_there_is_room() -> None:
    made = [
        Generation(prompt=p, strength=s, text=t)
        for p in ("[red]one[/red]", "two")
        for s, t in ((-2.0, "less [b]x"), (0.0, " plain"), (0.5, ""))
    ]
    out, console = printed(80)
    show(made, console)
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["[red]one[/red]"] in lines
    assert lines.count(["-2", "0", "+0.5"]) == 2
    assert lines.count(["less", "[b]x", "plain", "(nothing)"]) == 2
    out, console = printed(30)
    show(made, console)
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert [
        lines.count(x) for x in (["-2", "less", "[b]x"], ["0", "plain"], ["+0.5", "(nothing)"])
    ] == [2, 2, 2]
    out, console = printed(30)
    show([replace(made[0], text="word " * 20 + "end")], console)
    assert out.getvalue().split().count("word") == 20
    assert max(map(len, out.getvalue().splitlines())) <= 30


def test_a_vector_is_applied_from_either_file(speaking: Problem, tmp_path: Path) -> None:
    vector = spoken_by(speaking)
    prompts = [e.prompt for e in speaking.examples["test"][speaking.tasks[0]][:3]]
    (tmp_path / "prompts.txt").write_text(f"\n{prompts[1]}\n\n{prompts[2]}\n")
    path = tmp_path / "v.safetensors"
    vector.save(path)
    settings = ApplySettings(
        vector=path,
        model="statements-small",
        prompt=(prompts[0],),
        prompts=tmp_path / "prompts.txt",
        strength=(0.0, 30.0),
        layer=(-1,),
        tokens=2,
    ).checked()
    out, console = printed(100)
    made = apply(settings, console=console)
    assert [g.prompt for g in made[::2]] == prompts
    wanted = generations(
        speaking.model, speaking.tokenizer, vector.at([1]), prompts, [0.0, 30.0], tokens=2
    )
    assert made == wanted
    text = " ".join(out.getvalue().split())
    assert "v.safetensors: made with statements-small by labels, added at block 1" in text
    assert "strength 1: difference of means" in text
    assert all(" ".join(p.split()) in text for p in prompts)
    write_gguf(vector.at([1]), tmp_path / "v.gguf")
    assert apply(replace(settings, vector=tmp_path / "v.gguf"), console=console) == wanted
    assert read_gguf(tmp_path / "v.gguf").norm == "difference of means"


def test_a_folder_is_read_without_data(
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    families["gpt2"].save_pretrained(tmp_path / "gpt2")
    tokenizers["gpt2"].save_pretrained(tmp_path / "gpt2")
    model, *_ = load_model(LoadOptions(model=str(tmp_path / "gpt2"), device="cpu"), seed=0)
    assert torch.equal(ParameterSpace(model).read(), ParameterSpace(families["gpt2"]).read())
    vector = random(0, (0, 1), blocks=3)
    vector.save(tmp_path / "v.safetensors")
    settings = ApplySettings(
        vector=tmp_path / "v.safetensors",
        model=str(tmp_path / "gpt2"),
        prompt=("the cat",),
        device="cpu",
        tokens=4,
    )
    with pytest.raises(LoclinError, match=r"one of another \(made with 3 blocks, not 2\)"):
        apply(settings)
    made = apply(replace(settings, force=True))
    printed = capsys.readouterr()
    assert printed.err.count("loclin: ignored that the vector was made with 3 blocks, not 2") == 1
    assert [g.strength for g in made] == [-1, 0, 1]
    for bad, message in (
        ({"layer": (7,)}, "expected layers from -2 to 1, found 7"),
        (
            {"layers_path": "model.layers"},
            r"expected a list of blocks at 'model.layers', found none: .*transformer\.h",
        ),
        (
            {"vector": tmp_path / "w.safetensors"},
            "found nothing at .*w.safetensors: check the path",
        ),
        ({"vector": tmp_path / "w.gguf"}, "found nothing at .*w.gguf: check the path"),
        ({"model": "./nowhere"}, "expected a model folder, found nothing at"),
        ({"device": "abacus"}, "expected a device among"),
        ({"tokens": 80}, "within the model's context of 64"),
    ):
        with pytest.raises(LoclinError, match=message):
            apply(replace(settings, force=True, **bad))
    random(0, d=16).save(tmp_path / "v.safetensors")
    with pytest.raises(
        LoclinError, match="expected a vector of the model's width 32, found one of width 16"
    ):
        apply(replace(settings, force=True))
    for content, message in (
        (b" \n\n", "found blank lines only"),
        (b"\xff\xfe\xff", "expected a text file of prompts in UTF-8"),
    ):
        (tmp_path / "prompts").write_bytes(content)
        random(0).save(tmp_path / "v.safetensors")
        with pytest.raises(LoclinError, match=message):
            apply(replace(settings, prompts=tmp_path / "prompts"))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"prompt": ()},
            "expected at least one prompt, found none: give --prompt or --prompts FILE",
        ),
        ({"prompt": ("x", "")}, "expected prompts with text, found an empty one"),
        ({"prompts": Path("nowhere")}, "expected a file of prompts, found nothing at nowhere"),
        ({"strength": ()}, "expected at least one strength, found none"),
        (
            {"strength": (0.0, float("nan"))},
            "expected a finite strength, found nan: change --strength",
        ),
        ({"strength": (float("inf"),)}, "expected a finite strength, found inf"),
        ({"tokens": 0}, "expected at least 1 new token, found 0: change --tokens"),
        ({"start": -1}, "expected a first token from 0, found -1: change --start"),
        ({"temperature": -1.0}, "expected a temperature of 0 or from 1e-05, found -1.0"),
        ({"temperature": float("inf")}, "expected a temperature of 0 or from 1e-05, found inf"),
        ({"shift": 2}, "expected a shift of 0 or 1, found 2"),
        ({"shift": 1}, "expected a GGUF file with --shift, found v.safetensors: leave --shift out"),
    ],
)
def test_settings_that_cannot_be_are_refused(bad: dict[str, Any], message: str) -> None:
    good = ApplySettings(vector=Path("v.safetensors"), model="statements-small", prompt=("x",))
    assert good.checked() is good
    with pytest.raises(LoclinError, match=message):
        replace(good, **bad).checked()
