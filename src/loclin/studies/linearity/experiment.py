"""One independent run of the linearity study: the loss along straight lines at the pretrained and the damaged point."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from loclin.geometry.gramian import exact
from loclin.models import twice_differentiable
from loclin.record import Part, Row
from loclin.seeds import derived
from loclin.studies.bench import Bench, Demand, Progress, device, make_bench
from loclin.studies.course import damage
from loclin.studies.linearity import aims
from loclin.studies.linearity.aims import Aim, Vector
from loclin.studies.linearity.config import Config
from loclin.studies.linearity.rows import SIGNS, curve_rows, edge_rows, line_rows, pair_rows, whole_rows
from loclin.studies.rays import Exam, Line, Profile, line_along, signed_grid
from loclin.window import losses_along, ray

__all__ = ["device", "run_one"]

CLOSER = 2  # rounds of looking again where the edge of a window was interpolated


def run_one(config: Config, run: int, progress: Progress) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: whatever `make_bench` refuses, splits too small, a task that is not destroyed, a loss that is not finite.
    """
    began = time.perf_counter()
    bench = make_bench(config, run, _demand(config), progress)
    shown = bench.problem.examples["test"][bench.task]
    chosen = aims.chosen_examples(config.window_examples, len(shown), seed=derived(bench.seed, "window examples"))
    exam = Exam.of(bench.problem, [shown[i] for i in chosen])
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
        rows += _Point(bench, exam, name, progress).rows(ways[name])
    own = bench.problem.model.config._attn_implementation
    switched = () if own == "eager" else (f"attention is switched from {own} to eager for second derivatives",)
    return Part(rows=rows, arrays={}, seconds=time.perf_counter() - began, notes=(*bench.notes, *switched))


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
        """Lines along the given displacements and along everything that every point has, then pairs of them."""
        bench, space = self._bench, self._bench.space
        gradient = space.gradient(self._exam.loss, self._exam.fold(0))
        like = (a.vector for a in ways if a.name == aims.recovery_name("adamw"))  # none at the pretrained point
        matched = next(like, gradient).to(gradient)
        common = aims.common_aims(bench, gradient, matched, self._product, seed=self._seed)
        every = [*common, *(replace(way, vector=way.vector.to(gradient)) for way in ways)]
        profiles: list[Profile] = []
        loss, score = 0.0, 0.0
        for done, aim in enumerate(every):
            self._progress(f"following the loss at the {self._name} point", done / len(every))
            line = self._line(aim, gradient)
            profile = line.profile()
            profiles.append(profile)
            loss, score = profile.loss, profile.score
            here = {**bench.context, "point": self._name, "direction": aim.name} | ({"on": aim.on} if aim.on else {})
            yield from curve_rows(profile, here)
            closer = self._closer(aim, line).profile()
            yield from line_rows(closer, bench.config.tolerances, here)
            yield from self._further(aim, closer, here)
        at = {"point": self._name}
        yield bench.row("loss", loss, **at)
        yield bench.row("score_here", score, **at)
        for label, first, second in self._pairs(every):
            yield from self._pair(label, (every[first], every[second]), (profiles[first], profiles[second]))
        if self._name == "pretrained":
            random = next(i for i, a in enumerate(every) if a.name == aims.RANDOM)
            other = Aim(name=aims.RANDOM, vector=space.noise(seed=derived(self._seed, "other")))
            profile = self._line(other, gradient).profile()
            yield from self._pair("two random directions", (every[random], other), (profiles[random], profile))

    def _product(self, vector: Tensor) -> Tensor:
        with twice_differentiable(self._bench.problem.model):
            return self._bench.space.hessian_product(self._exam.loss, self._exam.fold(0), vector)

    def _line(self, aim: Aim, gradient: Vector) -> Line:
        w = ray(self._origin, aim.vector)
        slope, curvature = _inner(gradient, w), _inner(w, self._product(w))
        return line_along(
            self._bench.space, self._exam, w, self._grid, slopes=np.array([slope]), curvatures=np.array([curvature])
        )

    def _closer(self, aim: Aim, line: Line) -> Line:
        """The same line with further steps near the edges of its windows, each where the last interpolation put the edge."""
        for _ in range(CLOSER):
            profile = line.profile()
            windows = {sign: profile.window(sign, self._bench.config.tolerance) for sign in SIGNS}
            steps = [sign * w.size for sign, w in windows.items() if w.size is not None and w.bracket is not None]
            steps = [s for s in steps if s not in line.steps]
            if not steps:
                break
            sums, _ = losses_along(self._bench.space, self._exam.tallies, ray(self._origin, aim.vector), steps)
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
            sums, counts = losses_along(self._bench.space, self._exam.tallies, ray(self._origin, aim.vector), steps)
            found = [(float(loss) - profile.loss, float(score)) for loss, score in sums / counts]
        at_edges: dict[int, tuple[float | None, float | None]] = dict(zip(edges, found, strict=False))
        for sign, name in SIGNS.items():
            change, score = at_edges.get(sign, (None, None))
            yield from edge_rows(profile, change, score, {**here, "sign": name, "tolerance": tolerance})
        if aim.whole:
            yield from whole_rows(profile, whole, *found[-1], windows[1], tolerance, here)

    def _pairs(self, every: Sequence[Aim]) -> list[tuple[str, int, int]]:
        """Which aims are taken together."""
        of = {(a.name, a.on): i for i, a in enumerate(every)}
        if self._name == "damaged":
            second = of[aims.recovery_name("adamw"), None]
            return [("gradient and recovery, AdamW", of[aims.GRADIENT, None], second)]
        tasks = self._bench.task, self._bench.other
        return [("two task vectors", of[aims.TASK, tasks[0]], of[aims.TASK, tasks[1]])] if tasks[1] else []

    def _pair(self, label: str, two: tuple[Aim, Aim], profiles: tuple[Profile, Profile]) -> Iterator[Row]:
        """Both at once: the step ε along the sum of the two rays."""
        v, w = (ray(self._origin, aim.vector) for aim in two)
        steps = [float(s) for s in profiles[0].steps]
        sums, counts = losses_along(self._bench.space, self._exam.tallies, v + w, steps)
        both = sums[:, 0] / counts[0] - profiles[0].loss
        here = {**self._bench.context, "point": self._name, "pair": label}
        yield from pair_rows(both, profiles, _inner(v, self._product(w)), self._bench.config.tolerances, here)


def _inner(one: Vector, other: Vector) -> float:
    return float(exact(one) @ exact(other))
