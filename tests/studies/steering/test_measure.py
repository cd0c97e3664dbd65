"""`loclin steer` from the command line to the record: it leaves what the vector does."""

import io
import json
import math
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from loclin import models
from loclin.cli import main
from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.run.record import Record
from loclin.run.rows import Row
from loclin.run.runner import Session
from loclin.steering import SteeringVector
from loclin.steering.effect import logit_differences
from loclin.studies.steering import measure
from loclin.studies.steering.context import digest, split_examples
from loclin.studies.steering.settings import SteerSettings
from loclin.tasks.choices import check_options
from loclin.tasks.example import Example
from tests.run.killed import assert_same, measured_through_kills

ENTRY = "steer-statements-small"
SIZES = {"labels": 24, "gradient": 24, "shift": 16, "choose": 12, "test": 24}
TINY = [
    *("--model", "statements-small", "--null", "9", "--band", "4", "--texts", "6", "--tokens", "2"),
    *(word for name, size in SIZES.items() for word in (f"--{name}", str(size))),
]
ALL = ["--from", "gradient", "--compare", "labels", "logits", "search", "--n", "6", "--k", "2"]
LABELS = ["--compare", "labels", "--null", "0", "--tokens", "0"]


def steer(folder: Path, *more: str) -> str:
    """What the command prints."""
    out = io.StringIO()
    with redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "160")
        main(["steer", *TINY, "--out", str(folder), *more])
    return " ".join(out.getvalue().split())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert len(error.strip().splitlines()) == 1, error
    return error


@pytest.fixture(scope="module")
def finished(speaking: Problem, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("steer") / "run"
    return out, steer(out, *ALL)


def one(rows: list[Row], quantity: str, **context: Any) -> Row:
    (found,) = (
        r
        for r in rows
        if r.quantity == quantity and all(r.context.get(k) == v for k, v in context.items())
    )
    return found


def same(a: SteeringVector, b: SteeringVector) -> bool:
    return a.layers == b.layers and all(
        torch.equal(a.directions[n], b.directions[n]) for n in a.layers
    )


def test_the_record_says_what_the_vector_in_the_file_does(
    finished: tuple[Path, str], speaking: Problem
) -> None:
    """The slope is measured again, by the vector that was written."""
    out, _ = finished
    vector, rows = SteeringVector.load(out / "vector.safetensors"), Record(out).results(ENTRY)
    (layer,) = vector.layers
    assert layer == one(rows, "chosen_layer").value
    tried = [r for r in rows if r.quantity == "layer_slope"]
    assert [r.context["layer"] for r in tried] == [0, 1]
    assert max(tried, key=lambda r: r.value or 0.0).context["layer"] == layer
    parts = split_examples(speaking, SteerSettings(model="statements-small", **SIZES))  # type: ignore[arg-type]
    strengths, found = [-1.0, -0.5, 0.0, 0.5, 1.0], []
    for strength in strengths:
        with vector.applied(speaking.model, strength=strength):
            found.append(logit_differences(speaking.model, parts["test"]))
    slopes = np.polyfit(strengths, np.stack(found), 1)[0]
    assert one(rows, "slope", route="gradient").value == pytest.approx(slopes.mean(), rel=1e-4)
    each = [
        r.value for r in rows if r.quantity == "prompt_slope" and r.context["route"] == "gradient"
    ]
    assert np.allclose(np.array(each, float), slopes, rtol=1e-3, atol=1e-3)
    assert one(rows, "anti_steerable", route="gradient").value == pytest.approx((slopes < 0).mean())
    assert one(rows, "change", route="gradient", strength=1.0).value == pytest.approx(
        (found[4] - found[2]).mean(), rel=1e-4
    )
    assert one(rows, "change", route="gradient", strength=0.0).value == 0
    assert one(rows, "kl", route="gradient", strength=0.0).value == pytest.approx(0, abs=1e-9)
    assert vector.data == digest(parts)
    assert {n: vector.about[n] for n in ("form", "positive", "seed", "eta")} == {
        "form": "class", "positive": " yes", "seed": "0", "eta": "0.001",
    }  # fmt: skip
    assert (vector.model, vector.route) == ("statements-small", "gradient step, E1")


def test_it_is_printed_and_shown(finished: tuple[Path, str]) -> None:
    out, printed = finished
    for words in (
        "gradient step (E1)",
        "random search",
        "4 random directions",
        "logits per unit of strength",
        "Strength 1 is as long as",
        "cos(gradient step (E1), labels) = ",
        "24 labels, 24 gradient, 16 shift, 12 choose, 24 test; no group in two of them",
        "passages: the model's own samples",
        f"report: {out.resolve() / 'report.html'}",
    ):
        assert words in printed
    page = (out / "report.html").read_text()
    for title in (
        "Which layer",
        "Do the routes agree?",
        "What does it damage?",
        "every prompt?",
        "What does it say?",
    ):
        assert title in page
    made = [r for r in Record(out).results(ENTRY) if r.quantity == "generation"]
    assert {r.value for r in made} == {-2, 0, 2}
    assert len({r.context["prompt"] for r in made}) == 3


def test_strength_zero_of_the_examples_is_plain_generation(
    finished: tuple[Path, str], speaking: Problem
) -> None:
    out, _ = finished
    for row in (
        r for r in Record(out).results(ENTRY) if r.quantity == "generation" and r.value == 0
    ):
        ids = torch.tensor([speaking.tokenizer(row.context["prompt"])["input_ids"]])
        new = speaking.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=2,
            do_sample=False,
            pad_token_id=speaking.tokenizer.pad_token_id,
        )[0, ids.shape[1] :]
        assert row.context["text"] == speaking.tokenizer.decode(new, skip_special_tokens=True)


