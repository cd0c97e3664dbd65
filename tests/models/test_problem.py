"""A model with what it is asked: what is refused, and how values show themselves in a notebook."""

import pytest
import torch

import loclin
from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.search.random_search import SearchResult


@pytest.mark.parametrize(
    ("split", "task", "message"),
    [
        ("tests", "copy", "expected a split among train, .*, found 'tests': name one"),
        ("test", "sing", "expected a task among copy, .*, found 'sing': name one"),
    ],
)
def test_a_split_or_task_that_is_not_there_is_named(
    trained: Problem, split: str, task: str, message: str
) -> None:
    for ask in (trained.batch, trained.score):
        with pytest.raises(LoclinError, match=message):
            ask(split, task)


def test_values_show_themselves_in_a_line(trained: Problem) -> None:
    space = loclin.ParameterSpace(trained.model)
    updates = torch.eye(space.dimension)[:3]
    run = loclin.Trajectory(
        start=space.read(), updates=updates, head=updates, losses=torch.tensor([2.0, 1.5, 1.0])
    )
    loss, batch = lambda b: loclin.answer_loss(trained.model, b), trained.batch("test", "copy")
    some = loclin.EvalSet.of(trained, trained.examples["test"]["copy"], folds=2)
    window = loclin.linear_window(space, loss, [batch], -0.001 * space.read(), steps=[0.0, 1e-3])
    for value, words in (
        (trained, "copy, reverse"),
        (space, f"D = {space.dimension} in 28 tensors"),
        (run, "3 updates, loss 2 to 1"),
        (some, "60 examples in 2 folds"),
        (window, "forward"),
        (loclin.random_subspace(2, 5, seed=0), "2 of 5 dimensions"),
        (SearchResult(loss=1.0, score=0.5, outcomes=()), "0 candidates, own score 0.5"),
        (loclin.Estimate(value=0.5, low=0.4, high=0.6, n=3), "low=0.4"),
        (loclin.CurvatureOperator(space, loss, [batch]), "double backward"),
    ):
        shown = repr(value)
        assert words in shown
        assert shown.startswith(type(value).__name__)
        assert len(shown) < 300
        assert "\n" not in shown
