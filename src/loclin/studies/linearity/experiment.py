"""One independent run of the linearity study: the loss along straight lines at the pretrained and
the damaged point.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from loclin.curvature import hessian_operator
from loclin.geometry.gramian import inner
from loclin.geometry.krylov import Product
from loclin.models import twice_differentiable
from loclin.models.exam import Exam
from loclin.record import Part, Row
from loclin.seeds import derived
from loclin.studies.bench import Bench, Demand, Progress, device, make_bench
from loclin.studies.course import damage
from loclin.studies.linearity import aims
from loclin.studies.linearity.aims import Aim, Vector
from loclin.studies.linearity.config import Config
from loclin.studies.linearity.rows import (
    SIGNS,
    curve_rows,
    edge_rows,
    line_rows,
    of_defined_tasks,
    pair_rows,
    whole_rows,
)
from loclin.studies.rays import Line, Profile, line_along, signed_grid
from loclin.window import losses_along, ray

__all__ = ["device", "run_one"]

CLOSER = 2  # rounds of looking again where the edge of a window was interpolated


def run_one(config: Config, run: int, progress: Progress) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: whatever `make_bench` refuses, splits too small, a task that is not destroyed,
            a loss that is not finite.
    """
    began = time.perf_counter()
    bench = make_bench(config, run, _demand(config), progress)
    shown = bench.problem.examples["test"][bench.task]
    chosen = aims.chosen_examples(
        config.window_examples, len(shown), seed=derived(bench.seed, "window examples")
    )
    exam = Exam.of(bench.problem, [shown[i] for i in chosen], at_once=config.curvature_chunk)
    rows = [bench.row("dimension", float(bench.space.dimension))]
    progress("destroying the task", 0.0)
    damaged = damage(bench, bench.task)
    progress("training it back", 0.0)
    ways = {
        "pretrained": aims.task_aims(bench, seed=derived(bench.seed, "ways")),
        "damaged": aims.recovery_aims(bench, damaged),
    }
    points = {"pretrained": bench.space.read(), "damaged": damaged}
    if config.evaluate == "float64":
        bench.problem.model.double()  # in place: the space holds the same tensors
    for name, point in points.items():
        bench.space.write(point)
        rows += of_defined_tasks(_Point(bench, exam, name, progress).rows(ways[name]))
    notes = (*bench.notes, *_said(bench))
    return Part(rows=rows, arrays={}, seconds=time.perf_counter() - began, notes=notes)


def _said(bench: Bench[Config]) -> Iterator[str]:
    """How second derivatives were taken, where that is not plain."""
    own = bench.problem.model.config._attn_implementation
    if bench.config.products == "finite differences":
        yield "curvature is taken by finite differences of gradients, a fallback"
    elif own != "eager":
        yield f"attention is switched from {own} to eager for second derivatives"


def _demand(config: Config) -> Demand:
    return Demand(
        examples={
            "test": (config.window_examples, "--window-examples"),
            "recovery": (config.batch, "--batch"),
            "damage": (config.batch, "--batch"),
        },
        vectors=(aims.HELD, "the number of tasks"),
        rows=(config.steps, "updates"),
    )


