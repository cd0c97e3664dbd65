"""`loclin schedules`: a user's tasks on every family of models, the command as it is typed, and
what it refuses.
"""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin import cli
from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.record import Record
from loclin.report import pilot as page
from loclin.studies.pilot import experiment
from loclin.studies.pilot.config import Config
from loclin.studies.schedules import experiment as study
from loclin.studies.schedules.config import preset
from loclin.studies.table import summaries
from tests.conftest import FAMILIES

FEW = {
    "evaluations": 8,
    "points": 2,
    "batch": 4,
    "curve_examples": 8,
    "test_examples": 12,
    "seeds": 2,
}
SCHEDULES = ("raw sum", "joint mixed", "sequential", "average")


def silent(stage: str, share: float) -> None:
    pass


def told(file: Path, words: dict[str, str], count: int = 60) -> str:
    """A task: which word follows which."""
    asked = list(words)
    records = (
        {"prompt": f"{i} the {asked[i % len(asked)]} is", "answer": words[asked[i % len(asked)]]}
        for i in range(count)
    )
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(file)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    where = tmp_path_factory.mktemp("tasks")
    return told(where / "A.jsonl", {"cat": "purr", "dog": "ran"}), told(
        where / "B.jsonl", {"mat": "sat", "man": "no"}
    )


@pytest.fixture(scope="module")
def folder(
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    made = {}
    for family in FAMILIES:
        where = tmp_path_factory.mktemp(family)
        families[family].save_pretrained(where)
        tokenizers[family].save_pretrained(where)
        made[family] = str(where)
    return made


def asked(folder: str, files: tuple[str, ...], **changed: Any) -> Config:
    return Config(
        **{"model": folder, "data": files, "schedules": SCHEDULES, **FEW, **changed}
    ).checked()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("space", ["lora", "full"])
def test_every_family_learns_two_tasks_of_a_user(
    family: str, space: str, folder: dict[str, str], files: tuple[str, str]
) -> None:
    config = asked(folder[family], files, space=space, lr=1e-2 if space == "lora" else 1e-3)
    part = experiment.run_one(config, 0, silent)
    scored = [r for r in part.rows if r.quantity == "worst_score"]
    assert [r.context["schedule"] for r in scored] == list(SCHEDULES)
    assert {r.context["task"] for r in scored} == {"A+B"}
    losses = {
        r.context["evaluations"]: r.value
        for r in part.rows
        if r.quantity == "curve_loss"
        and r.context["schedule"] == "joint mixed"
        and r.context["role"] == "A"
    }
    assert losses[8] < losses[0]  # type: ignore[operator]
    assert part.notes[0] == "A.jsonl and B.jsonl: 120 read, 120 kept in 2 tasks (A 60, B 60)"


def test_the_command_trains_recommends_and_goes_on_where_it_was(
    folder: dict[str, str],
    files: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [
        "schedules",
        "--model",
        folder["gpt2"],
        "--data",
        *files,
        "--schedules",
        *SCHEDULES,
        "--out",
        str(tmp_path / "p"),
        "--evaluations",
        "60",
        "--points",
        "2",
        "--batch",
        "8",
        "--test-examples",
        "12",
        "--seeds",
        "2",
        "--lr",
        "1e-2",
    ]
    cli.main(command)
    said = capsys.readouterr().out
    assert "Recommended: " in said
    for name in SCHEDULES:
        assert name in said
    assert f"report: {tmp_path / 'p' / 'report.html'}" in said
    record = Record(tmp_path / "p")
    assert record.claims() == []
    before = record.results("schedules-pilot")
    (tmp_path / "p" / "schedules-pilot" / "parts" / "run-001.json").unlink()
    (tmp_path / "p" / "schedules-pilot" / "results.json").unlink()
    cli.main([*command, "--workers", "1"])
    assert record.results("schedules-pilot") == before
    third = told(tmp_path / "B.jsonl", {"mat": "ran", "man": "purr"})
    with pytest.raises(SystemExit):
        cli.main([*command[:4], files[0], third, *command[6:]])
    said = capsys.readouterr().err
    assert "belongs to another configuration of schedules-pilot (data is" in said
    Path(files[1]).rename(tmp_path / "kept")
    Path(third).rename(files[1])
    try:
        with pytest.raises(SystemExit):
            cli.main(command)
    finally:
        Path(files[1]).unlink()
        (tmp_path / "kept").rename(files[1])
    assert "(data_digest is" in capsys.readouterr().err
    html = (tmp_path / "p" / "report.html").read_text()
    assert "Which schedule for A, B?" in html
    assert "<script" not in html


def test_the_page_says_what_one_pilot_cannot(
    folder: dict[str, str], files: tuple[str, str]
) -> None:
    config = asked(folder["qwen2"], files, seeds=1, schedules=("raw sum", "sequential"))
    part = experiment.run_one(config, 0, silent)
    rows = [*part.rows, *summaries(part.rows)]
    sections = page.sections(rows, dataclasses.asdict(config))
    said = " ".join(line for s in sections for line in (s.title, *s.sees))
    assert "One pilot has no interval" in said
    assert "nan" not in said
    assert len({f.name for s in sections for f in s.figures}) == sum(
        len(s.figures) for s in sections
    )


def test_the_study_takes_a_users_own_tasks_too(
    folder: dict[str, str], files: tuple[str, str], tmp_path: Path
) -> None:
    both = tmp_path / "both.jsonl"
    records = [
        {**json.loads(line), "task": name}
        for name, f in zip("AB", files, strict=True)
        for line in Path(f).read_text().splitlines()
    ]
    more = [{**r, "prompt": f"{i} {r['prompt']}"} for i in range(8) for r in records]
    both.write_text("".join(json.dumps(r) + "\n" for r in more))
    config = replace(
        preset("smoke", folder["gpt2"]),
        data=str(both),
        pairs=("A+B",),
        seeds=1,
        evaluations=6,
        points=1,
        k=2,
        batch=8,
        schedules=("joint mixed", "sequential"),
        curve_examples=8,
        test_examples=8,
        fisher_examples=8,
        ranks=(2,),
        teach_lr=1e-2,
        damage_lr=1e-2,
    ).checked()
    part = study.run_one(config, 0, silent)
    assert {r.context["task"] for r in part.rows if r.quantity == "worst_score"} == {"A+B", "all"}
    with pytest.raises(
        LoclinError, match="expected three tasks or more for pairs chosen by rule, found A, B"
    ):
        study.run_one(replace(config, pairs=("agreeing",)), 0, silent)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"data": ()},
            r"expected --data with the model .* give a file for each task, such as --data A.jsonl "
            r"B.jsonl",
        ),
        (
            {"data": ("A.jsonl", "none.jsonl")},
            "expected a file of task data, found nothing at A.jsonl",
        ),
        (
            {"data": ("sequences", "x.jsonl")},
            "expected one built-in set of tasks or several files, found sequences, x.jsonl",
        ),
        ({"data": ("self",)}, "expected tasks to learn, found --data self"),
        ({"tasks": ("A",)}, "expected two different tasks or more, found A"),
        ({"tasks": ("A", "A")}, "expected two different tasks or more, found A, A"),
        ({"dtype": "bfloat16", "space": "full"}, "expected float32 for full weights"),
        ({"seeds": 0}, "expected seeds of at least 1, found 0"),
        ({"lr": -1.0}, "expected a learning rate above 0, found -1.0: change --lr"),
        ({"workers": -1}, "expected workers from 0"),
        ({"schedules": ("nonsense",)}, "found 'nonsense': change --schedules"),
        ({"evaluations": 1}, "raise --evaluations"),
    ],
)
def test_bad_settings_are_named_with_their_remedy(
    changed: dict[str, Any], text: str, folder: dict[str, str], files: tuple[str, str]
) -> None:
    with pytest.raises(LoclinError, match=text):
        asked(folder["gpt2"], files, **changed)


