import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.models.exam import Exam
from loclin.parameters import ParameterSpace
from loclin.search import scoring
from loclin.search.candidate import Candidate, Perturbed, candidates
from loclin.search.noise import Noise
from loclin.search.scoring import Outcome, agrees, faster, score

NOISES = ["gaussian", "lowrank:2", "tied"]


def asked(problem: Problem, *, whole: bool = False) -> Exam:
    """An exam of few examples of the first task; with `whole`, of every option from its own tokens."""
    exam = Exam.of(problem, problem.examples["damage"][problem.tasks[0]][:12])
    return replace(exam, options=None) if whole else exam


@contextmanager
def moved(
    problem: Problem, noise: str = "gaussian", *, sigma: float
) -> Iterator[tuple[Perturbed, list[Candidate]]]:
    """Three candidates far enough out that some answers are wrong."""
    with Perturbed(ParameterSpace(problem.model), Noise.parse(noise)) as perturbed:
        yield perturbed, candidates(3, [sigma], seed=1)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(
    ("name", "whole"), [("trained", False), ("speaking", False), ("speaking", True)]
)
def test_outcomes_are_those_of_the_exam_at_each_candidate(
    name: str, whole: bool, noise: str, request: pytest.FixtureRequest
) -> None:
    problem: Problem = request.getfixturevalue(name)
    exam = asked(problem, whole=whole)
    with moved(problem, noise, sigma=0.1) as (perturbed, group):
        expected = []
        for c in group:
            perturbed.place(c)
            sums, counts = exam.tallies()
            expected.append((sums[0] / counts[0], exam.answers()[1].numpy()))
        for batched in (False, True):
            found = score(perturbed, exam, group, batched=batched)
            perturbed.verify()
            assert [o.candidate for o in found] == group
            for outcome, (loss, right) in zip(found, expected, strict=True):
                assert outcome.loss == pytest.approx(loss, rel=1e-3)
                assert outcome.right.tolist() == right.tolist()
                assert outcome.score == right.mean()
    assert len({o.score for o in found}) > 1 or len({round(o.loss, 6) for o in found}) == 3


@pytest.mark.parametrize("batched", [False, True])
def test_groups_do_not_matter(trained: Problem, batched: bool) -> None:
    exam = asked(trained)
    with moved(trained, sigma=0.1) as (perturbed, group):
        whole = score(perturbed, exam, group, batched=batched)
        parts = score(perturbed, exam, group[:1], batched=batched) + score(
            perturbed, exam, group[1:], batched=batched
        )
    for one, other in zip(whole, parts, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert np.array_equal(one.right, other.right)


@pytest.mark.parametrize("batched", [False, True])
def test_the_base_comes_back_when_scoring_fails(
    trained: Problem, batched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exam, asks = asked(trained), []
    plain = Exam.answers

    def failing(self: Exam, copies: int = 1) -> tuple[Tensor, Tensor]:
        asks.append(copies)
        if len(asks) == (1 if batched else 2):
            raise RuntimeError("out of memory")
        return plain(self, copies)

    monkeypatch.setattr(Exam, "answers", failing)
    perturbed = Perturbed(ParameterSpace(trained.model), Noise())
    with pytest.raises(RuntimeError, match="out of memory"):
        score(perturbed, exam, candidates(3, [0.1], seed=0), batched=batched)
    perturbed.verify()
    assert not [m for m in trained.model.modules() if "forward" in vars(m)]


@pytest.mark.parametrize("batched", [False, True])
def test_weights_that_give_no_numbers_answer_nothing_right(
    speaking: Problem, batched: bool
) -> None:
    exam = asked(speaking)
    with moved(speaking, sigma=1e30) as (perturbed, group):
        for outcome in score(perturbed, exam, group, batched=batched):
            assert not np.isfinite(outcome.loss)
            assert outcome.score == 0


def test_a_basis_is_not_scored_in_a_batch(trained: Problem) -> None:
    space = ParameterSpace(trained.model)
    basis = torch.zeros(1, space.dimension)
    basis[0, 5] = 1
    with Perturbed(space, Noise(), basis=basis) as perturbed:
        group = candidates(2, [0.1], seed=0)
        assert not faster(perturbed, asked(trained), group)
        assert len(score(perturbed, asked(trained), group, batched=False)) == 2
        with pytest.raises(
            LoclinError, match="expected noise of the tensors for batched candidates, found a basis"
        ):
            score(perturbed, asked(trained), group, batched=True)


@pytest.mark.parametrize(
    ("slow", "differ", "chosen"), [(False, False, True), (True, False, False), (False, True, False)]
)
def test_the_faster_way_is_taken_if_it_gives_the_same(
    trained: Problem, slow: bool, differ: bool, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stacked passes that take less time, that take more, and that come to something else."""

    def timed(
        _: Perturbed, exam: Exam, group: Sequence[Candidate], *, batched: bool
    ) -> list[Outcome]:
        time.sleep(0.02 if batched == slow else 0.001)
        right = np.ones(len(exam.batch), dtype=bool)
        return [Outcome(candidate=c, loss=0.5, right=right) for c in group]

    together = scoring._together

    def elsewhere(*given: Any) -> list[Outcome]:
        return [replace(o, loss=o.loss + 0.01 * differ) for o in together(*given)]

    monkeypatch.setattr(scoring, "score", timed)
    monkeypatch.setattr(scoring, "_together", elsewhere)
    perturbed = Perturbed(ParameterSpace(trained.model), Noise())
    assert faster(perturbed, asked(trained), candidates(2, [0.1], seed=0)) is chosen


def test_noise_that_a_stack_would_miss_is_placed(trained: Problem) -> None:
    """A model that reads a weight outside its module's own forward: low-rank noise is added to the
    weights then, stacked never.
    """
    model = copy.deepcopy(trained.model)
    head = model.transformer.h[0].mlp.c_fc

    def leaks(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + args[0] @ head.weight

    head.register_forward_hook(leaks)
    problem = replace(trained, model=model)
    with moved(problem, "lowrank:2", sigma=0.05) as (perturbed, group):
        exam = asked(problem)
        assert not agrees(perturbed, exam, group[0])
        (found,) = score(perturbed, exam, group[:1], batched=False)
        perturbed.place(group[0])
        losses, _ = exam.answers()
        assert found.loss == float(losses.sum()) / float(exam.tokens.sum())


def test_a_stack_too_large_for_memory_is_not_tried(
    trained: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = ParameterSpace(trained.model)
    tried: list[Any] = []
    monkeypatch.setattr(scoring, "score", lambda *a, **_: tried.append(a))
    monkeypatch.setattr(scoring, "WHOLE_WEIGHTS", 2 * space.dimension - 1)
    assert not faster(Perturbed(space, Noise()), asked(trained), candidates(2, [0.1], seed=0))
    assert not tried