class _Point:
    """One point of the weights, the space standing there.

    Args:
        bench, exam: of the run.
        name: "pretrained" or "damaged".
        progress: told the share of the point's lines that are done.
    """

    def __init__(self, bench: Bench[Config], exam: Exam, name: str, progress: Progress) -> None:
        self._bench, self._exam, self._name, self._progress = bench, exam, name, progress
        self._origin, config = bench.space.read(), bench.config
        self._grid = signed_grid(config.smallest, config.largest, config.per_decade)
        self._seed = derived(bench.seed, "window", name)

    def rows(self, ways: Sequence[Aim]) -> Iterator[Row]:
        """Lines along the given displacements and along everything that every point has, then pairs
        of them.
        """
        bench, space = self._bench, self._bench.space
        gradient = space.gradient(self._exam.loss, self._exam.fold(0))
        other = Aim(name=aims.RANDOM, vector=space.noise(seed=derived(self._seed, "other")))
        with (
            self._second_order() as product
        ):  # all before the point moves, so that one graph serves them
            common = aims.common_aims(bench, gradient, product, seed=self._seed)
            every = [*common, *(replace(way, vector=way.vector.to(gradient)) for way in ways)]
            lone = [other] if self._name == "pretrained" else []
            pairs = self._pairs(every)
            curvatures = [self._bent(product, a, a) for a in (*every, *lone)]
            mixed = [self._bent(product, (every + lone)[i], (every + lone)[j]) for _, i, j in pairs]
        profiles: list[Profile] = []
        loss, score = 0.0, 0.0
        for done, (aim, curvature) in enumerate(zip((*every, *lone), curvatures, strict=True)):
            self._progress(f"following the loss at the {self._name} point", done / len(curvatures))
            line = self._line(aim, gradient, curvature)
            profiles.append(line.profile())
            if aim is other:
                continue
            loss, score = profiles[-1].loss, profiles[-1].score
            here = {**bench.context, "point": self._name, "direction": aim.name} | (
                {"on": aim.on} if aim.on else {}
            )
            yield from curve_rows(profiles[-1].on(self._grid), here)
            closer = self._closer(aim, line).profile()
            yield from line_rows(closer, bench.config.tolerances, here)
            yield from self._further(aim, closer, here)
        at = {"point": self._name}
        yield bench.row("loss", loss, **at)
        yield bench.row("score_here", score, **at)
        for (label, i, j), bent in zip(pairs, mixed, strict=True):
            yield from self._pair(
                label, ((every + lone)[i], (every + lone)[j]), (profiles[i], profiles[j]), bent
            )

    @contextmanager
    def _second_order(self) -> Iterator[Product]:
        """v ↦ Hv at the point, as long as the space stands there."""
        space, exam, batches = self._bench.space, self._exam, list(self._exam.fold(0))
        if self._bench.config.products == "finite differences":
            yield hessian_operator(space, exam.loss, batches, method="finite differences")
        else:
            with twice_differentiable(self._bench.problem.model):
                yield hessian_operator(space, exam.loss, batches)

    def _bent(self, product: Product, one: Aim, other: Aim) -> float:
        """vᵀHw of the rays of two aims."""
        return inner(ray(self._origin, one.vector), product(ray(self._origin, other.vector)))

    def _line(self, aim: Aim, gradient: Vector, curvature: float) -> Line:
        """The loss over the grid, and at what tiny steps its scatter is read from."""
        space, exam, w = self._bench.space, self._exam, ray(self._origin, aim.vector)
        slopes, curvatures = np.array([inner(gradient, w)]), np.array([curvature])
        line = line_along(space, exam, w, self._grid, slopes=slopes, curvatures=curvatures)
        further = line.profile().further_for_scatter()
        return (
            line.joined(further, losses_along(space, exam.tallies, w, further)[0])
            if further
            else line
        )

    def _closer(self, aim: Aim, line: Line) -> Line:
        """The same line with further steps near the edges of its windows, each where the last
        interpolation put the edge.
        """
        for _ in range(CLOSER):
            profile = line.profile()
            windows = {sign: profile.window(sign, self._bench.config.tolerance) for sign in SIGNS}
            steps = [
                sign * w.size
                for sign, w in windows.items()
                if w.size is not None and w.bracket is not None
            ]
            steps = [s for s in steps if s not in line.steps]
            if not steps:
                break
            sums, _ = losses_along(
                self._bench.space, self._exam.tallies, ray(self._origin, aim.vector), steps
            )
            line = line.joined(steps, sums)
        return line

    def _further(self, aim: Aim, profile: Profile, here: dict[str, object]) -> Iterator[Row]:
        """At the edges of the windows, and at the end of a displacement."""
        tolerance = self._bench.config.tolerance
        windows = {sign: profile.window(sign, tolerance) for sign in SIGNS}
        edges = {sign: w.size for sign, w in windows.items() if w.size is not None}
        whole = float(aim.vector.norm() / self._origin.norm())
        steps = [*(sign * size for sign, size in edges.items()), *([whole] if aim.whole else [])]
        found: list[tuple[float, float]] = []
        if steps:
            sums, counts = losses_along(
                self._bench.space, self._exam.tallies, ray(self._origin, aim.vector), steps
            )
            found = [(float(loss) - profile.loss, float(score)) for loss, score in sums / counts]
        at_edges: dict[int, tuple[float | None, float | None]] = dict(
            zip(edges, found, strict=False)
        )
        for sign, name in SIGNS.items():
            change, score = at_edges.get(sign, (None, None))
            yield from edge_rows(
                profile, change, score, {**here, "sign": name, "tolerance": tolerance}
            )
        if aim.whole:
            yield from whole_rows(profile, whole, *found[-1], windows[1], tolerance, here)

    def _pairs(self, every: Sequence[Aim]) -> list[tuple[str, int, int]]:
        """Which aims are taken together; the second random direction comes after all others."""
        of = {(a.name, a.on): i for i, a in enumerate(every)}
        if self._name == "damaged":
            second = of[aims.recovery_name("adamw"), None]
            return [("gradient and recovery, AdamW", of[aims.GRADIENT, None], second)]
        tasks = self._bench.task, self._bench.other
        random = ("two random directions", of[aims.RANDOM, None], len(every))
        two = (
            [("two task vectors", of[aims.TASK, tasks[0]], of[aims.TASK, tasks[1]])]
            if tasks[1]
            else []
        )
        return [*two, random]

    def _pair(
        self, label: str, two: tuple[Aim, Aim], profiles: tuple[Profile, Profile], mixed: float
    ) -> Iterator[Row]:
        """Both at once: the step ε along the sum of the two rays."""
        v, w = (ray(self._origin, aim.vector) for aim in two)
        steps = [s for s in self._grid if s]
        sums, counts = losses_along(self._bench.space, self._exam.tallies, v + w, steps)
        both = sums[:, 0] / counts[0] - profiles[0].loss
        here = {**self._bench.context, "point": self._name, "pair": label}
        yield from pair_rows(
            np.array(steps), both, profiles, mixed, self._bench.config.tolerances, here
        )
