"""Every schedule that trains, as what it asks of `train_tasks`: simultaneous ones, one task after
another, mended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from loclin.geometry.subspace import Subspace
from loclin.schedules.contest import Contest, Trained
from loclin.schedules.loop import mixed, weighing
from loclin.schedules.remedies import consolidated, evaluations_of, fisher_diagonal, replayed
from loclin.schedules.terms import REMEDIES, SEQUENTIAL
from loclin.seeds import derived
from loclin.tasks.batch import Batch


def by_schedule(contest: Contest, name: str) -> Trained:
    """Train by a schedule (all but `MERGED`, which do not train)."""
    tasks = contest.tasks
    if name in SEQUENTIAL:
        return one_by_one(contest, name, tasks if name == SEQUENTIAL[0] else tasks[::-1])
    if name in REMEDIES:
        return one_by_one(contest, name, tasks)
    if name == "alternating":
        plan = [(tasks[i % len(tasks)],) for i in range(contest.share * len(tasks))]
        return contest.trained(name, plan, {task: contest.stream(task) for task in tasks})
    if name == "joint mixed":
        together = " and ".join(tasks)
        plan = [(together,)] * (contest.share * len(tasks))
        return contest.trained(name, plan, {together: _shared(contest, tasks, contest.terms.batch)})
    streams = {task: contest.stream(task) for task in tasks}
    return contest.trained(name, [tasks] * contest.share, streams, weigh=weighing(name, len(tasks)))


def one_by_one(contest: Contest, name: str, tasks: Sequence[str]) -> Trained:
    """Task after task, a new optimiser for each; what a remedy prepares at the end of a task comes
    out of the next one's share.
    """
    found = contest.specialist(tasks[0])
    kept: list[Tensor] = []  # what a remedy holds of every old task
    for j, task in enumerate(tasks[1:], start=1):
        streams, cost = {task: contest.stream(task)}, 0
        extra: Callable[[], Tensor] | None = None
        away: Subspace | None = None
        if name == "replay":
            new, old = replayed(contest.terms.batch, contest.terms.replay_share)
            streams = {task: mixed([contest.stream(task, new), _shared(contest, tasks[:j], old)])}
        elif name == "consolidation":
            extra, cost = _penalty(contest, tasks[j - 1], found.end, kept)
        elif name == "projection":
            cost = contest.terms.old_gradients
            kept.append(_gradients(contest, tasks[j - 1], found.end))
            away = Subspace.spanned_by(torch.cat(kept))
        steps = contest.share - cost
        later = contest.trained(
            f"{name} {j}",
            [(task,)] * steps,
            streams,
            start=found.end,
            spent=contest.share * j,
            prepared=cost,
            extra=extra,
            away_from=away,
        )
        found = found.then(later)
    return found


def _penalty(
    contest: Contest, old: str, end: Tensor, kept: list[Tensor]
) -> tuple[Callable[[], Tensor], int]:
    """The gradient of all penalties so far, that of the task that was just trained among them, and
    what its Fisher cost.
    """
    space, terms = contest.space, contest.terms
    examples = min(terms.fisher_examples, len(contest.problem.batch(contest.lessons, old)))
    data = next(contest.stream(old, examples, order="fisher"))
    with space.restored():
        space.write(end)
        fisher = fisher_diagonal(
            contest.problem.model, space, data, seed=derived(contest.seed, "fisher", old)
        )
    kept += [end, fisher]
    each = [
        consolidated(space, a, f, terms.consolidation)
        for a, f in zip(kept[::2], kept[1::2], strict=True)
    ]
    return lambda: torch.stack([gradient() for gradient in each]).sum(0), evaluations_of(
        examples, terms.batch
    )


def _gradients(contest: Contest, old: str, end: Tensor) -> Tensor:
    """Gradients of a task that was just trained, batch by batch.

    To keep updates out of their span is the projection of GEM (Lopez-Paz and Ranzato 2017, arXiv
    1706.08840) with every constraint an equality, as in orthogonal gradient descent (Farajtabar et
    al. 2019, arXiv 1910.07104).
    """
    space, loss, batches = (
        contest.space,
        contest.loss("old gradients"),
        contest.stream(old, order="old gradients"),
    )
    with space.restored():
        space.write(end)
        return torch.stack(
            [space.gradient(loss, [next(batches)]) for _ in range(contest.terms.old_gradients)]
        )


def _shared(contest: Contest, tasks: Sequence[str], size: int) -> Iterator[Batch]:
    """Batches that hold as many examples of each task as of the others, as far as the size can be
    divided.
    """
    sizes = [len(part) for part in np.array_split(np.arange(size), len(tasks))]
    return mixed([contest.stream(task, n) for task, n in zip(tasks, sizes, strict=True) if n])
