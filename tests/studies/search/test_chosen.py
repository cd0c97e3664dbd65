"""What is selected, by hand: ranks, pools over σ, what validate prefers; and what a candidate
answers.
"""

import math

import numpy as np
import pytest

from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.search.candidate import Candidate
from loclin.search.scorer import Scorer
from loclin.search.scoring import Outcome
from loclin.studies.search.chosen import AnswerBatch, answer_batches, choose, pools
from loclin.tasks.example import Example

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
    assert (chosen.sigma, chosen.k, chosen.ensemble_score) == (0.1, 3, 1.0)
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
    assert (chosen.k, chosen.sigma) == (1, None)
    assert [c.index for c in chosen.candidates if c not in chosen.random_controls] in ([0], [])
    one = choose(
        {None: candidates},
        {**validated, 0: answered("", "", "", "", loss=math.nan)},
        EXAMPLES,
        [9],
        outcomes=every,
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
