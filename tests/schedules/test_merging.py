"""Merged specialists against worked examples, and the barrier between two points of a loss."""

from typing import Any

import numpy as np
import pytest
import torch

from loclin.models import Problem
from loclin.schedules.merging import arithmetic, barrier, merge_by, soup, ties
from tests.schedules.compared import TASKS, comparison


def test_a_soup_of_two_is_their_midpoint_and_arithmetic_at_one_is_the_sum() -> None:
    start, first, second = (
        torch.tensor([1.0, 0.0]),
        torch.tensor([2.0, 0.0]),
        torch.tensor([1.0, 4.0]),
    )
    assert torch.equal(soup(start, [first, second]), torch.tensor([1.5, 2.0]))
    assert torch.equal(arithmetic(start, [first, second], 1.0), torch.tensor([2.0, 4.0]))


def test_ties_trims_elects_and_averages_those_that_agree() -> None:
    start = torch.ones(10)
    one, two = torch.zeros(10), torch.zeros(10)
    one[:4] = torch.tensor([5.0, -4.0, 0.1, 0.1])  # a fifth of ten: the two largest stay
    two[:4] = torch.tensor([3.0, 6.0, 0.2, 0.2])
    merged = ties(start, [start + one, start + two], 0.5)
    moved = torch.zeros(10)
    moved[0], moved[1] = (
        (5 + 3) / 2,
        6.0,
    )  # both agree; −4 + 6 > 0, so the sign is + and −4 takes no part
    assert torch.allclose(merged, start + 0.5 * moved)


@pytest.mark.parametrize(("height", "expected"), [(2.0, 2.0), (-1.0, 0.0)])
def test_the_barrier_is_what_rises_above_the_chord(height: float, expected: float) -> None:
    shares = np.linspace(0, 1, 5)
    losses = 1 + 3 * shares + height * (shares == 0.5)
    assert barrier(losses, list(shares)) == pytest.approx(expected)


def test_the_scale_of_merged_specialists_is_chosen_on_validation_examples(trained: Problem) -> None:
    made, found = comparison(trained, lr=1e-2), {}
    ends = [made.specialist(task).end for task in TASKS]
    for better in (0.5, 1.0):

        def scores(point: Any, eval_sets: Any, better: float = better) -> np.ndarray:
            if eval_sets is not made.choice_sets:
                return np.full((2, 2), 0.5)
            near = torch.equal(point, arithmetic(made.start, ends, better))
            return np.full((2, 2), 1.0 if near else 0.2)

        object.__setattr__(made, "evaluate_at", scores)
        _, choice = merge_by(made, "task arithmetic")
        assert choice is not None
        found[better] = choice.strength
    assert found == {0.5: 0.5, 1.0: 1.0}


def test_the_average_is_that_of_the_specialists(trained: Problem) -> None:
    made = comparison(trained)
    point, choice = merge_by(made, "average")
    ends = torch.stack([made.specialist(task).end for task in TASKS])
    assert choice is None
    assert torch.allclose(point, ends.mean(0), atol=1e-6)
