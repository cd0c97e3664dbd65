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
from loclin.geometry.gramian import cosines, summed_gramian
from loclin.geometry.subspace import Subspace
from loclin.parameters import ParameterSpace, SummedLoss, some_items, summed
from loclin.schedules.library import library_weights
from loclin.schedules.names import LIBRARY
from loclin.schedules.weights import (
    Products,
    Weights,
    equal_decrease,
    loss_balanced,
    norm_balanced,
    pcgrad,
    raw_sum,
)
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
        "raw sum": lambda step: raw_sum(step.gramian),
        "norm-balanced": lambda step: norm_balanced(step.gramian),
        "PCGrad": lambda step: pcgrad(step.gramian, seed=step.seed),
        "equal decrease": lambda step: equal_decrease(step.gramian),
        "loss-balanced": lambda step: loss_balanced(step.losses, step.first),
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
    means, turned = np.empty(len(plan)), np.full(len(plan), np.nan)
    for t, names in enumerate(plan, start=1):
        where = f"step {t} of {len(plan)}"
        each = [_summed(space, loss, next(streams[n]), f"{n} at {where}") for n in names]
        sums, counts, pieces = zip(*each, strict=True)
        losses = np.array(sums) / np.array(counts)
        products = _checked(summed_gramian(_means(pieces, counts)), names, where)
        first = losses if len(first) != len(losses) else first
        means[t - 1], turned[t - 1] = losses.mean(), mean_cosine(products)
        now = StepGradients(products, losses, first, derived(seed, "step", t))
        gradient = _combined(pieces, weigh(now) if weigh else np.ones(len(names)), where)
        del each, pieces  # the sum alone stays while the optimiser steps
        if penalty is not None:
            for g, more in zip(gradient, space.by_tensor(penalty()).values(), strict=True):
                g.add_(more.to(g.device))
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


def _summed(
    space: ParameterSpace, loss: SummedLoss[T], batch: T, where: str
) -> tuple[float, int, list[Tensor]]:
    """The summed loss of a batch, its items, and the gradient in memory of its own, by tensor."""
    total, count = summed(loss(batch))
    value = float(total.detach())
    some_items(count)
    if not np.isfinite(value):
        raise LoclinError(
            f"expected a finite loss, found {value / count} on {where}: lower the learning rate"
        )
    pieces, taken = list[Tensor](), set[int]()
    own = torch.autograd.grad(total, space.parameters, allow_unused=True)
    for g, parameter in zip(own, space.parameters, strict=True):
        if g is None:
            g = torch.zeros_like(parameter)
        elif not g.is_contiguous() or g.data_ptr() in taken:  # autograd may hand out views
            g = g.clone(memory_format=torch.contiguous_format)
        taken.add(g.data_ptr())
        pieces.append(g)
    return value, count, pieces


def _means(pieces: Sequence[Sequence[Tensor]], counts: Sequence[int]) -> Iterator[list[Tensor]]:
    """One tensor after the other, the gradients of mean losses, written in place of the sums': what
    reads them next has them in the cache.
    """
    for own in zip(*pieces, strict=True):
        yield [g.div_(count) for g, count in zip(own, counts, strict=True)]


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


def _combined(pieces: Sequence[Sequence[Tensor]], weights: Weights, where: str) -> Sequence[Tensor]:
    """Σ w_i g_i, in the first gradient's place."""
    if not np.isfinite(weights).all():
        raise LoclinError(
            f"expected finite weights of the gradients at {where}, found {weights.tolist()}: "
            "choose another schedule"
        )
    for total, *others in zip(*pieces, strict=True):
        if weights[0] != 1:
            total.mul_(weights[0])
        for other, weight in zip(others, weights[1:], strict=True):
            total.add_(other, alpha=float(weight))
    return pieces[0]


@torch.no_grad()
def _step(
    space: ParameterSpace,
    optimiser: torch.optim.Optimizer,
    gradient: Sequence[Tensor],
    away_from: Subspace | None,
) -> None:
    for parameter, piece in zip(space.parameters, gradient, strict=True):
        parameter.grad = piece
    before = None if away_from is None else space.read()
    optimiser.step()
    if away_from is not None and before is not None:
        move = space.read() - before
        space.write(before + move - away_from.project(move))
