"""Validate chooses, the choice is locked, test is asked once."""
# ruff: noqa: F401, F811  (fixtures are imported, then named by tests)

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.run.record import Record
from loclin.search.candidate import candidates
from loclin.search.scorer import Scorer
from loclin.studies.search import trial as module
from loclin.studies.search.names import BEST, MODEL, RANDOM_VOTE, SAMPLED_VOTE, VOTE
from loclin.studies.search.trial import locked_choice, trial_of
from tests.studies.search.command import ENTRY, GAIN, command, finished, model, refused


def test_a_choice_that_was_changed_after_it_was_locked_is_refused(
    finished: tuple[Path, str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    (out / ENTRY / "results.json").unlink()
    shutil.rmtree(out / ENTRY / "parts")
    path, words = out / ENTRY / "locked.json", command(model, out, *GAIN)
    held = json.loads(path.read_text())
    held["choice"]["best"]["index"] = (held["choice"]["best"]["index"] + 1) % 24
    path.write_text(json.dumps(held))
    text = "expected the choice that was locked before test was asked, found "
    assert text in refused(capsys, *words)
    shutil.copy(finished[0] / ENTRY / "locked.json", path)
    answers = json.loads((out / ENTRY / "test.json").read_text())
    (out / ENTRY / "test.json").write_text(json.dumps(answers | {"lock": "other"}))
    assert "found those of another: test is asked once" in refused(capsys, *words)


def test_test_is_asked_once_and_read_ever_after(
    trained: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = trained.examples["test"]["swap"]
    splits = {"select": every[:8], "validate": every[8:16], "test": every[16:29]}
    scorer = Scorer(trained, ParameterSpace(trained.model), splits["select"])
    outcomes = scorer.do(candidates(6, [0.05], seed=0))
    record = Record(tmp_path / "run")
    choice, lock = locked_choice(record, "locked.json", scorer, splits, outcomes, (1, 3), seed=0)
    asked = (record, "test.json", scorer, splits, choice, lock)
    first = trial_of(*asked, selected=(0.5, 0.4), temperature=0.7, seed=0)
    scorer.perturbed.verify()
    monkeypatch.setattr(module, "_tested", None)
    again = trial_of(*asked, selected=(0.5, 0.4), temperature=0.7, seed=0)
    every_one = [first.base, *first.conditions]
    assert [c.name for c in every_one] == [MODEL, BEST, VOTE, RANDOM_VOTE, SAMPLED_VOTE]
    for one, other in zip(every_one, [again.base, *again.conditions], strict=True):
        assert np.array_equal(one.right, other.right)
        assert len(one.right) == 13  # no multiple of eight
    assert [c.forward_passes for c in every_one] == [1, 1, choice.k, choice.k, choice.k]
    assert again.winner == first.winner
    assert [split for split, _, _ in first.winner] == ["select", "validate", "test"]
    assert first.winner[2][1:] == (first.conditions[0].right.mean(), first.base.right.mean())
    assert locked_choice(record, "locked.json", scorer, splits, outcomes, (1,), seed=9) == (
        choice,
        lock,
    )
