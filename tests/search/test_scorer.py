"""Real small models; running out of memory is planted, since no test may fill a machine's."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.models.evaluation import EvalSet
from loclin.parameters import ParameterSpace
from loclin.search import scorer as module
from loclin.search.candidate import Candidate, Perturbed, candidates
from loclin.search.noise import Noise
from loclin.search.scorer import Scorer, check_same
from loclin.search.scoring import Outcome, score
from tests.search.test_spec import examples, same

GROUP = candidates(4, [0.02], seed=0)


@pytest.fixture
def scorer(trained: Problem) -> Scorer:
    """Of a copy: a test may leave it anywhere."""
    problem = replace(trained, model=copy.deepcopy(trained.model))
    return Scorer(problem, ParameterSpace(problem.model), examples(trained, "recovery", 6))


def test_it_scores_as_the_model_and_its_eval_set_do(trained: Problem, scorer: Scorer) -> None:
    found = scorer.do(GROUP)
    eval_set = EvalSet.of(trained, scorer.examples)
    with Perturbed(ParameterSpace(trained.model), Noise()) as perturbed:
        assert same(found, score(perturbed, eval_set, GROUP))
    assert len({o.loss for o in found}) == 4
    assert same(scorer.do(GROUP[2:]), found[2:])
    assert scorer.notes == []
    scorer.perturbed.verify()
    sums, counts = eval_set.tallies()
    assert scorer.own == pytest.approx(tuple(sums / counts))


class Small:
    """Scoring on a device with room for so many examples in a pass."""

    def __init__(self, room: int) -> None:
        self.room, self.calls = room, 0

    def __call__(
        self, perturbed: Perturbed, eval_set: EvalSet, drawn: Sequence[Candidate]
    ) -> list[Outcome]:
        self.calls += 1
        if len(eval_set.batch) > self.room:
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return score(perturbed, eval_set, drawn)


@pytest.mark.parametrize("room", [20, 7, 1])
def test_out_of_memory_takes_smaller_batches_and_says_so_once(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    wanted = scorer.do(GROUP)
    small = Small(room)
    monkeypatch.setattr(module, "score", small)
    found = scorer.do(GROUP)
    assert [o.loss for o in found] == pytest.approx([o.loss for o in wanted], rel=1e-5)
    assert all(np.array_equal(a.right, b.right) for a, b in zip(found, wanted, strict=True))
    assert [o.candidate for o in found] == GROUP
    assert len(scorer.notes) == 1
    assert "out of memory on cpu: from here on" in scorer.notes[0]
    tried = small.calls
    scorer.do(GROUP)
    assert len(scorer.notes) == 1
    assert small.calls - tried <= tried  # it stays with what fits


def test_no_room_for_a_single_example_is_an_error(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "score", Small(0))
    text = r"expected room for one candidate and one example on cpu, found too little \(tried"
    with pytest.raises(LoclinError, match=text):
        scorer.do(GROUP)


def test_a_candidate_that_gives_nothing_finite_is_an_outcome(scorer: Scorer) -> None:
    wild = replace(GROUP[0], sigma=1e30)
    found = scorer.do([wild, GROUP[1]])
    assert math.isnan(found[0].loss)
    assert not found[0].right.any()
    assert same(found[1:], scorer.do(GROUP[1:2]))


def test_a_model_that_does_not_come_back_is_noticed(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer.perturbed, "restore", lambda: None)
    with pytest.raises(LoclinError, match="at its base, found other bytes"):
        scorer.do(GROUP)


def test_what_was_set_aside_scores_as_before(scorer: Scorer) -> None:
    """On the CPU nothing moves; the way there and back is the same for every device."""
    before = scorer.do(GROUP)
    scorer._move(torch.device("cpu"))
    with scorer.aside():
        pass
    scorer.perturbed.verify()
    assert same(scorer.do(GROUP), before)


def test_a_fingerprint_of_another_search_is_refused_by_what_differs_first(scorer: Scorer) -> None:
    own = scorer.fingerprint
    check_same(own, dict(own), "give another")
    other = {**own, "noise": "tied", "device": "cuda"}
    with pytest.raises(
        LoclinError, match=r"\(noise is 'gaussian' in the record, 'tied' here\): do"
    ):
        check_same(own, other, "do")
    with pytest.raises(LoclinError, match="device is 'cpu'"):
        check_same(own, other, "do", but=("noise",))