def test_a_finished_run_stays_and_gives_its_vector_again(
    finished: tuple[Path, str], tmp_path: Path, loads: list[str]
) -> None:
    out, _ = finished
    before = (out / ENTRY / "results.json").read_bytes()
    steer(out, *ALL, "--vector", str(tmp_path / "mine.safetensors"))
    assert loads == []
    assert (out / ENTRY / "results.json").read_bytes() == before
    kept = SteeringVector.load(out / "vector.safetensors")
    assert same(SteeringVector.load(tmp_path / "mine.safetensors"), kept)


def test_the_same_command_makes_the_same_record_and_loads_the_model_once(
    finished: tuple[Path, str], tmp_path: Path, loads: list[str]
) -> None:
    out, _ = finished
    steer(tmp_path / "again", *ALL)
    assert len(loads) == 1
    again = (tmp_path / "again" / ENTRY / "results.json").read_bytes()
    assert again == (out / ENTRY / "results.json").read_bytes()


def test_another_vector_needs_another_folder(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = finished
    error = refused(capsys, "steer", *TINY, "--out", str(out), "--from", "labels")
    assert f"belongs to another configuration of {ENTRY} (" in error
    assert "choose another --out or the same settings" in error


@pytest.mark.parametrize("harm", [Path.unlink, lambda p: p.write_bytes(p.read_bytes()[:99])])
def test_a_vector_that_is_lost_or_damaged_is_made_again(
    finished: tuple[Path, str], tmp_path: Path, loads: list[str], harm: Callable[[Path], object]
) -> None:
    out, _ = finished
    shutil.copytree(out, tmp_path / "copy")
    file = tmp_path / "copy" / "vector.safetensors"
    harm(file)
    steer(tmp_path / "copy", *ALL)
    assert len(loads) == 1
    assert same(SteeringVector.load(file), SteeringVector.load(out / "vector.safetensors"))


def test_data_are_read_before_the_model_and_others_are_another_run(
    speaking: Problem,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "pairs.jsonl"
    every = [e for task in speaking.tasks for e in speaking.examples["test"][task]][:120]
    lines = [
        json.dumps({"prompt": e.prompt, "options": e.options, "label": e.options.index(e.answer)})
        for e in every
    ]
    path.write_text("\n".join(lines))
    more = ["--data", str(path), *LABELS, "--layer", "1"]
    steer(tmp_path / "run", *more)
    path.write_text("\n".join(lines[:-1]))
    error = refused(capsys, "steer", *TINY, "--out", str(tmp_path / "run"), *more)
    assert f"belongs to another configuration of {ENTRY}-pairs (data_digest is '" in error
    path.write_text("no record")
    monkeypatch.setattr(models.loading, "read_pretrained", None)  # calling it would fail otherwise
    assert "pairs.jsonl" in refused(capsys, "steer", *TINY, "--out", str(tmp_path / "new"), *more)
    assert not (tmp_path / "new").exists()


def test_block_0_is_no_choice_for_a_llama_cpp_file() -> None:
    file = Path("v.gguf")
    for layer, count, found in (
        (("0",), 2, "expected blocks from 1 with --gguf, found 0"),
        (("-2",), 2, "expected blocks from 1 with --gguf, found 0"),
        (("1", "-3"), 3, "expected blocks from 1 with --gguf, found 0"),
        (("auto",), 1, "expected a model of two blocks or more for --gguf, found one block"),
    ):
        with pytest.raises(LoclinError, match=found):
            measure.check_layers(SteerSettings(model="m", layer=layer, gguf=file), count)
        measure.check_layers(SteerSettings(model="m", layer=layer), count)
    measure.check_layers(SteerSettings(model="m", layer=("-1",), gguf=file), 2)


def test_a_llama_cpp_file_is_written_and_its_layer_chosen_among_those_that_it_can_have(
    speaking: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    from loclin.steering.gguf import read_gguf

    file, out = tmp_path / "vector.gguf", tmp_path / "run"  # block 1 of 2 is what is left
    printed = steer(out, *LABELS, "--gguf", str(file))
    rows = Record(out).results(ENTRY)
    assert [r.context["layer"] for r in rows if r.quantity == "layer_slope"] == [1]
    kept = SteeringVector.load(out / "vector.safetensors")
    assert kept.layers == (1,)
    assert torch.equal(read_gguf(file).directions[1], kept.directions[1])
    assert "Block 0 was not among them" in printed
    more = ["--out", str(tmp_path / "none"), "--gguf", str(file), "--layer", "0"]
    error = refused(capsys, "steer", *TINY, *more)
    assert "expected blocks from 1 with --gguf, found 0" in error


def test_given_layers_and_neutral_text_are_taken_as_they_are(
    speaking: Problem, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("people say that rome is red\nthe town of anna\nwe agree that oslo is green")
    more = ["--layer", "0", "-1", "--form", "paired", "--neutral", str(text), "--texts", "3"]
    printed = steer(tmp_path / "run", *LABELS, *more)
    assert "damage is measured on 3 passages: text.txt" in printed
    assert "The vector is added to the output of blocks 0, 1, as asked." in printed
    assert "One route alone was made: nothing to compare." in printed
    vector = SteeringVector.load(tmp_path / "run" / "vector.safetensors")
    rows = Record(tmp_path / "run").results(ENTRY)
    assert vector.layers == (0, 1)
    assert vector.position == "answer"
    left_out = {"layer_slope", "cosine", "random_cosine", "generation"}
    assert not left_out & {r.quantity for r in rows}


def test_pairs_of_answers_from_a_file(speaking: Problem, tmp_path: Path) -> None:
    """Every example has options of its own: the right answer counts as +."""
    towns = ["paris", "rome", "berlin", "madrid", "vienna", "oslo"]
    people = ["anna", "boris", "clara", "david", "emma", "felix", "greta", "hugo", "irene", "jonas"]
    lines = []
    for i, who in enumerate(people):
        for j, town in enumerate(towns):
            pair = [f" {town}", f" {towns[(j + 1 + i % 4) % 6]}"]
            prompt = f"the town of {who} is {towns[j - 1]} ?"
            lines.append({"prompt": prompt, "options": pair, "label": (i + j) % 2})
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    sizes = ["--labels", "14", "--gradient", "10", "--shift", "8", "--choose", "6", "--test", "8"]
    more = ["--data", str(path), *sizes, "--from", "gradient", "--estimand", "E2"]
    assert "+ is towards the right answer of each example" in steer(tmp_path / "run", *more)
    slope = one(Record(tmp_path / "run").results(f"{ENTRY}-pairs"), "slope", route="gradient")
    assert slope.value is not None
    assert math.isfinite(slope.value)
    assert SteeringVector.load(tmp_path / "run" / "vector.safetensors").norm.startswith(
        "as long as the mean activation at one answer less that at the other (14 prompts)"
    )


def test_how_options_are_scored_elsewhere_is_not_said(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    lettered = [Example(prompt="a", answer=" (A)", options=(" (A)", " (B)"))]
    (note,) = check_options(lettered, tokenizers["gpt2"])
    assert "joint log-probability" in note
    assert measure.read_notes(["2 examples", f"note: {note}"]) == ["2 examples"]


def test_an_interruption_leaves_nothing_half_written(
    speaking: Problem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out, file = tmp_path / "run", tmp_path / "vector.safetensors"
    more = ["--vector", str(file), *LABELS]
    with monkeypatch.context() as patch:
        patch.setattr(measure, "at_equal_damage", stopped)
        with pytest.raises(SystemExit) as caught:
            main(["steer", *TINY, "--out", str(out), *more])
    assert caught.value.code == 130
    assert "stopped; what was finished is kept" in capsys.readouterr().err
    assert not file.exists()
    assert not out.exists()
    steer(out, *more)
    assert file.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--layer 2", "found 2"),
        ("--labels 9000", "expected 9076 examples for labels, gradient, shift, choose and test, "),
        (
            "--space nowhere --from gradient",
            "expected a pattern that matches a trainable tensor, found 'nowhere'",
        ),
        ("--task weather", "unknown task 'weather': expected one of colour, town"),
        ("--positive perhaps", "expected the positive option 'perhaps' in every example"),
        ("--layers-path no.where", "expected a list of blocks at 'no.where'"),
        ("--model sequences-small", "expected examples of two options, found 0"),
        ("--model nowhere/at/all --data statements", "expected a model"),
    ],
)
def test_what_the_model_or_the_data_lack_is_one_line_and_exit_code_2(
    speaking: Problem,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
    message: str,
) -> None:
    run = tmp_path / "run"
    assert message in refused(capsys, "steer", *TINY, "--out", str(run), *change.split())
    assert not run.exists()


def test_a_vector_whose_making_is_killed_is_the_same(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    settings = SteerSettings(
        model="statements-small",
        null=9,
        band=4,
        texts=6,
        tokens=2,
        route="gradient",
        compare=("labels", "logits", "search"),
        n=6,
        k=2,
        **SIZES,
    ).checked()
    where = "loclin.studies.steering.measure"
    part, counts = measured_through_kills(tmp_path / "out", where, settings)
    assert counts == sorted(counts)
    assert counts
    (tmp_path / "whole").mkdir()
    whole = Session(record=Record(tmp_path / "whole"))
    assert_same(part, measure.measure(settings, 0, whole))
    one, other = (
        SteeringVector.load(tmp_path / n / "vector.safetensors") for n in ("out", "whole")
    )
    assert one.directions.keys() == other.directions.keys()
    assert all(torch.equal(one.directions[n], other.directions[n]) for n in one.directions)
