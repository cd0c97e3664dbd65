"""The loop: what a step is, what is counted, what is refused, and that every schedule reaches a
minimum that tasks share.
"""

import sys
from collections.abc import Callable, Iterator
from itertools import repeat

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loclin.errors import LoclinError
from loclin.geometry.subspace import Subspace
from loclin.parameters import ParameterSpace
from loclin.schedules.loop import (
    StepGradients,
    check_installed,
    mean_cosine,
    mixed,
    train_tasks,
    weighing,
)
from loclin.schedules.names import EVERY, LIBRARY, SUMMED
from loclin.tasks.batch import Batch

Quadratic = tuple[Tensor, Tensor]  # H and the minimum θ*: loss ½ (θ−θ*)ᵀ H (θ−θ*)


class Point(nn.Module):
    def __init__(self, at: Tensor) -> None:
        super().__init__()
        self.at = nn.Parameter(at.clone())

    def loss(self, task: Quadratic) -> tuple[Tensor, int]:
        away = self.at - task[1]
        return away @ task[0] @ away / 2, 1


class Sum(nn.Module):
    """Two points whose gradients autograd hands out as one tensor, and for one task as a view of a
    single number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.zeros(3)) for _ in range(2))

    def loss(self, weights: Tensor) -> tuple[Tensor, int]:
        both = self.first + self.second
        return (both.sum() if weights.ndim == 0 else (both * weights).sum()), 2


def test_gradients_that_share_memory_are_taken_apart() -> None:
    model = Sum()
    space = ParameterSpace(model)
    streams = {"a": repeat(torch.tensor([1.0, 2.0, 3.0])), "b": repeat(torch.tensor(1.0))}
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    log = train_tasks(space, streams, model.loss, optimiser, [("a", "b")] * 2)
    step = -(torch.tensor([1.0, 2.0, 3.0]) + 1) / 2  # both are means over two items
    torch.testing.assert_close(space.read(), 2 * torch.cat([step, step]))
    assert log.cosines[0] == pytest.approx(6 / np.sqrt(14 * 3))


def curved(width: int, *, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=g, dtype=torch.float64))
    return turn @ torch.diag(torch.linspace(0.5, 2.0, width, dtype=torch.float64)) @ turn.T


@pytest.fixture
def start() -> Tensor:
    return torch.tensor([3.0, -1.0, 2.0, 0.5], dtype=torch.float64)


@pytest.fixture
def tasks() -> dict[str, Quadratic]:
    shared = torch.tensor([1.0, 1.0, -1.0, 0.0], dtype=torch.float64)
    return {name: (curved(4, seed=seed), shared) for seed, name in enumerate(("a", "b", "c"))}


def descent(
    point: Point,
    tasks: dict[str, Quadratic],
    plan: list[tuple[str, ...]],
    lr: float = 0.1,
    **how: object,
) -> ParameterSpace:
    space = ParameterSpace(point)
    streams = {name: repeat(task) for name, task in tasks.items()}
    optimiser = torch.optim.SGD(space.parameters, lr=lr)
    train_tasks(space, streams, point.loss, optimiser, plan, **how)  # type: ignore[arg-type]
    return space


def solved(point: Point, start: Tensor, tasks: dict[str, Quadratic]) -> bool:
    """Whether every loss is a thousandth of what it was, or less."""
    return all(
        point.loss(task)[0].detach() < 1e-3 * Point(start).loss(task)[0].detach()
        for task in tasks.values()
    )


@pytest.mark.parametrize("name", [*SUMMED, *LIBRARY])
def test_every_sum_reaches_a_minimum_that_tasks_share(
    name: str, start: Tensor, tasks: dict[str, Quadratic]
) -> None:
    point = Point(start)
    descent(point, tasks, [tuple(tasks)] * 150, weigh=weighing(name, 3))
    assert solved(point, start, tasks)


@pytest.mark.parametrize(
    "plan",
    [[("a",), ("b",), ("c",)] * 60, [("a",)] * 80 + [("b",)] * 80 + [("c",)] * 80],
    ids=["alternating", "sequential"],
)
def test_so_does_every_order(
    plan: list[tuple[str, ...]], start: Tensor, tasks: dict[str, Quadratic]
) -> None:
    point = Point(start)
    descent(point, tasks, plan)
    assert solved(point, start, tasks)


def test_a_step_goes_along_the_weighted_sum(start: Tensor, tasks: dict[str, Quadratic]) -> None:
    point = Point(start)
    each = torch.stack([h @ (start - low) for h, low in tasks.values()])
    weights = torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64)
    descent(point, tasks, [tuple(tasks)], weigh=lambda step: weights.numpy())
    assert torch.allclose(point.at, start - 0.1 * weights @ each)
    point = Point(start)
    descent(point, tasks, [tuple(tasks)], penalty=lambda: torch.ones(4, dtype=torch.float64))
    assert torch.allclose(point.at, start - 0.1 * (each.sum(0) + 1))


def test_what_weighs_is_given_what_is_there(start: Tensor, tasks: dict[str, Quadratic]) -> None:
    point, steps = Point(start), list[StepGradients]()

    def watch(step: StepGradients) -> np.ndarray:
        steps.append(step)
        return np.ones(2)

    descent(point, {n: tasks[n] for n in "ab"}, [("a", "b")] * 2, weigh=watch)
    g = torch.stack([tasks[n][0] @ (start - tasks[n][1]) for n in "ab"])
    first, second = steps
    assert np.allclose(first.gramian, (g @ g.T).numpy())
    assert first.losses == pytest.approx(
        [float(Point(start).loss(tasks[n])[0].detach()) for n in "ab"]
    )
    assert first.losses == pytest.approx(first.first)
    assert second.first == pytest.approx(first.losses)
    assert (second.losses < first.losses).all()
    assert first.seed != second.seed


def test_updates_are_kept_out_of_a_subspace(start: Tensor, tasks: dict[str, Quadratic]) -> None:
    point, kept = Point(start), Subspace.spanned_by(torch.eye(4, dtype=torch.float64)[:2])
    descent(point, tasks, [("a",)] * 5, away_from=kept)
    moved = point.at.detach() - start
    assert torch.allclose(moved[:2], torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert moved[2:].abs().min() > 0.01


def test_gradients_are_counted_as_they_are_taken(
    start: Tensor, tasks: dict[str, Quadratic]
) -> None:
    point, calls = Point(start), []

    def counted(task: Quadratic) -> tuple[Tensor, int]:
        calls.append(1)
        return point.loss(task)

    space = ParameterSpace(point)
    plan = [("a", "b"), ("c",), ("a", "b", "c")]
    seen: list[int] = []
    log = train_tasks(
        space,
        {n: repeat(t) for n, t in tasks.items()},
        counted,
        torch.optim.SGD(space.parameters, lr=0.1),
        plan,
        after_step=seen.append,
    )
    assert log.evaluations == len(calls) == 6
    assert len(log.losses) == 3
    assert seen == [1, 2, 3]
    assert np.isnan(log.cosines).tolist() == [False, True, False]
    assert point.at.grad is None


def refuses(
    loss: Callable[[Point, Quadratic], Tensor],
    text: str,
    start: Tensor,
    tasks: dict[str, Quadratic],
) -> None:
    point = Point(start)
    space, streams = ParameterSpace(point), {n: repeat(t) for n, t in tasks.items()}
    optimiser = torch.optim.SGD(space.parameters, lr=0.1)
    with pytest.raises(LoclinError, match=text):
        train_tasks(
            space, streams, lambda task: (loss(point, task), 1), optimiser, [("a",), ("b", "c")]
        )


def test_what_is_not_finite_names_task_and_step(start: Tensor, tasks: dict[str, Quadratic]) -> None:
    bad = tasks["c"]
    refuses(
        lambda p, t: p.loss(t)[0] * (float("nan") if t is bad else 1.0),
        r"expected a finite loss, found nan on c at step 2 of 2",
        start,
        tasks,
    )
    refuses(
        lambda p, t: p.loss(t)[0] + (torch.sqrt(p.at - p.at.detach()).sum() if t is bad else 0.0),
        r"expected a finite gradient, found .* that of c at step 2 of 2",
        start,
        tasks,
    )
    refuses(
        lambda p, t: p.loss(t)[0] * (0.0 if t is bad else 1.0),
        r"expected a gradient that is not zero, found zeros for c at step 2 of 2: .*--space",
        start,
        tasks,
    )


def test_weights_that_are_not_finite_are_refused(
    start: Tensor, tasks: dict[str, Quadratic]
) -> None:
    with pytest.raises(
        LoclinError, match="expected finite weights of the gradients at step 1 of 1"
    ):
        descent(Point(start), tasks, [("a", "b")], weigh=lambda step: np.array([np.nan, 1.0]))


def test_mean_cosine_is_over_pairs() -> None:
    g = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    assert mean_cosine(g @ g.T) == pytest.approx((0 + 2 / np.sqrt(2)) / 3)
    assert np.isnan(mean_cosine(np.eye(1)))


def test_mixed_batches_hold_one_of_each_stream() -> None:
    def batches(length: int, token: int) -> Iterator[Batch]:
        ids = torch.full((2, length), token)
        return repeat(Batch(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids))

    found = next(mixed([batches(3, 5), batches(4, 6)]))
    assert found.input_ids.tolist() == [[5, 5, 5, 0]] * 2 + [[6, 6, 6, 6]] * 2
    assert found.attention_mask.sum(1).tolist() == [3, 3, 4, 4]


def test_packages_are_looked_for_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_installed(EVERY)
    monkeypatch.setitem(sys.modules, "torchjd", None)  # an import of it fails
    check_installed([name for name in EVERY if name not in LIBRARY])
    with pytest.raises(LoclinError, match="expected the packages behind the schedule UPGrad"):
        check_installed(["raw sum", "UPGrad"])
