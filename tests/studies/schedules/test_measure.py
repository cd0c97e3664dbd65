"""One run: every schedule on every pair, both tasks destroyed; a user's own tasks on every family
of models; the command as it is typed.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin import cli
from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.run.record import Record
from loclin.run.rows import Part, by_run
from loclin.run.runner import Session, run_studies
from loclin.studies import KINDS
from loclin.studies.context import RunContext
from loclin.studies.damage import damage
from loclin.studies.schedules import names as n
from loclin.studies.schedules.measure import measure, own_comparisons
from loclin.studies.schedules.settings import SchedulesSettings, preset
from tests.conftest import FAMILIES
from tests.run.killed import assert_same, measured_through_kills
from tests.studies.schedules.small import NAMES, SCHEDULES, TINY, own, task_file


def test_a_pair_that_is_not_known_is_refused(
    trained: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Problem.score
    monkeypatch.setattr(
        Problem,
        "score",
        lambda self, name, task: 0.0 if task == "swap" else score(self, name, task),
    )
    with pytest.raises(
        LoclinError, match=r"expected a score of at least .* on swap before the damage, found 0.00"
    ):
        measure(TINY, 0, Session())


def test_both_tasks_are_destroyed_and_the_others_kept(ctx: RunContext[SchedulesSettings]) -> None:
    with ctx.space.restored():
        ctx.space.write(damage(ctx, "copy", "swap"))
        scores = {task: ctx.score(task) for task in ctx.problem.tasks}
    assert scores.pop("copy") <= 0.05
    assert scores.pop("swap") <= 0.05
    assert np.mean(list(scores.values())) > 0.5


def test_a_run_compares_every_schedule_on_every_pair(part: Part) -> None:
    rows = list(part.rows)
    for pair in ("agreeing", "copy+swap", "all"):
        here = [r for r in rows if r.quantity == "worst_score" and r.context["pair"] == pair]
        assert [r.context["schedule"] for r in here] == list(NAMES)
        assert all(r.value is not None and 0 <= r.value <= 1 for r in here)
    for name in NAMES:
        (over,) = by_run(rows, "worst_score", schedule=name, pair="all")
        each = [
            by_run(rows, "worst_score", schedule=name, pair=p)[0] for p in ("agreeing", "copy+swap")
        ]
        assert over == pytest.approx(np.mean(each))
        assert by_run(rows, "evaluations", schedule=name, pair="all") == [8]
    first = [r.value for r in rows if r.quantity == "first_score"]
    assert len(first) == 4
    assert max(v for v in first if v is not None) <= 0.05 + 1 / 16
    points = {r.context["point"] for r in rows if r.quantity == "pair_cosine"}
    assert points == {"pretrained", "damaged"}
    assert "time for one gradient" in part.notes[-1]


def test_the_same_run_gives_the_same_record(part: Part) -> None:
    assert list(measure(TINY, 0, Session()).rows) == list(part.rows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("space", ["lora", "full"])
def test_every_family_learns_two_tasks_of_a_user(
    family: str, space: str, folder: dict[str, str], files: tuple[str, str]
) -> None:
    lr = 1e-2 if space == "lora" else 1e-3
    part = measure(own(folder[family], files, space=space, adamw_lr=lr), 0, Session())
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


def test_both_optimisers_train_from_one_start(
    folder: dict[str, str], files: tuple[str, str]
) -> None:
    settings = own(folder["gpt2"], files, optimisers=("adamw", "sgd"))
    rows = measure(settings, 1, Session()).rows
    alone = measure(replace(settings, optimisers=("sgd",)), 1, Session()).rows
    assert [r for r in rows if r.context.get("optimiser") != "adamw"] == list(alone)
    first = [by_run(rows, "first_worst_score", optimiser=o) for o in ("adamw", "sgd")]
    assert first[0] == first[1]


def test_the_command_trains_recommends_and_goes_on_where_it_was(
    folder: dict[str, str],
    files: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where, entry = tmp_path / "p", f"schedules-{Path(folder['gpt2']).name}-A-B-lora"
    options = "--evaluations 60 --points 2 --batch 8 --test-examples 12 --seeds 2 --adamw-lr 1e-2"
    command = ["schedules", "--model", folder["gpt2"], "--data", *files, "--out", str(where)]
    command += ["--schedules", *SCHEDULES, *options.split()]
    cli.main(command)
    printed = capsys.readouterr().out
    assert "Recommended: " in printed
    assert all(name in printed for name in SCHEDULES)
    assert f"report: {where / 'report.html'}" in printed
    record = Record(where)
    assert record.claims() == []
    before = record.results(entry)
    (recommended,) = (r for r in before if r.quantity == "recommended")
    assert f"Recommended: {recommended.context['schedule']}" in printed
    (where / entry / "parts" / "run-001.json").unlink()
    (where / entry / "results.json").unlink()
    cli.main([*command, "--workers", "1"])
    assert record.results(entry) == before
    html = (where / "report.html").read_text()
    assert "Which schedule for A, B" in html
    assert "<script" not in html


def test_other_data_or_another_model_are_another_record(
    folder: dict[str, str],
    files: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = own(folder["gpt2"], files)
    record = Record(tmp_path / "p")
    record.open_study(settings.entry, settings.fingerprint(), device="cpu", kind="schedules")
    before = settings.fingerprint()
    words = task_file(tmp_path / "B.jsonl", {"mat": "ran", "man": "purr"})
    other = replace(settings, data=(files[0], words))
    assert other.fingerprint()["data_digest"] != before["data_digest"]
    copy = Path(folder["gpt2"], "more.txt")
    copy.write_text("another file")
    try:
        assert settings.fingerprint()["model_files"] != before["model_files"]
    finally:
        copy.unlink()
    assert settings.fingerprint() == before


def test_pairs_of_a_users_own_tasks_are_destroyed_too(
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
    settings = replace(
        preset("smoke", folder["gpt2"], pairs=("A+B",)),
        data=(str(both),),
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
    part = measure(settings, 0, Session())
    assert {r.context["task"] for r in part.rows if r.quantity == "worst_score"} == {"A+B", "all"}
    with pytest.raises(
        LoclinError, match="expected three tasks or more for pairs chosen by rule, found A, B"
    ):
        measure(replace(settings, pairs=("agreeing",)), 0, Session())


def test_a_run_that_is_killed_goes_on_with_the_same_results(
    folder: dict[str, str], files: tuple[str, str], tmp_path: Path
) -> None:
    settings = own(folder["llama"], files, evaluations=24, schedules=(*SCHEDULES, "replay"))
    part, counts = measured_through_kills(
        tmp_path / "out", "loclin.studies.schedules.measure", settings
    )
    assert counts == sorted(counts)
    assert counts
    assert_same(part, measure(settings, 0, Session()))


def test_further_schedules_are_trained_where_the_leaders_are_not_told_apart(
    folder: dict[str, str], files: tuple[str, str], tmp_path: Path
) -> None:
    base = own(folder["gpt2"], files, schedules=("joint mixed", "average"), adamw_lr=1e-6)
    for further, name in (((), "few"), (("raw sum", "sequential"), "more")):
        run_studies([(KINDS["schedules"], replace(base, further=further))], tmp_path / name)
    few, more = (Record(tmp_path / name).results(base.entry) for name in ("few", "more"))
    names = [{r.context["schedule"] for r in rows if r.quantity == n.PLACE} for rows in (few, more)]
    assert names == [
        {"joint mixed", "average"},
        {"joint mixed", "average", "raw sum", "sequential"},
    ]
    of_runs = [[r for r in rows if "run" in r.context] for rows in (few, more)]
    assert of_runs[1][: len(of_runs[0])] == of_runs[0]
    (note,) = (x for x in Record(tmp_path / "more").run()["notes"][base.entry] if "too" in x)
    assert note.endswith("raw sum, sequential")


def test_tasks_are_in_the_order_asked_for_and_start_at_the_model_as_it_is(
    folder: dict[str, str], files: tuple[str, str]
) -> None:
    settings = own(folder["llama"], files, tasks=("B", "A"), optimisers=("adamw", "sgd"))
    found, before, notes = own_comparisons(settings, 0, Session())
    adamw, sgd = found["adamw"], found["sgd"]
    assert adamw.tasks == ("B", "A")
    assert [r.context["of"] for r in before.rows if r.quantity == "known"] == ["B", "A"]
    assert adamw.train_split == "train"
    assert torch.equal(adamw.start, adamw.space.read())
    assert (adamw.lr, sgd.lr, adamw.seed) == (1e-3, 3e-2, sgd.seed)
    sizes = {name: len(split["A"]) for name, split in adamw.problem.examples.items()}
    assert list(sizes) == ["train", "validate", "test"]
    assert sum(sizes.values()) == 60
    assert 30 <= sizes["train"] <= 42
    tested = {t: min(12, len(adamw.problem.examples["test"][t])) for t in "BA"}
    assert f"scores are of test examples: {tested['B']} of B, {tested['A']} of A" in notes


def test_data_that_cannot_be_trained_on_are_refused_in_one_line(
    folder: dict[str, str], files: tuple[str, str], words: PreTrainedTokenizerBase, tmp_path: Path,
    families: dict[str, PreTrainedModel],
) -> None:  # fmt: skip
    def refused(text: str, settings: SchedulesSettings) -> None:
        with pytest.raises(LoclinError, match=text) as found:
            own_comparisons(settings, 0, Session())
        assert "\n" not in str(found.value)

    gpt2 = folder["gpt2"]
    refused("expected two tasks or more, found A alone: give a file for each", own(gpt2, files[:1]))
    refused(
        "unknown task 'Z': expected some of A, B; change --tasks",
        own(gpt2, files, tasks=("A", "Z")),
    )
    (tmp_path / "again").mkdir()
    twice = task_file(tmp_path / "again" / "A.jsonl", {"cat": "sat"})
    refused(
        "expected every task in one file, found 'A' in A.jsonl and A.jsonl",
        own(gpt2, (files[0], twice)),
    )
    refused(
        "expected at least 64 examples of A to train on, found .*lower --batch",
        own(gpt2, files, batch=64, evaluations=32),
    )
    few = task_file(tmp_path / "few.jsonl", {"cat": "sat"}, 2)
    refused(
        "expected examples of task 'few' in every split, found 2 groups", own(gpt2, (files[0], few))
    )
    # a word-level tokenizer that knows the words of one task alone
    families["gpt2"].save_pretrained(tmp_path / "m")
    words.save_pretrained(tmp_path / "m")
    odd = task_file(tmp_path / "odd.jsonl", {"cat": "xylophone"})
    refused(
        "examples of every task that the model can read, found none left of odd .*dropped .* with "
        "an answer that the tokenizer",
        own(str(tmp_path / "m"), (files[0], odd)),
    )


def test_tasks_that_are_known_are_nothing_to_learn(trained: Problem) -> None:
    known = own("sequences-small", ("sequences-small",), tasks=("copy", "swap"))
    with pytest.raises(
        LoclinError,
        match=r"expected a task with something to learn, found 1.00 on copy, 1.00 on swap",
    ):
        own_comparisons(known, 0, Session())
