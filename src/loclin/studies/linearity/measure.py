"""One independent run of the linearity study: the loss along straight lines at the pretrained and
the damaged point.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch

from loclin.activations.blocks import bare
from loclin.geometry.gramian import inner
from loclin.geometry.krylov import Product
from loclin.line import Line, Profile, line_along, losses_along, ray, signed_grid
from loclin.models.evaluation import EvalSet
from loclin.models.network import in_float64
from loclin.run.rows import Part, Row
from loclin.run.runner import Session
from loclin.search.local_law import second_order
from loclin.seeds import derived
from loclin.studies.context import Requirements, RunContext, make_context
from loclin.studies.damage import damage
from loclin.studies.directions import curvature_notes
from loclin.studies.linearity import directions
from loclin.studies.linearity.directions import HELD, NamedDirection, Vector
from loclin.studies.linearity.names import GRADIENT, RANDOM, RECOVERY, SIGNS, TASK
from loclin.studies.linearity.rows import (
    curve_rows,
    edge_rows,
    line_rows,
    of_defined_tasks,
    pair_rows,
    whole_rows,
)
from loclin.studies.linearity.settings import LinearitySettings

CLOSER = 2  # rounds of looking again where the edge of a window was interpolated
Pair = tuple[str, NamedDirection, NamedDirection]


def measure(settings: LinearitySettings, run: int, session: Session) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: whatever `make_context` refuses, a task that is not destroyed, a loss that is
            not finite.
    """
    progress = session.progress
    ctx = make_context(settings, run, requirements(settings), progress, session.kept)
    eval_set = examples_followed(ctx)
    rows = [*ctx.known.rows, ctx.row("dimension", float(ctx.space.dimension))]
    displacements = {"pretrained": directions.task_directions(ctx, seed=derived(ctx.seed, "ways"))}
    points = {"pretrained": ctx.space.read()}
    if not settings.untouched:
        progress("destroying the task", 0.0)
        points["damaged"] = damage(ctx, ctx.task)
        progress("training it back", 0.0)
        ways = directions.recovery_directions(ctx, points["damaged"])
        displacements["damaged"] = list(ways)
    if settings.evaluate == "float64":
        in_float64(bare(ctx.problem.model.double()))  # in place: the space holds the same tensors
    arrays: dict[str, np.ndarray] = {}
    for name, place in points.items():
        ctx.space.write(place)
        point = _Point(ctx, eval_set, name, session)
        rows += point.rows(displacements[name])
        arrays |= {f"{key}/{run}": array for key, array in point.arrays.items()}
    notes = (*ctx.notes, *curvature_notes(ctx.problem, settings.method))
    return Part(rows=rows, arrays=arrays, notes=notes)


def requirements(settings: LinearitySettings) -> Requirements:
    """What the study asks of data and memory."""
    return Requirements(
        examples={
            "test": (settings.window_examples, "--window-examples"),
            "recovery": (settings.batch, "--batch"),
            "damage": (settings.batch, "--batch"),
        },
        vectors=(HELD, "the number of tasks"),
        rows=(settings.steps, "updates"),
    )


def examples_followed(ctx: RunContext[LinearitySettings]) -> EvalSet:
    """Examples of the test split, drawn without order."""
    settings, test = ctx.settings, ctx.problem.examples["test"][ctx.task]
    generator = torch.Generator().manual_seed(derived(ctx.seed, "window examples"))
    chosen = torch.randperm(len(test), generator=generator)[: settings.window_examples].tolist()
    return EvalSet.of(ctx.problem, [test[i] for i in chosen], at_once=settings.curvature_chunk)


def _arrays(profile: Profile, line: str, start: str) -> dict[str, np.ndarray]:
    """What a record holds of a profile."""
    return {
        line: np.column_stack([profile.steps, profile.changes, profile.scores]),
        start: np.array([profile.loss, profile.slope, profile.curvature]),
    }


