"""One loop for every schedule: which tasks a step differentiates, how their gradients make one,
what is counted (measures §12).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.gramian import cosines, gramian
from loclin.geometry.subspace import Subspace
from loclin.parameters import ParameterSpace, SummedLoss, summed
from loclin.schedules import weights as closed_forms
from loclin.schedules.library import library_weights
from loclin.schedules.names import LIBRARY
from loclin.schedules.weights import Products, Weights
from loclin.seeds import derived
from loclin.tasks.batch import Batch, concatenate

T = TypeVar("T")


class StepGradients(NamedTuple):
    """What a step knows of the tasks that it differentiates."""

    gramian: Products  # of their gradients
    losses: Weights  # mean loss of each batch
    first: Weights  # the same at the first step
    seed: int  # of what this step draws


#: From a step's gradients to their weights.
Weighing = Callable[[StepGradients], Weights]


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingLog:
    """How a training went.

    Attributes:
        evaluations: gradients of one batch that were taken.
        losses: of every step, mean over its tasks.
        cosines: mean over the pairs of a step's gradients, NaN where there is one.
        seconds: of the steps alone, without `after_step`.
    """

    evaluations: int
    losses: Float[np.ndarray, " T"]
    cosines: Float[np.ndarray, " T"]
    seconds: float


def weighing(name: str, tasks: int) -> Weighing:
    """The weights of a schedule of `names.SUMMED` or `names.LIBRARY` for K tasks.

    Raises:
        LoclinError: an unknown name, or a package that is not installed.
    """
    own: dict[str, Weighing] = {
        "raw sum": lambda step: closed_forms.raw_sum(step.gramian),
        "norm-balanced": lambda step: closed_forms.norm_balanced(step.gramian),
        "PCGrad": lambda step: closed_forms.pcgrad(step.gramian, seed=step.seed),
        "equal decrease": lambda step: closed_forms.equal_decrease(step.gramian),
        "loss-balanced": lambda step: closed_forms.loss_balanced(step.losses, step.first),
    }
    if name in own:
        return own[name]
    weigh = library_weights(name, tasks)
    return lambda step: weigh(step.gramian)


def check_installed(names: Sequence[str]) -> None:
    """Whether the packages behind schedules are there; raises as `weighing` does."""
    for name in names:
        if name in LIBRARY:
            library_weights(name, 2)


def train_tasks(
    space: ParameterSpace,
    streams: Mapping[str, Iterator[T]],
    loss: SummedLoss[T],
    optimiser: torch.optim.Optimizer,
    plan: Sequence[Sequence[str]],
    *,
    weigh: Weighing | None = None,
    penalty: Callable[[], Tensor] | None = None,
    away_from: Subspace | None = None,
    seed: int = 0,
    after_step: Callable[[int], None] | None = None,
) -> TrainingLog:
    """Train in place: step t differentiates the tasks of plan[t−1] and goes along Σ w_i g_i.

    Args:
        space, optimiser: the trained coordinates, and what holds the same tensors.
        streams: by task, its batches, one for every gradient.
        loss: summed loss of a batch, and how many items those are.
        plan: for every step, names of streams.
        weigh: gives w; 1 each by default.
        penalty: a further gradient at the current point, added as it is.
        away_from: every update gives up what lies in this subspace: u ← u − Pu.
        seed: of what schedules draw.
        after_step: called with t = 1..T after each step.

    Raises:
        LoclinError: a loss or gradient that is not finite, or a gradient of zeros; task and step
            are named. Weights that are not finite.
    """
    began, elsewhere, first = time.perf_counter(), 0.0, np.empty(0)
    # every step's gradients, then their sum
    room = space.read().repeat(max(map(len, plan), default=1), 1)
    means, turned = np.empty(len(plan)), np.full(len(plan), np.nan)
    for t, names in enumerate(plan, start=1):
        where, rows = f"step {t} of {len(plan)}", room[: len(names)]
        losses = _gradients(space, streams, loss, names, rows, where)
        products = _checked(gramian(rows), names, where)
        first = losses if len(first) != len(losses) else first
        means[t - 1], turned[t - 1] = losses.mean(), mean_cosine(products)
        now = StepGradients(products, losses, first, derived(seed, "step", t))
        gradient = _combined(rows, weigh(now) if weigh else np.ones(len(names)), where)
        if penalty is not None:
            gradient.add_(penalty())
        _step(space, optimiser, gradient, away_from)
        if after_step:
            paused = time.perf_counter()
            after_step(t)
            elsewhere += time.perf_counter() - paused
    optimiser.zero_grad()
    seconds, count = time.perf_counter() - began - elsewhere, sum(map(len, plan))
    return TrainingLog(evaluations=count, losses=means, cosines=turned, seconds=seconds)


def mean_cosine(products: Products) -> float:
    """Mean cosine over the pairs of K vectors from their Gramian; NaN for one vector."""
    pairs = np.triu_indices(len(products), 1)
    return float(cosines(products)[pairs].mean()) if len(products) > 1 else float("nan")


def mixed(streams: Sequence[Iterator[Batch]]) -> Iterator[Batch]:
    """Batches that hold one batch of every stream."""
    while True:
        yield concatenate([next(stream) for stream in streams])


def _gradients(
    space: ParameterSpace,
    streams: Mapping[str, Iterator[T]],
    loss: SummedLoss[T],
    names: Sequence[str],
    rows: Float[Tensor, "K D"],
    where: str,
) -> Weights:
    """Write the gradient of each task's next batch into a row; the mean losses."""
    losses: list[float] = []

    def checked(batch: T) -> tuple[Tensor, int]:
        total, count = summed(loss(batch))
        losses.append(float(total.detach()) / max(count, 1))
        if not np.isfinite(losses[-1]):
            raise LoclinError(
                f"expected a finite loss, found {losses[-1]} on {names[len(losses) - 1]} at "
                f"{where}: lower the learning rate"
            )
        return total, count

    for row, name in zip(rows, names, strict=True):
        space.gradient(checked, [next(streams[name])], into=row)
    return np.array(losses)


def _checked(products: Products, names: Sequence[str], where: str) -> Products:
    for name, length in zip(names, np.diag(products), strict=True):
        if not np.isfinite(length):
            raise LoclinError(
                f"expected a finite gradient, found {length} as the squared length of that of "
                f"{name} at {where}: lower the learning rate, or train in float32"
            )
        if length == 0:
            raise LoclinError(
                f"expected a gradient that is not zero, found zeros for {name} at {where}: nothing "
                "that is trained takes part in it; change --space or leave the task out"
            )
    return products


def _combined(rows: Float[Tensor, "K D"], weights: Weights, where: str) -> Float[Tensor, " D"]:
    """Σ w_i g_i, in the first row's place."""
    if not np.isfinite(weights).all():
        raise LoclinError(
            f"expected finite weights of the gradients at {where}, found {weights.tolist()}: "
            "choose another schedule"
        )
    total = rows[0].mul_(weights[0])
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        total.add_(row, alpha=float(weight))
    return total


@torch.no_grad()
def _step(
    space: ParameterSpace,
    optimiser: torch.optim.Optimizer,
    gradient: Tensor,
    away_from: Subspace | None,
) -> None:
    for parameter, piece in zip(space.parameters, space.by_tensor(gradient).values(), strict=True):
        parameter.grad = piece.to(parameter.device)
    before = None if away_from is None else space.read()
    optimiser.step()
    if away_from is not None and before is not None:
        move = space.read() - before
        space.write(before + move - away_from.project(move))
