"""A comparison of schedules: one start, several tasks, one budget of gradient evaluations, the same
batches and the same examples that are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.geometry.gramian import at_least_float32
from loclin.geometry.subspace import Subspace
from loclin.models import Problem
from loclin.models.evaluation import EvalSet
from loclin.parameters import ParameterSpace
from loclin.progress import Kept, afresh
from loclin.schedules.loop import TrainingLog, Weighing, train_tasks
from loclin.schedules.options import ComparisonOptions
from loclin.seeds import derived
from loclin.tasks.batch import Batch, answer_loss
from loclin.training import (
    OptimiserName,
    Recorder,
    Trajectory,
    adapter_dropout,
    make_optimiser,
    minibatches,
)
from loclin.updates import UpdateStorage

Point = Float[Tensor, " D"]
#: Mean loss per answer token (nats) and score of each task.
Scores = Float[np.ndarray, "K 2"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Choice:
    """A strength chosen on validation examples: that whose worst task is best, the first of equals.

    Attributes:
        strengths: the grid.
        scores: of every task under each; NaN where training diverged.
    """

    strengths: tuple[float, ...]
    scores: Float[np.ndarray, "n K"]

    @property
    def best(self) -> int:
        """Place of the chosen one."""
        return int(np.argmax(np.nan_to_num(self.scores.min(1), nan=-1.0)))

    @property
    def strength(self) -> float:
        """The chosen one."""
        return self.strengths[self.best]


@dataclass(frozen=True, eq=False, kw_only=True)
class Trained:
    """Where a training ended, and how it went.

    Attributes:
        phases: one log, or one for each task after the other.
        curve: after how many evaluations, and the scores there.
        path: the updates, where they were kept.
        prepared: evaluations before or between the phases, which trained nothing.
        choice: how the strength of a remedy was chosen, where it has one.
    """

    end: Point
    phases: tuple[TrainingLog, ...] = ()
    curve: tuple[tuple[int, Scores], ...] = ()
    path: Trajectory | None = None
    prepared: int = 0
    choice: Choice | None = None

    @property
    def evaluations(self) -> int:
        """Gradients of one batch that were taken."""
        return self.prepared + sum(log.evaluations for log in self.phases)


@dataclass(frozen=True, eq=False, kw_only=True)
class ScheduleComparison:
    """What all schedules have in common.

    Attributes:
        space: the trained coordinates.
        tasks: in the order of the sequential schedule.
        start: where all begin.
        train_split: name of the split that is trained on.
        seed: of the orders of data and whatever else is drawn.
        dropout: whether the adapter has any while it is trained.
        storage: where the updates of specialists are kept; nowhere by default.
        keep: has every training kept whose updates are not.
    """

    problem: Problem
    space: ParameterSpace
    tasks: tuple[str, ...]
    start: Point
    options: ComparisonOptions
    optimiser: OptimiserName
    lr: float
    train_split: str
    seed: int
    dropout: bool = False
    storage: UpdateStorage | None = None
    keep: Kept[Any] = afresh
    #: By task, a point and what was made there: the Fisher that all strengths of a remedy share.
    fishers: dict[str, tuple[Point, Tensor]] = field(default_factory=dict, init=False, repr=False)
    _times: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _specialists: dict[tuple[str, str], Trained] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def share(self) -> int:
        """Evaluations of one task where all have as many."""
        return self.options.evaluations // len(self.tasks)

    @cached_property
    def curve_sets(self) -> tuple[EvalSet, ...]:
        """A few test examples of every task."""
        return self._eval_sets("test", self.options.curve_examples)

    @cached_property
    def test_sets(self) -> tuple[EvalSet, ...]:
        """The test examples of every task that count at the end."""
        return self._eval_sets("test", self.options.test_examples)

    @cached_property
    def choice_sets(self) -> tuple[EvalSet, ...]:
        """A few validation examples by which the strength of a remedy or of a merge is chosen."""
        return self._eval_sets("validate", self.options.curve_examples, half=0)

    @cached_property
    def validation_sets(self) -> tuple[EvalSet, ...]:
        """A few others, by which schedules are chosen: of other groups, so that a strength that was
        chosen is not flattered.
        """
        return self._eval_sets("validate", self.options.curve_examples, half=1)

    def _eval_sets(self, split: str, most: int, *, half: int | None = None) -> tuple[EvalSet, ...]:
        found = []
        for task in self.tasks:
            examples = list(self.problem.examples[split][task])
            if half is not None:
                names = {e.group or e.prompt for e in examples}
                groups = sorted(names, key=lambda group: derived(0, "halves", group))
                kept = set(groups[half::2] or groups)  # one group alone serves both
                examples = [e for e in examples if (e.group or e.prompt) in kept]
            generator = torch.Generator().manual_seed(derived(0, "exam", split, task))
            order = torch.randperm(len(examples), generator=generator)[:most].tolist()
            found.append(EvalSet.of(self.problem, [examples[i] for i in order]))
        return tuple(found)

    def stream(
        self, task: str, size: int | None = None, *, order: str = "order"
    ) -> Iterator[Batch]:
        """Batches of one task, in the same order for every schedule."""
        batch, seed = self.problem.batch(self.train_split, task), derived(self.seed, order, task)
        return minibatches(batch, size or self.options.batch, seed=seed)

    def loss(self, *purpose: str) -> Callable[[Batch], tuple[Tensor, int]]:
        """Summed loss of a batch; each call draws its dropout by the seed and the purpose."""
        model, calls = self.problem.model, iter(range(1 << 30))

        def summed(batch: Batch) -> tuple[Tensor, int]:
            if not self.dropout:
                return answer_loss(model, batch)
            with adapter_dropout(model, seed=derived(self.seed, "dropout", *purpose, next(calls))):
                return answer_loss(model, batch)

        return summed

    def trained(
        self,
        name: str,
        plan: Sequence[Sequence[str]],
        streams: Mapping[str, Iterator[Batch]],
        *,
        after: Trained | None = None,
        prepared: int = 0,
        storage: UpdateStorage | None = None,
        weigh: Weighing | None = None,
        penalty: Callable[[], Tensor] | None = None,
        away_from: Subspace | None = None,
    ) -> Trained:
        """Train by a plan, from the start or on from an earlier training; the space is back where
        it was afterwards.

        Args:
            name: of the schedule, for seeds.
            plan, streams, weigh, penalty, away_from: as `train_tasks` takes them.
            after: the earlier training, which the result holds too.
            prepared: evaluations that were taken since and trained nothing.
            storage: where to keep the updates; nowhere by default.
        """
        before = after or Trained(end=self.start)
        taken, curve = before.evaluations, list[tuple[int, Scores]]()
        recorder: Recorder | None = None

        def take(count: int) -> None:
            nonlocal taken
            passed = [mark for mark in self._marks if taken < mark <= taken + count]
            curve.extend((mark, self.evaluate(self.curve_sets)) for mark in passed)
            taken += count

        def after_step(t: int) -> None:
            if recorder:
                recorder.keep(t)
            take(len(plan[t - 1]))

        def made() -> dict[str, Any]:
            nonlocal recorder
            with self.space.restored():
                self.space.write(before.end)
                take(prepared)
                recorder = Recorder(self.space, len(plan), storage=storage) if storage else None
                log = train_tasks(
                    self.space,
                    streams,
                    self.loss(name),
                    make_optimiser(self.optimiser, self.space, self.lr),
                    plan,
                    weigh=weigh,
                    penalty=penalty,
                    away_from=away_from,
                    seed=derived(self.seed, name),
                    after_step=after_step,
                )
                end = at_least_float32(self.space.read()).cpu().numpy()
            places, scores = [mark for mark, _ in curve], [scores for _, scores in curve]
            return {"end": end, "places": np.array(places), "scores": np.array(scores), **vars(log)}

        times = self._times[name] = self._times.get(name, 0) + 1
        key = f"training {self.optimiser} {'+'.join(self.tasks)} {name} {times}"
        held = made() if storage else self.keep(key, made)
        trained = _trained(held, before, prepared)
        path = recorder.trajectory(torch.from_numpy(held["losses"])) if recorder else None
        return replace(trained, path=path)

    def evaluate(self, eval_sets: Sequence[EvalSet]) -> Scores:
        """Mean loss per answer token and score of every task where the space stands."""
        return np.array([np.divide(*eval_set.tallies()) for eval_set in eval_sets])

    def evaluate_at(self, point: Point, eval_sets: Sequence[EvalSet]) -> Scores:
        """The same at a point."""
        with self.space.restored():
            self.space.write(point)
            return self.evaluate(eval_sets)

    def choice(self, strengths: Sequence[float], ends: Iterable[Point | None]) -> Choice:
        """Where each strength ends is scored on validation examples; None is nowhere."""
        nowhere = np.full(len(self.tasks), np.nan)
        scores = [
            nowhere if end is None else self.evaluate_at(end, self.choice_sets)[:, 1]
            for end in ends
        ]
        return Choice(strengths=tuple(strengths), scores=np.array(scores))

    def specialist(self, task: str, *, order: str = "order") -> Trained:
        """The training on one task alone with its share of the evaluations, made once for each
        order of the data.
        """
        if (task, order) not in self._specialists:
            name, streams = f"{task}, {order}", {task: self.stream(task, order=order)}
            plan = [(task,)] * self.share
            made = self.trained(name, plan, streams, storage=self.storage)
            self._specialists[task, order] = made
        return self._specialists[task, order]

    @property
    def _marks(self) -> list[int]:
        """Evaluations at which curves are scored."""
        total, points = self.share * len(self.tasks), self.options.points
        return [round(total * (i + 1) / points) for i in range(points)]


def _trained(held: Mapping[str, Any], before: Trained, prepared: int) -> Trained:
    """What a training gave that went on from another one."""
    log = TrainingLog(
        evaluations=np.asarray(held["evaluations"]).item(),
        losses=held["losses"],
        cosines=held["cosines"],
        seconds=np.asarray(held["seconds"]).item(),
    )
    return Trained(
        end=torch.from_numpy(held["end"]).to(before.end),
        phases=(*before.phases, log),
        curve=(*before.curve, *zip(held["places"].tolist(), held["scores"], strict=True)),
        prepared=before.prepared + prepared,
    )
