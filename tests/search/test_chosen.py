"""What is selected, by hand: ranks, pools over σ, what validate prefers; and what a candidate
answers.
"""

import math

import numpy as np
import pytest
import torch

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.models.exam import Exam
from loclin.parameters import ParameterSpace
from loclin.search.candidate import Candidate, Perturbed
from loclin.search.chosen import Asked, asked, choose, pools, ranking
from loclin.search.noise import Noise
from loclin.search.scoring import Outcome, score
from loclin.tasks.example import Example

EXAMPLES = [Example(prompt=f"{i} =", answer="yes") for i in range(4)]


def outcome(index: int, right: int, loss: float = 1.0, sigma: float = 0.1) -> Outcome:
    candidate = Candidate(index=index, seed=index, sigma=sigma)
    return Outcome(candidate=candidate, loss=loss, right=np.arange(4) < right)


def said(*words: str, loss: float = 1.0) -> Asked:
    return Asked(loss=loss, answers=words, right=np.array([w == "yes" for w in words]))


def test_candidates_rank_by_score_then_loss_then_index_and_never_without_a_finite_loss() -> None:
    found = [
        outcome(0, 2),
        outcome(1, 3, 2.0),
        outcome(2, 3, 1.5),
        outcome(3, 4, math.nan),
        outcome(4, 4, math.inf),
        outcome(5, 2),
    ]
    assert [o.candidate.index for o in ranking(found)] == [2, 1, 0, 5]
    with pytest.raises(
        LoclinError,
        match=r"a candidate with a finite loss, found none among 2: choose a smaller --sigma",
    ):
        ranking(found[3:5])


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
        0: said("no", "no", "no", "no"),
        1: said("yes", "yes", "yes", "no"),
        2: said("no", "yes", "yes", "yes"),
        3: said("yes", "no", "yes", "yes", loss=0.5),
        4: said("yes", "yes", "no", "no"),
        5: said("no", "no", "no", "no"),
    }
    found = {None: candidates[:4], 0.1: candidates[1:4], 0.2: candidates[4:]}
    every = [outcome(c.index, 2, sigma=c.sigma) for c in candidates]
    chosen = choose(found, validated, EXAMPLES, [1, 3], every=every, seed=0)
    assert chosen.best.index == 3  # three candidates are right three times; it has the lowest loss
    assert chosen.single_score == 0.75
    assert [c.index for c in chosen.members] == [1, 2, 3]
    assert (chosen.sigma, chosen.k, chosen.ensemble_score) == (0.1, 3, 1.0)
    assert len(chosen.strangers) == 3
    assert {c.sigma for c in chosen.strangers} == {0.1}
    again = choose(found, validated, EXAMPLES, [3, 1], every=every, seed=0)
    assert again == chosen
    others = {
        choose(found, validated, EXAMPLES, [1, 3], every=every, seed=s).strangers for s in range(8)
    }
    assert len(others) > 1


def test_of_equal_ensembles_the_smaller_and_then_the_one_over_every_sigma_is_chosen() -> None:
    candidates = [Candidate(index=i, seed=i, sigma=0.1) for i in range(3)]
    validated = {i: said("yes", "yes", "yes", "no") for i in range(3)}
    every = [outcome(i, 2) for i in range(3)]
    chosen = choose(
        {None: candidates, 0.1: candidates}, validated, EXAMPLES, [1, 3], every=every, seed=0
    )
    assert (chosen.k, chosen.sigma) == (1, None)
    assert [c.index for c in chosen.candidates if c not in chosen.strangers] in ([0], [])
    one = choose(
        {None: candidates},
        {**validated, 0: said("", "", "", "", loss=math.nan)},
        EXAMPLES,
        [9],
        every=every,
        seed=0,
    )
    assert one.k == 3  # fewer than nine there are
    assert one.best.index == 1


@pytest.mark.parametrize("kind", ["trained", "speaking"])
def test_what_a_candidate_answers_is_what_it_scores_and_the_model_is_back(
    kind: str, request: pytest.FixtureRequest
) -> None:
    problem: Problem = request.getfixturevalue(kind)
    examples = next(iter(problem.examples["test"].values()))[:12]
    perturbed, exam = Perturbed(ParameterSpace(problem.model), Noise()), Exam.of(problem, examples)
    before = perturbed.space.read()
    candidate = Candidate(index=0, seed=3, sigma=0.05)
    (expected,) = score(perturbed, exam, [candidate], batched=False)
    found = asked(perturbed, exam, examples, candidate)
    assert found.loss == pytest.approx(expected.loss)
    assert found.right.tolist() == expected.right.tolist()
    assert torch.equal(perturbed.space.read(), before)
    own = asked(perturbed, exam, examples, None)
    assert own.loss < found.loss
    assert own.score >= found.score
