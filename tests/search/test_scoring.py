"""Candidates scored against the eval set asked at each of them by hand; and their ranks."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from torch import Tensor

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.models.evaluation import EvalSet
from loclin.parameters import ParameterSpace
from loclin.search.candidate import Candidate, Perturbed, candidates
from loclin.search.noise import Noise
from loclin.search.scoring import Outcome, best_first, score


def asked(problem: Problem, *, whole: bool = False) -> EvalSet:
    """Few examples of the first task; with `whole`, of every option from its own tokens."""
    eval_set = EvalSet.of(problem, problem.examples["damage"][problem.tasks[0]][:12])
    return replace(eval_set, options=None) if whole else eval_set


@contextmanager
def moved(
    problem: Problem, noise: str = "gaussian", *, sigma: float
) -> Iterator[tuple[Perturbed, list[Candidate]]]:
    """Three candidates far enough out that some answers are wrong."""
    with Perturbed(ParameterSpace(problem.model), Noise.parse(noise)) as perturbed:
        yield perturbed, candidates(3, [sigma], seed=1)


@pytest.mark.parametrize("noise", ["gaussian", "lowrank:2", "tied"])
@pytest.mark.parametrize(
    ("name", "whole"), [("trained", False), ("speaking", False), ("speaking", True)]
)
def test_outcomes_are_those_of_the_eval_set_at_each_candidate(
    name: str, whole: bool, noise: str, request: pytest.FixtureRequest
) -> None:
    problem: Problem = request.getfixturevalue(name)
    eval_set = asked(problem, whole=whole)
    with moved(problem, noise, sigma=0.1) as (perturbed, group):
        expected = []
        for c in group:
            perturbed.place(c)
            sums, counts = eval_set.tallies()
            expected.append((sums[0] / counts[0], eval_set.answers()[1].numpy()))
        found = score(perturbed, eval_set, group)
        perturbed.verify()
        assert [o.candidate for o in found] == group
        for outcome, (loss, right) in zip(found, expected, strict=True):
            assert outcome.loss == pytest.approx(loss, rel=1e-9)
            assert outcome.right.tolist() == right.tolist()
            assert outcome.score == right.mean()
    assert len({o.score for o in found}) > 1 or len({round(o.loss, 6) for o in found}) == 3


def test_groups_do_not_matter(trained: Problem) -> None:
    eval_set = asked(trained)
    with moved(trained, sigma=0.1) as (perturbed, group):
        whole = score(perturbed, eval_set, group)
        parts = score(perturbed, eval_set, group[:1]) + score(perturbed, eval_set, group[1:])
    for one, other in zip(whole, parts, strict=True):
        assert one.loss == other.loss
        assert np.array_equal(one.right, other.right)


def test_the_base_comes_back_when_scoring_fails(
    trained: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    eval_set, calls = asked(trained), [0]
    plain = EvalSet.answers

    def failing(self: EvalSet) -> tuple[Tensor, Tensor]:
        calls[0] += 1
        if calls[0] == 2:
            raise RuntimeError("out of memory")
        return plain(self)

    monkeypatch.setattr(EvalSet, "answers", failing)
    perturbed = Perturbed(ParameterSpace(trained.model), Noise())
    with pytest.raises(RuntimeError, match="out of memory"):
        score(perturbed, eval_set, candidates(3, [0.1], seed=0))
    perturbed.verify()


def test_weights_that_give_no_numbers_answer_nothing_right(speaking: Problem) -> None:
    with moved(speaking, sigma=1e30) as (perturbed, group):
        for outcome in score(perturbed, asked(speaking), group):
            assert math.isnan(outcome.loss)
            assert outcome.score == 0


def outcome(index: int, right: int, loss: float = 1.0) -> Outcome:
    candidate = Candidate(index=index, seed=index, sigma=0.1)
    return Outcome(candidate=candidate, loss=loss, right=np.arange(4) < right)


def test_candidates_rank_by_score_then_loss_then_index_and_never_without_a_finite_loss() -> None:
    found = [
        outcome(0, 2),
        outcome(1, 3, 2.0),
        outcome(2, 3, 1.5),
        outcome(3, 4, math.nan),
        outcome(4, 4, math.inf),
        outcome(5, 2),
    ]
    assert [o.candidate.index for o in best_first(found)] == [2, 1, 0, 5]
    text = "a candidate with a finite loss, found none among 2: choose a smaller --sigma"
    with pytest.raises(LoclinError, match=text):
        best_first(found[3:5])
