"""`loclin steer` from the command line to the record: what it leaves, that it says what the vector
does, what it refuses.
"""

import io
import json
import math
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from loclin.cli import main
from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.record import Record, Row
from loclin.report.steering import ENTRY
from loclin.steering import SteeringVector, command, from_labels
from loclin.steering.compare import cosines
from loclin.steering.config import Config
from loclin.steering.effect import logit_differences
from loclin.steering.parts import parted
from loclin.tasks.choices import check_options
from loclin.tasks.example import Example

TINY = [
    "--model",
    "statements-small",
    "--labels",
    "24",
    "--gradient",
    "24",
    "--shift",
    "16",
    "--choose",
    "12",
    "--test",
    "24",
    "--null",
    "9",
    "--band",
    "4",
    "--texts",
    "6",
    "--tokens",
    "2",
]
SIZES = {"labels": 24, "gradient": 24, "shift": 16, "choose": 12, "test": 24}


def steer(folder: Path, *more: str) -> str:
    """What the command prints."""
    said = io.StringIO()
    with redirect_stdout(said), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "160")
        main(["steer", *TINY, "--folder", str(folder), *more])
    return " ".join(said.getvalue().split())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert len(said.strip().splitlines()) == 1, said
    return said


@pytest.fixture(scope="module")
def finished(speaking: Problem, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("steer") / "run"
    return out, steer(
        out, "--from", "gradient", "--compare", "labels", "logits", "search", "--n", "6", "--k", "2"
    )


def one(rows: list[Row], quantity: str, **context: Any) -> Row:
    (found,) = (
        r
        for r in rows
        if r.quantity == quantity and all(r.context.get(k) == v for k, v in context.items())
    )
    return found


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
    parts = parted(speaking, Config(model="statements-small", **SIZES))  # type: ignore[arg-type]
    strengths, found = [-1.0, -0.5, 0.0, 0.5, 1.0], []
    for strength in strengths:
        with vector.applied(speaking.model, strength=strength):
            found.append(logit_differences(speaking.model, parts.test))
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
    assert vector.data == parts.hash()
    assert {n: vector.about[n] for n in ("form", "positive", "seed", "eta")} == {
        "form": "class", "positive": " yes", "seed": "0", "eta": "0.001",
    }  # fmt: skip
    assert (vector.model, vector.route) == ("statements-small", "gradient step, E1")


def test_all_routes_are_as_long_as_the_difference_that_labels_make(
    finished: tuple[Path, str], speaking: Problem
) -> None:
    out, _ = finished
    vector, rows = SteeringVector.load(out / "vector.safetensors"), Record(out).results(ENTRY)
    (layer,) = vector.layers
    parts = parted(speaking, Config(model="statements-small", **SIZES))  # type: ignore[arg-type]
    labels = from_labels(speaking.model, speaking.tokenizer, parts.labels.examples)
    assert float(vector.directions[layer].norm()) == pytest.approx(
        float(labels.directions[layer].norm()), rel=1e-4
    )
    assert one(rows, "length", layer=layer).value == pytest.approx(
        float(vector.directions[layer].norm()), rel=1e-4
    )
    raw = Record(out).arrays(ENTRY)
    assert set(raw) == {f"direction/{r}" for r in ("gradient", "labels", "logits", "search")}
    assert np.allclose(raw["direction/labels"][layer], labels.directions[layer].numpy(), atol=1e-4)
    expected = float(
        cosines(*(torch.from_numpy(raw[f"direction/{r}"]) for r in ("gradient", "labels")))[layer]
    )
    found = one(rows, "cosine", route="gradient", layer=layer, **{"with": "labels"})
    assert found.value == pytest.approx(expected, abs=1e-6)
    assert found.low is not None
    assert found.p is not None
    assert found.p >= 1 / 19
    assert found.low < expected < (found.high or 0.0)
    lone = one(rows, "cosine", route="gradient", layer=layer, **{"with": "search"})
    assert (lone.low, lone.p) == (None, None)
    assert len([r for r in rows if r.quantity == "cosine"]) == 6 * 2


def test_it_is_printed_and_shown(finished: tuple[Path, str]) -> None:
    out, said = finished
    for words in (
        "gradient step (E1)", "random search", "4 random directions", "logits per unit of "
                                                                      "strength", "Strength 1 is "
                                                                                  "as long as",
        "cos(gradient step (E1), labels) = ", "24 labels, 24 gradient, 16 shift, 12 choose, 24 "
                                              "test; no group in two of them.",
        "passages: the model's own samples.", f"report: {out.resolve() / 'report.html'}",
    ):  # fmt: skip
        assert words in said
    page = (out / "report.html").read_text()
    for title in (
        "Which layer",
        "Do the routes agree?",
        "What does it damage?",
        "every prompt?",
        "What does it say?",
    ):
        assert title in page
    rows = Record(out).results(ENTRY)
    made = [r for r in rows if r.quantity == "generation"]
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
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    out, _ = finished
    before = (out / ENTRY / "results.json").read_bytes()
    again = [
        "--from",
        "gradient",
        "--compare",
        "labels",
        "logits",
        "search",
        "--n",
        "6",
        "--k",
        "2",
    ]
    said = steer(out, *again, "--out", str(tmp_path / "mine.safetensors"))
    assert "was made before, by the same settings: model and data are not read again" in said
    assert (out / ENTRY / "results.json").read_bytes() == before
    mine, kept = (
        SteeringVector.load(p) for p in (tmp_path / "mine.safetensors", out / "vector.safetensors")
    )
    assert all(torch.equal(mine.directions[n], kept.directions[n]) for n in kept.layers)


def test_the_same_command_makes_the_same_record(finished: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = finished
    steer(
        tmp_path / "again",
        "--from",
        "gradient",
        "--compare",
        "labels",
        "logits",
        "search",
        "--n",
        "6",
        "--k",
        "2",
    )
    assert (tmp_path / "again" / ENTRY / "results.json").read_bytes() == (
        out / ENTRY / "results.json"
    ).read_bytes()


def test_another_vector_needs_another_folder(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = finished
    said = refused(capsys, "steer", *TINY, "--folder", str(out), "--from", "labels")
    assert "belongs to another configuration of steer (" in said
    assert "choose another --folder or the same settings" in said
    assert "--out" not in said
    (out.parent / "file").write_text("mine")
    said = refused(capsys, "steer", *TINY, "--folder", str(out.parent / "file"))
    assert "expected a folder for the run, found the file" in said
    assert "choose another --folder" in said


def test_the_run_folder_names_model_and_route() -> None:
    assert Config(model="some/model.7b").run == Path("runs/steer-model.7b-labels")
    assert Config(model="statements", route="gradient").file == Path(
        "runs/steer-statements-gradient/vector.safetensors"
    )


def test_a_damaged_vector_is_made_again(finished: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    file, whole = copy / "vector.safetensors", SteeringVector.load(out / "vector.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said = steer(
        copy,
        "--from",
        "gradient",
        "--compare",
        "labels",
        "logits",
        "search",
        "--n",
        "6",
        "--k",
        "2",
    )
    assert "was made before" not in said
    assert all(
        torch.equal(SteeringVector.load(file).directions[n], v) for n, v in whole.directions.items()
    )


def test_other_data_under_the_same_name_is_another_run(
    speaking: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairs.jsonl"
    every = [e for task in speaking.tasks for e in speaking.examples["test"][task]][:120]
    lines = [
        json.dumps({"prompt": e.prompt, "options": e.options, "label": e.options.index(e.answer)})
        for e in every
    ]
    path.write_text("\n".join(lines))
    more = [
        "--data",
        str(path),
        "--compare",
        "labels",
        "--null",
        "0",
        "--tokens",
        "0",
        "--layer",
        "1",
    ]
    steer(tmp_path / "run", *more)
    assert "was made before" in steer(tmp_path / "run", *more)
    path.write_text("\n".join(lines[:-1]))
    said = refused(capsys, "steer", *TINY, "--folder", str(tmp_path / "run"), *more)
    assert "belongs to another configuration of steer (data_hash is '" in said


@pytest.mark.parametrize("option", ["--out", "--gguf"])
def test_where_files_go_is_looked_at_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "file").write_text("mine")
    for target, message in (
        (tmp_path, f"expected a file for {option}, found the folder"),
        (tmp_path / "file" / "v", f"expected a folder that can be written for {option}, found"),
        (
            tmp_path / "file" / "deep" / "v",
            f"expected a folder that can be written for {option}, found",
        ),
    ):
        said = refused(
            capsys, "steer", *TINY, "--folder", str(tmp_path / "run"), option, str(target)
        )
        assert message in said
    assert not (tmp_path / "run").exists()
    assert (
        Config(model="m", out=tmp_path / "new" / "er" / "v").checked().file
        == tmp_path / "new" / "er" / "v"
    )


def test_a_model_without_data_is_told_what_steer_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "steer", "--model", "some/model", "--folder", str(tmp_path / "run"))
    assert "found none: give a JSON Lines file, google/boolq or statements" in said
    assert not (tmp_path / "run").exists()


def test_block_0_is_no_choice_for_a_llama_cpp_file() -> None:
    for layer, count, found in (
        (("0",), 2, "expected blocks from 1 with --gguf, found 0"),
        (("-2",), 2, "expected blocks from 1 with --gguf, found 0"),
        (("1", "-3"), 3, "expected blocks from 1 with --gguf, found 0"),
        (("auto",), 1, "expected a model of two blocks or more for --gguf, found one block"),
    ):
        with pytest.raises(LoclinError, match=found):
            command._check_layers(Config(model="m", layer=layer, gguf=Path("v.gguf")), count)
        command._check_layers(Config(model="m", layer=layer), count)
    command._check_layers(Config(model="m", layer=("-1",), gguf=Path("v.gguf")), 2)
    assert not command._settings(Config(model="m", layer=("1",), gguf=Path("v.gguf")))[
        "without_block_0"
    ]


def test_the_layer_is_chosen_among_those_that_llama_cpp_has(
    speaking: Problem, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    file, out = tmp_path / "vector.gguf", tmp_path / "run"  # block 1 of 2 is what is left
    said = steer(out, "--compare", "labels", "--null", "0", "--tokens", "0", "--gguf", str(file))
    rows = Record(out).results(ENTRY)
    assert [r.context["layer"] for r in rows if r.quantity == "layer_slope"] == [1]
    assert SteeringVector.load(out / "vector.safetensors").layers == (1,)
    assert file.exists()
    assert "Block 0 was not among them: a control vector of llama.cpp has none there." in said


def test_given_layers_are_taken_as_they_are(speaking: Problem, tmp_path: Path) -> None:
    more = [
        "--compare",
        "labels",
        "--layer",
        "0",
        "-1",
        "--null",
        "0",
        "--form",
        "paired",
        "--tokens",
        "0",
    ]
    said = steer(tmp_path / "run", *more)
    assert "The vector is added to the output of blocks 0, 1, as asked." in said
    vector, rows = (
        SteeringVector.load(tmp_path / "run" / "vector.safetensors"),
        Record(tmp_path / "run").results(ENTRY),
    )
    assert vector.layers == (0, 1)
    assert vector.position == "answer"
    assert not [
        r for r in rows if r.quantity in ("layer_slope", "cosine", "random_cosine", "generation")
    ]
    assert (
        "One route alone was made: nothing to compare."
        in (tmp_path / "run" / "report.html").read_text()
    )


def test_pairs_of_answers_from_a_file(speaking: Problem, tmp_path: Path) -> None:
    """Every example has options of its own: the right answer counts as +."""
    towns = ["paris", "rome", "berlin", "madrid", "vienna", "oslo"]
    people = ["anna", "boris", "clara", "david", "emma", "felix", "greta", "hugo", "irene", "jonas"]
    lines = []
    for i, who in enumerate(people):
        for j, town in enumerate(towns):
            pair = [f" {town}", f" {towns[(j + 1 + i % 4) % 6]}"]
            lines.append(
                {
                    "prompt": f"the town of {who} is {towns[j - 1]} ?",
                    "options": pair,
                    "label": (i + j) % 2,
                }
            )
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    sizes = ["--labels", "14", "--gradient", "10", "--shift", "8", "--choose", "6", "--test", "8"]
    said = steer(
        tmp_path / "run", "--data", str(path), *sizes, "--from", "gradient", "--estimand", "E2"
    )
    assert "+ is towards the right answer of each example, at the token" in said
    rows = Record(tmp_path / "run").results(ENTRY)
    slope = one(rows, "slope", route="gradient")
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
    assert command._true_here(["2 examples", f"note: {note}"]) == ["2 examples"]


def test_neutral_text_of_a_file(speaking: Problem, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(
        "\n".join(
            ["people say that rome is red", "the town of anna", "we all agree that oslo is green"]
        )
    )
    said = steer(tmp_path / "run", "--neutral", str(text), "--texts", "3", "--compare", "labels")
    assert "Damage is measured on 3 passages: text.txt." in said


def test_a_llama_cpp_file_is_written(
    speaking: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    from loclin.steering.gguf import read_gguf

    file = tmp_path / "vector.gguf"
    steer(tmp_path / "run", "--compare", "labels", "--layer", "1", "--gguf", str(file))
    kept = SteeringVector.load(tmp_path / "run" / "vector.safetensors")
    assert torch.equal(read_gguf(file).directions[1], kept.directions[1])
    more = ["--folder", str(tmp_path / "none"), "--gguf", str(file)]
    assert "expected blocks from 1 with --gguf, found 0" in refused(
        capsys, "steer", *TINY, *more, "--layer", "0"
    )


def test_a_missing_gguf_package_is_said_at_once(
    speaking: Problem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    said = refused(
        capsys,
        "steer",
        *TINY,
        "--folder",
        str(tmp_path / "run"),
        "--gguf",
        str(tmp_path / "a.gguf"),
    )
    assert "pip install 'loclin[gguf]'" in said
    assert not (tmp_path / "run").exists()


def test_an_interruption_leaves_nothing_half_written(
    speaking: Problem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    out, file = tmp_path / "run", tmp_path / "vector.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(command, "harms", stopped)
        with pytest.raises(SystemExit) as caught:
            main(["steer", *TINY, "--folder", str(out), "--out", str(file), "--compare", "labels"])
    assert caught.value.code == 130
    assert (
        "a vector that was not finished is not kept: the same command starts again"
        in capsys.readouterr().err
    )
    assert not file.exists()
    assert [p.name for p in out.rglob("*")] == ["run.json"]
    steer(out, "--out", str(file), "--compare", "labels")
    assert file.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--layer", "2"], "found 2"),
        (["--layer", "one"], "expected auto or whole numbers, found --layer one: change --layer"),
        (["--layer", "auto", "1"], "expected auto or whole numbers, found --layer auto 1"),
        (["--labels", "9000"], "expected 9076 examples for labels, gradient, shift, choose and "
                               "test, found "),
        (["--labels", "1"], "expected labels of at least 4, found 1: change --labels"),
        (["--k", "200", "--from", "search"], "expected fewer winners than candidates, found k = "
                                             "200 of n = 200: change --k or --n"),
        (["--eta", "0"], "expected eta above 0, found 0.0: change --eta"),
        (["--kl", "nan"], "expected kl above 0, found nan: change --kl"),
        (["--strengths", "1", "2"], "expected different finite strengths with −1, 0 and 1 among "
                                    "them, found [1.0, 2.0]"),
        (["--space", "lora"], "expected --space full or a pattern of parameter names, found lora"),
        (["--space", "nowhere", "--from", "gradient"], "expected a pattern that matches a "
                                                       "trainable tensor, found 'nowhere'"),
        (["--dtype", "bfloat16"], "expected float32 or float64 weights for small steps, found "
                                  "--dtype bfloat16"),
        (["--data", "nothing.jsonl"], "expected a file for --data, found nothing at nothing.jsonl: "
                                      "check the path"),
        (["--neutral", "nothing.txt"], "expected a file for --neutral, found nothing at "
                                       "nothing.txt: check the path"),
        (["--task", "weather"], "unknown task 'weather': expected one of colour, town"),
        (["--positive", " perhaps"], "expected the positive option ' perhaps' in every example"),
        (["--layers-path", "no.where"], "expected"),
        (["--model", "sequences-small"], "expected examples of two options, found 0"),
        (["--model", "nowhere/at/all"], "expected"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(
    speaking: Problem,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    message: str,
) -> None:
    assert message in refused(capsys, "steer", *TINY, "--folder", str(tmp_path / "run"), *change)
    assert not (tmp_path / "run" / "vector.safetensors").exists()
