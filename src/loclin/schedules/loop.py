"""One loop for every schedule: which tasks a step differentiates, how their gradients make one,
what is counted (measures §12).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.gramian import gramian
from loclin.geometry.subspace import Subspace
from loclin.parameters import ParameterSpace, SummedLoss
from loclin.schedules.library import library_weights
from loclin.schedules.terms import LIBRARY
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


@dataclass(frozen=True, eq=False, kw_only=True)
class Moment:
    """What a step knows of the tasks that it differentiates.

    Attributes:
        gramian: products of their gradients.
        losses: mean loss of each batch.
        first: the same at the first step.
        seed: of what this step draws.
    """

    gramian: Products
    losses: Weights
    first: Weights
    seed: int


#: From a step's moment to the weights of its gradients.
Weigh = Callable[[Moment], Weights]


@dataclass(frozen=True, eq=False, kw_only=True)
class Course:
    """How a training went.

    Attributes:
        steps: optimiser steps.
        evaluations: gradients of one batch that were taken.
        losses: of every step, mean over its tasks.
        cosines: mean cosine between the gradients of a step's tasks, NaN where it differentiated
            one.
        seconds: of the steps alone, without what `after_step` did.
    """

    steps: int
    evaluations: int
    losses: Float[np.ndarray, " T"]
    cosines: Float[np.ndarray, " T"]
    seconds: float


def weighing(name: str, tasks: int) -> Weigh:
    """The weights of a simultaneous schedule by its name.

    Args:
        name: "raw sum", "norm-balanced", "PCGrad", "equal decrease", "loss-balanced", or one of
            torchjd's (`library_weights`).
        tasks: K.

    Raises:
        LoclinError: an unknown name, or a package that is not installed.
    """
    own: dict[str, Weigh] = {
        "raw sum": lambda m: raw_sum(m.gramian),
        "norm-balanced": lambda m: norm_balanced(m.gramian),
        "PCGrad": lambda m: pcgrad(m.gramian, seed=m.seed),
        "equal decrease": lambda m: equal_decrease(m.gramian),
        "loss-balanced": lambda m: loss_balanced(m.losses, m.first),
    }
    if name in own:
        return own[name]
    weigh = library_weights(name, tasks)
    return lambda m: weigh(m.gramian)


def check_installed(names: Sequence[str]) -> None:
    """Whether the packages behind some schedules are there, before hours are spent on the others.

    Raises:
        LoclinError: one is not.
    """
    for name in names:
        if name in LIBRARY:
            weighing(name, 2)


def train_tasks(
    space: ParameterSpace,
    streams: Mapping[str, Iterator[T]],
    loss: SummedLoss[T],
    optimiser: torch.optim.Optimizer,
    plan: Sequence[Sequence[str]],
    *,
    weigh: Weigh | None = None,
    extra: Callable[[], Tensor] | None = None,
    away_from: Subspace | None = None,
    seed: int = 0,
    after_step: Callable[[int], None] | None = None,
) -> Course:
    """Train in place: step t differentiates the tasks of plan[t−1] and goes along Σ w_i g_i.

    Args:
        space: the trained coordinates, the same that the optimiser holds.
        streams: by task, its batches, one for every gradient.
        loss: summed loss of a batch, and how many items those are.
        optimiser: holds the space's tensors.
        plan: for every step, names of streams.
        weigh: from a step's moment to the weights w; 1 each by default.
        extra: a further gradient at the current point, added as it is (a penalty's).
        away_from: every update gives up what lies in this subspace: u ← u − Pu.
        seed: of what schedules draw.
        after_step: called with t = 1..T after each step.

    Raises:
        LoclinError: a loss or gradient that is not finite, or a gradient of zeros; task and step
            are named. Weights that are not finite.
    """
    began, elsewhere, evaluations, first = time.perf_counter(), 0.0, 0, np.empty(0)
    room = space.read().repeat(
        max(map(len, plan), default=1), 1
    )  # every step's gradients, then their sum
    means, cosines = np.empty(len(plan)), np.full(len(plan), np.nan)
    for t, names in enumerate(plan, start=1):
        rows = room[: len(names)]
        losses = _gradients(space, streams, loss, names, rows, f"step {t} of {len(plan)}")
        evaluations += len(names)
        products = _checked(gramian(rows), names, f"step {t} of {len(plan)}")
        first = losses if len(first) != len(losses) else first
        moment = Moment(gramian=products, losses=losses, first=first, seed=derived(seed, "step", t))
        weights = weigh(moment) if weigh else np.ones(len(names))
        if not np.isfinite(weights).all():
            raise LoclinError(
                f"expected finite weights of the gradients at step {t} of {len(plan)}, found "
                f"{weights.tolist()}: "
                "choose another schedule"
            )
        means[t - 1], cosines[t - 1] = losses.mean(), mean_cosine(products)
        combined = rows[0].mul_(weights[0])
        for row, weight in zip(rows[1:], weights[1:], strict=True):
            combined.add_(row, alpha=float(weight))
        _step(space, optimiser, combined if extra is None else combined.add_(extra()), away_from)
        if after_step:
            paused = time.perf_counter()
            after_step(t)
            elsewhere += time.perf_counter() - paused
    optimiser.zero_grad()
    seconds = time.perf_counter() - began - elsewhere
    return Course(
        steps=len(plan), evaluations=evaluations, losses=means, cosines=cosines, seconds=seconds
    )


def mean_cosine(products: Products) -> float:
    """Mean cosine over the pairs of K vectors from their Gramian; NaN for one vector."""
    k = len(products)
    lengths = np.sqrt(np.diag(products))
    each = products[np.triu_indices(k, 1)] / np.outer(lengths, lengths)[np.triu_indices(k, 1)]
    return float(each.mean()) if k > 1 else float("nan")


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

    def asked(batch: T) -> tuple[Tensor, int]:
        total, count = loss(batch)
        losses.append(float(total.detach()) / max(count, 1))
        if not np.isfinite(losses[-1]):
            raise LoclinError(
                f"expected a finite loss, found {losses[-1]} on {names[len(losses) - 1]} at "
                f"{where}: lower the learning rate"
            )
        return total, count

    for row, name in zip(rows, names, strict=True):
        space.gradient(asked, [next(streams[name])], into=row)
    return np.array(losses)


def _checked(products: Products, names: Sequence[str], where: str) -> Products:
    for name, length in zip(names, np.diag(products), strict=True):
        if not np.isfinite(length):
            raise LoclinError(
                f"expected a finite gradient, found {length} as the squared length of that of "
                f"{name} at {where}: lower the "
                "learning rate, or train in float32"
            )
        if length == 0:
            raise LoclinError(
                f"expected a gradient that is not zero, found zeros for {name} at {where}: nothing "
                "that is trained takes part in "
                "it; change --space or leave the task out"
            )
    return products


@torch.no_grad()
def _step(
    space: ParameterSpace,
    optimiser: torch.optim.Optimizer,
    gradient: Tensor,
    away_from: Subspace | None,
) -> None:
    for parameter, piece in zip(space.parameters, space.by_tensor(gradient).values(), strict=True):
        parameter.grad = piece.to(parameter.device)
    before = space.read() if away_from is not None else None
    optimiser.step()
    if away_from is not None and before is not None:
        move = space.read() - before
        space.write(before + move - away_from.project(move))
