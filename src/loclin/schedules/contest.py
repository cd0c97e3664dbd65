"""What every schedule has in common: one start, several tasks, one budget of gradient evaluations,
and how they are asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.dropout import adapter_dropout
from loclin.models import Problem
from loclin.models.exam import Exam
from loclin.parameters import ParameterSpace
from loclin.schedules.loop import Course, train_tasks
from loclin.schedules.terms import Optimiser, Terms
from loclin.seeds import derived
from loclin.tasks.batch import Batch, answer_loss
from loclin.training import Recorder, Trajectory, make_optimiser, minibatches
from loclin.updates import Keeping

Point = Float[Tensor, " D"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Trained:
    """Where a training ended, and how it went.

    Attributes:
        end: the point.
        courses: of its phases, in order.
        curve: after how many evaluations, loss and score of every task there.
        path: its updates, where they were kept.
        prepared: evaluations that were taken before or between the phases and trained nothing.
    """

    end: Point
    courses: tuple[Course, ...]
    curve: tuple[tuple[int, Float[np.ndarray, "K 2"]], ...]
    path: Trajectory | None = None
    prepared: int = 0

    @property
    def evaluations(self) -> int:
        """Gradients of one batch that were taken."""
        return self.prepared + sum(course.evaluations for course in self.courses)

    def then(self, later: Trained) -> Trained:
        """This training and one that went on from its end."""
        return Trained(
            end=later.end,
            courses=self.courses + later.courses,
            curve=self.curve + later.curve,
            prepared=self.prepared + later.prepared,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Contest:
    """What all schedules have in common.

    Attributes:
        problem, space: the model and its trained coordinates.
        tasks: in the order of the sequential schedule.
        start: where all begin.
        terms: the budget.
        optimiser, rate: by which all are trained.
        lessons: the split that is trained on.
        seed: of the orders of data, the same for all.
        context: of all rows.
        dropout: whether the adapter has any while it is trained.
        keeping: where the updates of specialists are kept; nowhere by default.
        validated: whether every schedule is asked validation examples too, for whoever chooses by
            them.
    """

    problem: Problem
    space: ParameterSpace
    tasks: tuple[str, ...]
    start: Point
    terms: Terms
    optimiser: Optimiser
    rate: float
    lessons: str
    seed: int
    context: Mapping[str, Any]
    dropout: bool = False
    keeping: Keeping | None = None
    validated: bool = False
    _specialists: dict[tuple[str, str], Trained] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def share(self) -> int:
        """Evaluations of one task where all have as many."""
        return self.terms.evaluations // len(self.tasks)

    @cached_property
    def quick(self) -> tuple[Exam, ...]:
        """A few test examples of every task."""
        return tuple(self._exam("test", task, self.terms.curve_examples) for task in self.tasks)

    @cached_property
    def whole(self) -> tuple[Exam, ...]:
        """The test examples of every task that count at the end."""
        return tuple(self._exam("test", task, self.terms.test_examples) for task in self.tasks)

    @cached_property
    def choosing(self) -> tuple[Exam, ...]:
        """A few validation examples of every task, by which the scale of merged specialists is
        chosen.
        """
        return tuple(
            self._exam("validate", task, self.terms.curve_examples, half=0) for task in self.tasks
        )

    @cached_property
    def validating(self) -> tuple[Exam, ...]:
        """A few others, by which schedules are chosen: of other groups, so that a scale that was
        chosen is not flattered.
        """
        return tuple(
            self._exam("validate", task, self.terms.curve_examples, half=1) for task in self.tasks
        )

    def _exam(self, split: str, task: str, most: int, *, half: int | None = None) -> Exam:
        examples = list(self.problem.examples[split][task])
        if half is not None:
            groups = sorted(
                {e.group or e.prompt for e in examples},
                key=lambda group: derived(0, "halves", group),
            )
            mine = set(groups[half::2] or groups)  # one group alone serves both
            examples = [e for e in examples if (e.group or e.prompt) in mine]
        order = torch.randperm(
            len(examples), generator=torch.Generator().manual_seed(derived(0, "exam", split, task))
        )
        return Exam.of(self.problem, [examples[i] for i in order[:most].tolist()])

    def stream(
        self, task: str, size: int | None = None, *, order: str = "order"
    ) -> Iterator[Batch]:
        """Batches of one task, in the same order for every schedule."""
        batch = self.problem.batch(self.lessons, task)
        return minibatches(batch, size or self.terms.batch, seed=derived(self.seed, order, task))

    def loss(self, *purpose: str) -> Callable[[Batch], tuple[Tensor, int]]:
        """Summed loss of a batch; with dropout, drawn anew for each call by the seed and the
        purpose.
        """
        model, calls = self.problem.model, iter(range(1 << 30))

        def asked(batch: Batch) -> tuple[Tensor, int]:
            if not self.dropout:
                return answer_loss(model, batch)
            with adapter_dropout(model, seed=derived(self.seed, "dropout", *purpose, next(calls))):
                return answer_loss(model, batch)

        return asked

    def trained(
        self,
        name: str,
        plan: Sequence[Sequence[str]],
        streams: Mapping[str, Iterator[Batch]],
        *,
        start: Point | None = None,
        spent: int = 0,
        prepared: int = 0,
        keeping: Keeping | None = None,
        **how: Any,
    ) -> Trained:
        """Train from a point by a plan; the space is back where it was afterwards.

        Args:
            name: of the schedule, for seeds.
            plan, streams, how: as `train_tasks` takes them.
            start: the point, the contest's by default.
            spent: evaluations before, for the places of the curve.
            prepared: evaluations that were taken since and trained nothing.
            keeping: where to keep the updates; nowhere by default.
        """
        marks, taken = self._marks(), spent
        curve: list[tuple[int, Float[np.ndarray, "K 2"]]] = []

        with self.space.restored():
            self.space.write(self.start if start is None else start)
            taken += prepared
            curve.extend((mark, self.asked(self.quick)) for mark in marks if spent < mark <= taken)
            kept = Recorder(self.space, len(plan), keeping=keeping) if keeping else None

            def watch(t: int) -> None:
                nonlocal taken
                if kept:
                    kept.keep(t)
                before, taken = taken, taken + len(plan[t - 1])
                curve.extend(
                    (mark, self.asked(self.quick)) for mark in marks if before < mark <= taken
                )

            made = make_optimiser(self.optimiser, self.space, self.rate)
            seed = derived(self.seed, name)
            course = train_tasks(
                self.space, streams, self.loss(name), made, plan, seed=seed, after_step=watch, **how
            )
            path = kept.trajectory(torch.from_numpy(course.losses)) if kept else None
            return Trained(
                end=self.space.read(),
                courses=(course,),
                curve=tuple(curve),
                path=path,
                prepared=prepared,
            )

    def asked(self, exams: Sequence[Exam]) -> Float[np.ndarray, "K 2"]:
        """Mean loss per answer token and score of every task where the space stands."""
        found = []
        for exam in exams:
            sums, counts = exam.tallies()
            found.append(sums / counts)
        return np.array(found)

    def at(self, point: Point, exams: Sequence[Exam]) -> Float[np.ndarray, "K 2"]:
        """The same at a point."""
        with self.space.restored():
            self.space.write(point)
            return self.asked(exams)

    def specialist(self, task: str, *, order: str = "order") -> Trained:
        """The training on one task alone with its share of the evaluations, made once for each
        order of the data.
        """
        if (task, order) not in self._specialists:
            streams, name = {task: self.stream(task, order=order)}, f"{task}, {order}"
            self._specialists[task, order] = self.trained(
                name, [(task,)] * self.share, streams, keeping=self.keeping
            )
        return self._specialists[task, order]

    def _marks(self) -> list[int]:
        total, points = self.share * len(self.tasks), self.terms.points
        return [round(total * (i + 1) / points) for i in range(points)]
