"""Every schedule that trains, as a plan for `train_tasks`: simultaneous ones, one task after
another, mended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from loclin.errors import LoclinError
from loclin.geometry.subspace import Subspace
from loclin.parameters import ParameterSpace
from loclin.schedules.comparison import Point, ScheduleComparison, Trained
from loclin.schedules.loop import mixed, weighing
from loclin.schedules.names import REFERENCE, REMEDIES, SEQUENTIAL
from loclin.seeds import derived
from loclin.tasks.batch import IGNORED, Batch, answer_logits


def train_by(comparison: ScheduleComparison, name: str) -> Trained:
    """Train by a schedule (all but `MERGED`, which do not train).

    Raises:
        LoclinError: as `train_tasks` and `weighing` do.
    """
    tasks, steps = comparison.tasks, comparison.share * len(comparison.tasks)
    if name in (*SEQUENTIAL, *REMEDIES):
        return _strongest(comparison, name, tasks[::-1] if name == SEQUENTIAL[1] else tasks)
    if name == REFERENCE:
        together = " and ".join(tasks)
        batches = _mixed(comparison, tasks, comparison.options.batch)
        return comparison.trained(name, [(together,)] * steps, {together: batches})
    streams = {task: comparison.stream(task) for task in tasks}
    if name == "alternating":
        plan = [(tasks[i % len(tasks)],) for i in range(steps)]
        return comparison.trained(name, plan, streams)
    weigh = weighing(name, len(tasks))
    return comparison.trained(name, [tasks] * comparison.share, streams, weigh=weigh)


def _strongest(comparison: ScheduleComparison, name: str, tasks: Sequence[str]) -> Trained:
    """Task after task; a remedy that has a strength is trained at each of a grid and judged at the
    best one on validation examples (measures §12).
    """
    options = comparison.options
    grids = {"replay": options.replay_shares, "consolidation": options.consolidations}
    if name not in grids:
        return _one_by_one(comparison, name, tasks)
    ends: dict[float, Trained | LoclinError] = {}
    for strength in grids[name]:
        try:
            ends[strength] = _one_by_one(comparison, name, tasks, strength)
        except LoclinError as error:  # too strong for the learning rate
            ends[strength] = error
    reached = (None if isinstance(t, LoclinError) else t.end for t in ends.values())
    choice = comparison.choice(tuple(ends), reached)
    best = ends[choice.strength]
    if isinstance(best, LoclinError):
        raise best
    return replace(best, choice=choice)


def _one_by_one(
    comparison: ScheduleComparison, name: str, tasks: Sequence[str], strength: float = 0.0
) -> Trained:
    """Task after task, a new optimiser for each; what a remedy prepares at the end of a task comes
    out of the next one's share.
    """
    trained = comparison.specialist(tasks[0])
    kept: list[Tensor] = []  # what a remedy holds of every old task
    for j, task in enumerate(tasks[1:], start=1):
        streams, cost, remedy = {task: comparison.stream(task)}, 0, dict[str, Any]()
        if name == "replay":
            new, old = replayed(comparison.options.batch, strength)
            streams = {
                task: mixed([comparison.stream(task, new), _mixed(comparison, tasks[:j], old)])
            }
        elif name == "consolidation":
            remedy["penalty"], cost = _penalty(
                comparison, tasks[j - 1], trained.end, kept, strength
            )
        elif name == "projection":
            cost = comparison.options.old_gradients
            kept.append(old_gradients(comparison, tasks[j - 1], trained.end))
            remedy["away_from"] = Subspace.spanned_by(torch.cat(kept))
        plan = [(task,)] * (comparison.share - cost)
        trained = comparison.trained(
            f"{name} {j}", plan, streams, after=trained, prepared=cost, **remedy
        )
    return trained


def _penalty(
    comparison: ScheduleComparison, old: str, end: Point, kept: list[Tensor], strength: float
) -> tuple[Callable[[], Tensor], int]:
    """The gradient of all penalties so far, that of the task that was just trained among them, and
    the evaluations that its Fisher cost.
    """
    problem, space, options = comparison.problem, comparison.space, comparison.options
    examples = min(options.fisher_examples, len(problem.batch(comparison.train_split, old)))
    data = next(comparison.stream(old, examples, order="fisher"))
    known = comparison.fishers.get(old)
    if known is None or not torch.equal(known[0], end):
        with space.restored():
            space.write(end)
            seed = derived(comparison.seed, "fisher", old)
            known = (end, fisher_diagonal(problem.model, space, data, seed=seed))
        comparison.fishers[old] = known
    kept += known
    anchors = zip(kept[::2], kept[1::2], strict=True)
    each = [consolidated(space, end, fisher, strength) for end, fisher in anchors]
    cost = ceil(examples / options.batch)  # gradients of one batch
    return lambda: torch.stack([gradient() for gradient in each]).sum(0), cost


def old_gradients(comparison: ScheduleComparison, old: str, end: Point) -> Tensor:
    """Gradients of a task that was just trained, one row a batch.

    To keep updates out of their span is the projection of GEM (Lopez-Paz and Ranzato 2017, arXiv
    1706.08840) with every constraint an equality, as in orthogonal gradient descent (Farajtabar et
    al. 2019, arXiv 1910.07104).
    """
    space, loss = comparison.space, comparison.loss("old gradients")
    batches, count = comparison.stream(old, order="old gradients"), comparison.options.old_gradients
    with space.restored():
        space.write(end)
        return torch.stack([space.gradient(loss, [next(batches)]) for _ in range(count)])


def _mixed(comparison: ScheduleComparison, tasks: Sequence[str], size: int) -> Iterator[Batch]:
    """Batches with as many examples of each task, as far as the size can be divided."""
    sizes = [len(part) for part in np.array_split(np.arange(size), len(tasks))]
    return mixed([comparison.stream(task, n) for task, n in zip(tasks, sizes, strict=True) if n])


def replayed(batch: int, share: float) -> tuple[int, int]:
    """Examples of the new task and of the old ones in a batch with replay, at least one of each.

    >>> replayed(24, 0.25)
    (18, 6)
    """
    old = min(max(round(share * batch), 1), batch - 1)
    return batch - old, old


def fisher_diagonal(
    model: nn.Module, space: ParameterSpace, data: Batch, *, seed: int
) -> Float[Tensor, " D"]:
    """F_i = E[(∂ log p(token)/∂θ_i)²] per answer token, at the current point: the diagonal of the
    Gauss-Newton matrix of the mean loss per answer token.

    The tokens are drawn from the model, after the right ones before them, with one gradient an
    example: squares of the data's own gradients are no curvature (Kunstner et al. 2019, arXiv
    1905.12558).
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(batch: Batch) -> tuple[Tensor, int]:
        logits, labels = answer_logits(model, batch)
        chosen = logits[labels != IGNORED].float()
        sampled = torch.multinomial(chosen.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
        return nn.functional.cross_entropy(chosen, sampled.to(chosen.device), reduction="sum"), 1

    total = torch.zeros_like(space.read())
    for row in data.chunks(1):
        total += space.gradient(drawn, [row]).square()
    return total / int((data.labels[:, 1:] != IGNORED).sum())


def consolidated(
    space: ParameterSpace, anchor: Float[Tensor, " D"], fisher: Float[Tensor, " D"], strength: float
) -> Callable[[], Float[Tensor, " D"]]:
    """Gradient λ F ⊙ (θ − anchor) of the penalty (λ/2) Σ F_i (θ_i − anchor_i)² (Kirkpatrick et al.
    2017, arXiv 1612.00796).

    With λ = 1 the penalty is the Gauss-Newton model of the old task's mean loss, so that training
    minimises the sum of both tasks' losses as far as the diagonal knows the old one.
    """
    return lambda: strength * fisher * (space.read() - anchor)
