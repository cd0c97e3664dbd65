"""What is selected, by hand: ranks, pools over σ, what validate prefers; the choice is locked, test
is asked once.
"""

import json
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.run.record import Record
from loclin.search.candidate import Candidate, candidates
from loclin.search.scorer import Scorer
from loclin.search.scoring import Outcome
from loclin.studies.search import trial as module
from loclin.studies.search.names import BEST, MODEL, RANDOM_VOTE, SAMPLED_VOTE, VOTE
from loclin.studies.search.prepared import kept
from loclin.studies.search.trial import (
    AnswerBatch,
    answer_batches,
    choose,
    locked_choice,
    pools,
    trial_of,
)
from loclin.tasks.example import Example
from tests.studies.search.command import ENTRY, GAIN, command, refused


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
    locked = partial(kept, record, "locked.json")
    choice, lock = locked_choice(locked, scorer, splits, outcomes, (1, 3), seed=0)
    asked = (partial(kept, record, "test.json"), scorer, splits, choice, lock)
    first = trial_of(*asked, selected=(0.5, 0.4), temperature=0.7, seed=0)
    scorer.perturbed.verify()
    monkeypatch.setattr(module, "_tested", None)
    again = trial_of(*asked, selected=(0.5, 0.4), temperature=0.7, seed=0)
    every_one, winner = first
    assert [c.name for c in every_one] == [MODEL, BEST, VOTE, RANDOM_VOTE, SAMPLED_VOTE]
    for one, other in zip(every_one, again[0], strict=True):
        assert np.array_equal(one.right, other.right)
        assert len(one.right) == 13  # no multiple of eight
    assert [c.forward_passes for c in every_one] == [1, 1, *[len(choice.members)] * 3]
    assert again[1] == winner
    assert [split for split, _, _ in winner] == ["select", "validate", "test"]
    assert winner[2][1:] == (every_one[1].right.mean(), every_one[0].right.mean())
    assert locked_choice(locked, scorer, splits, outcomes, (1,), seed=9) == (choice, lock)


EXAMPLES = [Example(prompt=f"{i} =", answer="yes") for i in range(4)]


def outcome(index: int, right: int, loss: float = 1.0, sigma: float = 0.1) -> Outcome:
    candidate = Candidate(index=index, seed=index, sigma=sigma)
    return Outcome(candidate=candidate, loss=loss, right=np.arange(4) < right)


def answered(*words: str, loss: float = 1.0) -> AnswerBatch:
    return AnswerBatch(loss=loss, answers=words, right=np.array([w == "yes" for w in words]))


def test_pools_are_over_every_sigma_and_of_each() -> None:
    found = [
        outcome(0, 2),
        outcome(1, 1),
        outcome(2, 3, sigma=0.2),
        outcome(3, 0, sigma=0.2),
        outcome(4, 4, math.nan, sigma=0.3),
    ]
    places = {sigma: [c.index for c in pool] for sigma, pool in pools(found, 2).items()}
    assert places == {None: [2, 0], 0.1: [0, 1], 0.2: [2, 3]}
    assert set(pools(found[:2], 2)) == {None}


def test_validate_chooses_the_single_best_and_the_ensemble_apart() -> None:
    """Selected first is the worst on validate; three others are each right half of the time, and
    together always.
    """
    candidates = [Candidate(index=i, seed=i, sigma=0.1 if i < 4 else 0.2) for i in range(6)]
    validated = {
        0: answered("no", "no", "no", "no"),
        1: answered("yes", "yes", "yes", "no"),
        2: answered("no", "yes", "yes", "yes"),
        3: answered("yes", "no", "yes", "yes", loss=0.5),
        4: answered("yes", "yes", "no", "no"),
        5: answered("no", "no", "no", "no"),
    }
    found = {None: candidates[:4], 0.1: candidates[1:4], 0.2: candidates[4:]}
    every = [outcome(c.index, 2, sigma=c.sigma) for c in candidates]
    chosen = choose(found, validated, EXAMPLES, [1, 3], outcomes=every, seed=0)
    assert chosen.best.index == 3  # three candidates are right three times; it has the lowest loss
    assert chosen.single_score == 0.75
    assert [c.index for c in chosen.members] == [1, 2, 3]
    assert (chosen.sigma, len(chosen.members), chosen.ensemble_score) == (0.1, 3, 1.0)
    assert len(chosen.random_controls) == 3
    assert {c.sigma for c in chosen.random_controls} == {0.1}
    again = choose(found, validated, EXAMPLES, [3, 1], outcomes=every, seed=0)
    assert again == chosen
    others = {
        choose(found, validated, EXAMPLES, [1, 3], outcomes=every, seed=s).random_controls
        for s in range(8)
    }
    assert len(others) > 1


def test_of_equal_ensembles_the_smaller_and_then_the_one_over_every_sigma_is_chosen() -> None:
    candidates = [Candidate(index=i, seed=i, sigma=0.1) for i in range(3)]
    validated = {i: answered("yes", "yes", "yes", "no") for i in range(3)}
    every = [outcome(i, 2) for i in range(3)]
    chosen = choose(
        {None: candidates, 0.1: candidates}, validated, EXAMPLES, [1, 3], outcomes=every, seed=0
    )
    assert (len(chosen.members), chosen.sigma) == (1, None)
    assert chosen.best.index == chosen.members[0].index == 0
    one = choose(
        {None: candidates},
        {**validated, 0: answered("", "", "", "", loss=math.nan)},
        EXAMPLES,
        [9],
        outcomes=every,
        seed=0,
    )
    assert len(one.members) == 3  # fewer than nine there are
    assert one.best.index == 1


@pytest.mark.parametrize("kind", ["trained", "speaking"])
def test_what_a_candidate_answers_is_what_it_scores_and_the_model_is_back(
    kind: str, request: pytest.FixtureRequest
) -> None:
    problem: Problem = request.getfixturevalue(kind)
    examples = next(iter(problem.examples["test"].values()))[:12]
    scorer = Scorer(problem, ParameterSpace(problem.model), examples)
    candidate = Candidate(index=4, seed=3, sigma=0.05)
    (expected,) = scorer.do([candidate])
    batches = answer_batches(scorer, examples, [candidate, None])
    assert set(batches) == {4, None}
    assert batches[4].loss == pytest.approx(expected.loss)
    assert batches[4].right.tolist() == expected.right.tolist()
    scorer.perturbed.verify()
    assert batches[None].loss < batches[4].loss
    assert batches[None].score >= batches[4].score