def test_data_that_cannot_be_trained_on_are_refused_in_one_line(
    folder: dict[str, str], files: tuple[str, str], words: PreTrainedTokenizerBase, tmp_path: Path,
    families: dict[str, PreTrainedModel],
) -> None:  # fmt: skip
    def refused(text: str, config: Config) -> None:
        with pytest.raises(LoclinError, match=text) as found:
            experiment.run_one(config, 0, silent)
        assert "\n" not in str(found.value)

    gpt2 = folder["gpt2"]
    refused(
        "expected two tasks or more, found A alone: give a file for each", asked(gpt2, files[:1])
    )
    refused(
        "unknown task 'Z': expected some of A, B; change --tasks",
        asked(gpt2, files, tasks=("A", "Z")),
    )
    (tmp_path / "again").mkdir()
    twice = told(tmp_path / "again" / "A.jsonl", {"cat": "sat"})
    with pytest.raises(LoclinError, match="expected different files, found one twice"):
        asked(gpt2, (files[0], files[0]))
    refused(
        "expected every task in one file, found 'A' in A.jsonl and A.jsonl",
        asked(gpt2, (files[0], twice)),
    )
    refused(
        "expected at least 64 examples of A to train on, found .*lower --batch",
        asked(gpt2, files, batch=64, evaluations=32),
    )
    few = told(tmp_path / "few.jsonl", {"cat": "sat"}, 2)
    refused(
        "expected examples of task 'few' in every split, found 2 groups",
        asked(gpt2, (files[0], few)),
    )
    # a word-level tokenizer that knows the words of one task alone
    families["gpt2"].save_pretrained(tmp_path / "m")
    words.save_pretrained(tmp_path / "m")
    odd = told(tmp_path / "odd.jsonl", {"cat": "xylophone"})
    refused(
        "examples of every task that the model can read, found none left of odd .*dropped .* with "
        "an answer that the tokenizer",
        asked(str(tmp_path / "m"), (files[0], odd)),
    )


def test_tasks_that_are_known_are_nothing_to_learn(trained: Problem) -> None:
    known = Config(
        model="sequences-small", data=("sequences-small",), tasks=("copy", "swap"), **FEW
    )  # type: ignore[arg-type]
    with pytest.raises(
        LoclinError,
        match=r"expected a task with something to learn, found 1.00 on copy, 1.00 on swap",
    ):
        experiment.run_one(known, 0, silent)