class _Point:
    """One point of the weights, the space standing there. `arrays` has the lines that were followed
    (docs/record.md).
    """

    def __init__(
        self, ctx: RunContext[LinearitySettings], eval_set: EvalSet, name: str, session: Session
    ) -> None:
        self._ctx, self._eval_set, self._name, self._session = ctx, eval_set, name, session
        self._origin, settings = ctx.space.read(), ctx.settings
        self._grid = signed_grid(settings.smallest, settings.largest, settings.per_decade)
        self._seed = derived(ctx.seed, "window", name)
        self.arrays: dict[str, np.ndarray] = {}

    def rows(self, displacements: Sequence[NamedDirection]) -> Iterator[Row]:
        """Lines along displacements and along what every point has, then pairs of them."""
        ctx, space = self._ctx, self._ctx.space
        gradient = space.gradient(self._eval_set.loss, self._eval_set.fold(0))
        second = NamedDirection(name=RANDOM, vector=space.noise(seed=derived(self._seed, "other")))
        of = ctx.problem, space, self._eval_set.loss, list(self._eval_set.fold(0))
        # all before the point moves, so that one graph serves them
        with second_order(*of, ctx.settings.method) as made:
            product = self._kept(made)
            every = directions.common_directions(ctx, gradient, product, seed=self._seed)
            every += [replace(d, vector=d.vector.to(gradient)) for d in displacements]
            pairs = list(self._pairs(every, second))
            followed = [*every, *([second] if self._name == "pretrained" else [])]
            curvatures = [self._bent(product, d, d) for d in followed]
            mixed = [self._bent(product, one, other) for _, one, other in pairs]
        profiles: dict[int, Profile] = {}
        for done, (d, curvature) in enumerate(zip(followed, curvatures, strict=True)):
            stage = f"following the loss at the {self._name} point"
            self._session.progress(stage, done / len(followed))
            key = "/".join([self._name, d.name, *([d.on] if d.on else [])])
            follow = partial(self._followed, d, gradient, curvature, counts=d is not second)
            name = f"line {key}" if d is not second else f"second line {key}"
            part = self._session.pieces(name, follow)
            yield from part.rows
            self.arrays |= {f"{n}/{key}": part.arrays[n] for n in ("line", "start") if part.rows}
            profiles[id(d)] = self._profile(part)
        at = profiles[id(every[-1])]
        yield ctx.row("loss", at.loss, point=self._name)
        yield ctx.row("score_here", at.score, point=self._name)
        for (label, one, other), bent in zip(pairs, mixed, strict=True):
            two = profiles[id(one)], profiles[id(other)]
            both = partial(self._together, self._ray(one) + self._ray(other), two, bent, label)
            part = self._session.pieces(f"pair {self._name}/{label}", both)
            yield from part.rows
            self.arrays[f"pair/{self._name}/{label}"] = part.arrays["pair"]

    def _followed(
        self, d: NamedDirection, gradient: Vector, curvature: float, *, counts: bool
    ) -> Part:
        """The loss along one direction: its rows where it counts, the line with the steps from
        which its windows are read, and its profile before these were closed in on.
        """
        tolerances, line = self._ctx.settings.tolerances, self._line(d, gradient, curvature)
        rows, arrays, profile = list[Row](), dict[str, np.ndarray](), line.profile()
        if counts:
            here = {**self._ctx.context, "point": self._name, "direction": d.name}
            here |= {"on": d.on} if d.on else {}
            closer = self._closer(line)
            rows += curve_rows(profile.on(self._grid), here)
            rows += line_rows(closer.profile(), tolerances, here)
            rows += self._ends(d, closer, here)
            arrays |= _arrays(closer.profile(), "line", "start")
        arrays |= _arrays(profile, "before", "there")
        arrays["score"] = np.array(profile.score)
        return Part(rows=list(of_defined_tasks(rows)), arrays=arrays)

    def _profile(self, part: Part) -> Profile:
        """A profile as it was before its part was kept."""
        steps, changes, scores = part.arrays["before"].T
        loss, slope, curvature = part.arrays["there"].tolist()
        return Profile(
            steps=steps,
            changes=changes,
            scores=scores,
            loss=loss,
            score=part.arrays["score"].item(),
            slope=slope,
            curvature=curvature,
            dtype=self._ctx.space.parameters[0].dtype,
        )

    def _together(self, w: Vector, two: tuple[Profile, Profile], bent: float, label: str) -> Part:
        """The loss along the sum of two rays."""
        steps, tolerances = [s for s in self._grid if s], self._ctx.settings.tolerances
        here = {**self._ctx.context, "point": self._name, "pair": label}
        sums, counts = losses_along(self._ctx.space, self._eval_set.tallies, w, steps)
        both = sums[:, 0] / counts[0] - two[0].loss
        rows = pair_rows(np.array(steps), both, two, bent, tolerances, here)
        return Part(
            rows=list(of_defined_tasks(rows)), arrays={"pair": np.column_stack([steps, both])}
        )

    def _kept(self, product: Product) -> Product:
        """The same products; those that an earlier session made are kept."""
        numbers = count()

        def kept(vector: Vector) -> Vector:
            name = f"product {next(numbers)} at the {self._name} point"
            return self._ctx.kept_vectors(name, lambda: product(vector))

        return kept

    def _ray(self, direction: NamedDirection) -> Vector:
        return ray(self._origin, direction.vector)

    def _bent(self, product: Product, one: NamedDirection, other: NamedDirection) -> float:
        """vᵀHw of the rays of two directions."""
        return inner(self._ray(one), product(self._ray(other)))

    def _line(self, direction: NamedDirection, gradient: Vector, curvature: float) -> Line:
        space, tallies, w = self._ctx.space, self._eval_set.tallies, self._ray(direction)
        slopes, curvatures = np.array([inner(gradient, w)]), np.array([curvature])
        return line_along(space, tallies, w, self._grid, slopes=slopes, curvatures=curvatures)

    def _closer(self, line: Line) -> Line:
        """The line with further steps, where an interpolation put the edges of its windows."""
        for _ in range(CLOSER):
            profile, tolerance = line.profile(), self._ctx.settings.tolerance
            windows = {sign: profile.window(sign, tolerance) for sign in SIGNS}
            line = line.further([s * (w.size or 0.0) for s, w in windows.items() if w.bracket])
        return line

    def _ends(self, direction: NamedDirection, line: Line, here: dict[str, Any]) -> Iterator[Row]:
        """At the edges of the windows, and at the end of a displacement."""
        profile, tolerance = line.profile(), self._ctx.settings.tolerance
        sizes = {sign: profile.window(sign, tolerance).size for sign in SIGNS}
        steps = {SIGNS[sign]: sign * size for sign, size in sizes.items() if size is not None}
        if direction.whole:
            steps["whole"] = float(direction.vector.norm() / self._origin.norm())
        there = line.further(list(steps.values())).profile()
        for sign in SIGNS.values():
            at = {**here, "sign": sign, "tolerance": tolerance}
            change, _, score = there.at(steps[sign]) if sign in steps else (None, None, None)
            yield from edge_rows(profile, change, score, at)
        if direction.whole:
            end = there.at(steps["whole"])
            yield from whole_rows(profile, steps["whole"], end, tolerance, here)

    def _pairs(self, every: Sequence[NamedDirection], second: NamedDirection) -> Iterator[Pair]:
        """Which directions are taken together."""
        of = {(d.name, d.on): d for d in every}
        if self._name == "damaged":
            label = "gradient and recovery, AdamW"
            yield label, of[GRADIENT, None], of[RECOVERY["adamw"], None]
            return
        if self._ctx.other:
            yield "two task vectors", of[TASK, self._ctx.task], of[TASK, self._ctx.other]
        yield "two random directions", of[RANDOM, None], second
