"""A user's own tasks: which are trained on which split, and data that are refused in one line."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.run.runner import Session
from loclin.studies.schedules.own import own_comparisons
from loclin.studies.schedules.settings import SchedulesSettings
from tests.studies.schedules.small import own, task_file


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
