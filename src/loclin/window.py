"""`linear_window`: over which steps along a direction the loss changes as its gradient says, in
every unit that such a step is given in, with intervals over groups of examples (measures §7, §14).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from loclin.curvature import CurvatureOperator, Method, NoSecondDerivative
from loclin.errors import LoclinError
from loclin.geometry.gramian import inner, norm
from loclin.line import Line, Profile, Tallies, line_along, ray, signed_grid
from loclin.parameters import ParameterSpace, SummedLoss, summed
from loclin.progress import Kept, ProgressCallback, afresh, silent
from loclin.stats import CONFIDENCE, Estimate, Scale, on_scale, unscaled

T = TypeVar("T")
SMALLEST = 1e-12  # a step that no float64 tells from none
#: A step δ in three units: "relative", ε = ‖δ‖/‖θ‖; "length", ‖δ‖; "multiple", λ, δ being λ times
#: the direction as it was given.
Sizes = dict[str, Estimate]
#: Inside of which a model can be differentiated twice.
Switch = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What one step does; None where something is not finite, or not scored.

    Attributes:
        step: signed ε.
        change: ΔL.
        predicted: ε gᵀw, its change to first order.
        error: |ΔL − ε gᵀw| / |ε gᵀw|.
        score: there.
    """

    step: float
    change: Estimate | None
    predicted: float
    error: Estimate | None
    score: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How far the loss is straight on one side.

    Attributes:
        size: the largest predictable step; None where there is none above round-off.
        open: whether no step that was tried goes beyond τ: `size` is a lower bound.
        edge: what a step of that size does.
    """

    size: Sizes | None
    open: bool
    edge: Effect | None


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearWindow:
    """Over which steps the loss is straight along a direction (measures §7).

    Attributes:
        forward, backward: measured, with the direction and against it: `size`, the largest
            predictable step in each unit, and whether it is `open`, a lower bound.
        predicted: 2τ|gᵀw|/|wᵀHw|, what curvature says of either side.
        limit: the smallest ε whose error can be told from round-off at this τ.
        whole: what the direction itself does, λ = 1; None where it was not tried.
        inside: whether it lies in the window; None where that is open, or it was not tried.
        units: what ε = 1 is in each: "relative" ‖δ‖/‖θ‖, "length" ‖δ‖, "multiple" λ.
        length: ‖v‖.
        line: the loss at every step; `line.profile()` has loss, score, slope and curvature.
        steps: those of the grid; the others close in on the edges and on round-off.
        method: how curvature was taken.
        refused: why it was not by double backward, where that was tried.

    >>> layer = torch.nn.Linear(2, 1, bias=False).double()
    >>> x = torch.eye(2, dtype=torch.float64)
    >>> loss = lambda rows: (layer(rows).square().sum(), len(rows))
    >>> space = ParameterSpace(layer)
    >>> window = linear_window(space, loss, [x], -0.1 * space.read(), whole=True)
    >>> window.inside, window.method
    (True, 'double backward')
    """

    forward: Reach
    backward: Reach
    predicted: Sizes | None
    limit: float
    whole: Effect | None
    inside: bool | None
    units: dict[str, float]
    length: float
    line: Line
    steps: Sequence[float]
    method: Method
    refused: str

    def __repr__(self) -> str:
        sides = {"forward": self.forward, "backward": self.backward}
        sizes = (f"{n} {r.size['relative'] if r.size else 'none'}" for n, r in sides.items())
        return f"LinearWindow(‖δ‖/‖θ‖ {', '.join(sizes)}; whole step inside: {self.inside})"


def linear_window(
    space: ParameterSpace,
    loss: SummedLoss[T],
    batches: Sequence[T],
    direction: Float[Tensor, " D"],
    *,
    tolerance: float = 0.1,
    steps: Sequence[float] | None = None,
    precision: float = 0.01,
    length: float | None = None,
    whole: bool = False,
    groups: Sequence[int] | None = None,
    tallies: Tallies | None = None,
    curvature: Literal["auto", "double backward", "finite differences"] = "auto",
    differentiable: Switch = nullcontext,
    progress: ProgressCallback = silent,
    keep: Kept[np.ndarray] = afresh,
    early: Callable[[LinearWindow], None] | None = None,
) -> LinearWindow:
    """Over which steps, both ways along a direction, is the loss straight?

    The window ε_τ is the largest step up to which |ΔL − ε gᵀw| ≤ τ|ε gᵀw| at every smaller step
    above round-off, w = ‖θ‖v/‖v‖. Measured on a grid, then by bisection; predicted from curvature,
    2τ|gᵀw|/|wᵀHw| (measures §7). Intervals are the jackknife's over groups of batches (Tukey 1958).
    The space is afterwards where it was, bit for bit.

    Args:
        space: standing at θ.
        loss: summed over the items of a batch, and how many those are.
        batches: what the mean is over.
        direction: v, of any length; λ counts in it.
        tolerance: τ.
        steps: signed ε in rising order, 0 among them; by default from 1e-6 to 1, two a decade.
        precision: relative width to which an edge is closed in on.
        length: ‖θ‖, where the space holds but the tensors of θ that the direction moves.
        whole: whether the direction itself is tried too, λ = 1.
        groups: of each batch, in rising order those of `tallies`; each is its own by default.
        tallies: measures the groups at a point, scores too, in place of `loss`.
        curvature: auto falls back on finite differences where a model refuses second derivatives.
        differentiable: entered while they are taken, such as `models.twice_differentiable`.
        progress: called with the stage and the share of it that is done.
        keep: has every derivative and every loss kept, for a call that goes on after a stop.
        early: called with the window as the grid alone shows it, before it is closed in on.

    Raises:
        LoclinError: no batches, a direction or a point of zeros, a loss that is not finite.
        NoSecondDerivative: by "double backward", where a kernel has none.

    >>> layer = torch.nn.Linear(2, 1, bias=False).double()
    >>> x = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
    >>> loss = lambda rows: (layer(rows).square().sum(), len(rows))
    >>> space = ParameterSpace(layer)
    >>> window = linear_window(space, loss, x.split(1), 2 * space.read())
    >>> print(window.forward.size["relative"], "or λ =", window.forward.size["multiple"])
    0.2 [0.2, 0.2] or λ = 0.1 [0.1, 0.1]
    """
    home = list(range(len(batches)) if groups is None else groups)
    if not batches or len(home) != len(batches):
        raise LoclinError(
            f"expected batches, with one group each, found {len(batches)} of {len(home)}: give both"
        )
    parts = [[b for b, g in zip(batches, home, strict=True) if g == i] for i in sorted(set(home))]
    measured = _kept_tallies(tallies or _tallies(loss, parts), keep)
    weights, size = norm(space.read()) if length is None else length, norm(direction)
    w = ray(space.read(), direction, length)
    units = {"relative": 1.0, "length": weights, "multiple": 1 / (size / weights)}
    slopes, curvatures, method, refused = _derivatives(
        space, loss, parts, w, curvature, differentiable, progress, keep
    )
    end = size / weights
    grid = sorted({*(steps or signed_grid(1e-6, 1.0, 2)), *([end] if whole else [])})
    bends = {"slopes": slopes, "curvatures": curvatures}
    line = line_along(space, measured, w, grid, **bends, progress=progress)

    def seen(line: Line) -> LinearWindow:
        predicted = over_groups(line, lambda p: p.predicted(tolerance), scale="log")
        return LinearWindow(
            forward=_reach(line, 1, tolerance, units),
            backward=_reach(line, -1, tolerance, units),
            predicted=_sizes(predicted, units),
            limit=line.profile().limit(tolerance),
            whole=_effect(line, end) if whole else None,
            inside=_inside(line, end, tolerance) if whole else None,
            units=units,
            length=size,
            line=line,
            steps=grid,
            method=method,
            refused=refused,
        )

    if early:
        early(seen(line))
    progress("closing in on the edges", 0.0)
    return seen(_closed_in(line, tolerance, precision))


def _inside(line: Line, end: float, tolerance: float) -> bool | None:
    """Whether a step lies in the window; None where that is open before it."""
    ahead = line.profile().window(1, tolerance)
    inside = ahead.size is not None and end <= ahead.size
    return inside if inside or not ahead.open else None


def _kept_tallies(tallies: Tallies, keep: Kept[np.ndarray]) -> Tallies:
    """The same, by their number: every call goes to the same points in the same order."""
    numbers = count()

    def measure() -> tuple[np.ndarray, np.ndarray]:
        name = f"loss {next(numbers)}"
        held = keep(name, lambda: dict(zip(("sums", "counts"), tallies(), strict=True)))
        return held["sums"], held["counts"]

    return measure


def _tallies(loss: SummedLoss[T], parts: Sequence[Sequence[T]]) -> Tallies:
    @torch.no_grad()
    def measure() -> tuple[np.ndarray, np.ndarray]:
        of = [
            [(float(value), count) for value, count in map(summed, map(loss, part))]
            for part in parts
        ]
        sums, counts = np.array([np.sum(part, axis=0) for part in of]).T
        return sums, counts

    return measure


def _tracked(parts: Sequence[T], stage: str, progress: ProgressCallback) -> Iterator[T]:
    for i, part in enumerate(parts):
        progress(stage, i / len(parts))
        yield part


def _derivatives(
    space: ParameterSpace,
    loss: SummedLoss[T],
    parts: Sequence[Sequence[T]],
    w: Tensor,
    wanted: str,
    differentiable: Switch,
    progress: ProgressCallback,
    keep: Kept[np.ndarray],
) -> tuple[np.ndarray, np.ndarray, Method, str]:
    """gᵀw and wᵀHw of every group, how these were taken, and why not by double backward."""

    def each(stage: str, of: Callable[[Sequence[T]], Tensor], name: str) -> np.ndarray:
        def value(part: Sequence[T]) -> dict[str, np.ndarray]:
            return {"value": np.array(inner(of(part), w))}

        shown = enumerate(_tracked(parts, stage, progress))
        return np.array([keep(f"{name} {i}", partial(value, p))["value"].item() for i, p in shown])

    slopes, refused = each("taking slopes", partial(space.gradient, loss), "slope"), ""

    def bent(method: Method) -> np.ndarray:
        def product(part: Sequence[T]) -> Tensor:
            return CurvatureOperator(space, loss, part, method=method) @ w

        return each("taking curvature", product, f"curvature by {method}")

    if wanted != "finite differences":
        try:
            with differentiable():
                return slopes, bent("double backward"), "double backward", ""
        except NoSecondDerivative as error:
            if wanted == "double backward":
                raise
            refused = str(error)
    return slopes, bent("finite differences"), "finite differences", refused


def _closed_in(line: Line, tolerance: float, precision: float) -> Line:
    """The line with further steps: below the grid where none is predictable, and at both edges."""
    step = float(np.min(np.abs(line.steps[line.steps != 0])))
    while True:  # a tenth at a time, until one is predictable on both sides or round-off begins
        profile, step = line.profile(), step / 10
        closed = all(profile.window(sign, tolerance).size is not None for sign in (1, -1))
        if closed or step < max(SMALLEST, profile.limit(tolerance)):
            break
        line = line.further([-step, step])
    for sign in (1, -1):
        low, high = line.profile().window(sign, tolerance).bracket or (1.0, 1.0)
        while high > low * (1 + precision):
            middle = math.sqrt(low * high)
            line = line.further([sign * middle])
            _, error, _ = line.profile().at(sign * middle)
            low, high = (middle, high) if error <= tolerance else (low, middle)
    return line


def _reach(line: Line, sign: int, tolerance: float, units: dict[str, float]) -> Reach:
    window = line.profile().window(sign, tolerance)
    if window.size is None:
        return Reach(size=None, open=window.open, edge=None)
    size = over_groups(line, lambda p: p.window(sign, tolerance).size, scale="log")
    edge = sign * window.size
    return Reach(
        size=_sizes(size, units), open=window.open, edge=_effect(line.further([edge]), edge)
    )


def _sizes(e: Estimate | None, units: dict[str, float]) -> Sizes | None:
    if e is None:
        return None
    value, low, high, n = e.value, e.low, e.high, e.n
    return {u: Estimate(value=value * x, low=low * x, high=high * x, n=n) for u, x in units.items()}


def _effect(line: Line, step: float) -> Effect:
    """What a step of the line does."""

    def each(i: int, scale: Scale = "plain") -> Estimate | None:
        return over_groups(line, lambda p: p.at(step)[i], scale=scale)

    first = step * line.profile().slope
    error, score = each(1, "log"), each(2, "score")
    return Effect(step=step, change=each(0), predicted=first, error=error, score=score)


def over_groups(
    line: Line, measure: Callable[[Profile], float | None], *, scale: Scale = "plain"
) -> Estimate | None:
    """A number of a line's profile with its interval over n groups: the jackknife (Tukey 1958).

    The standard error is √((n−1)/n Σ(x_i − x̄)²), x_i being the number without group i, with
    Student's t of n − 1 degrees of freedom. For a mean of equal groups it is the usual one. The
    interval is infinite where some x_i is not defined.

    Args:
        line: with losses by group.
        measure: of a profile; None where it is not defined.
        scale: on which the interval is taken (`stats.on_scale`), so that none leaves the range.
    """

    def number(without: int | None) -> float:
        value = measure(line.profile(without))
        if value is None or (scale == "log" and not 0 < value < math.inf):
            return math.nan
        return float(on_scale(value, scale))

    def back(x: float) -> float:
        return float(unscaled(min(x, 700.0) if scale == "log" else x, scale))

    value, place, n = measure(line.profile()), number(None), len(line.slopes)
    if value is None or math.isnan(place):
        return None
    held = np.array([number(i) for i in range(n)]) if n > 1 else np.array([math.nan])
    if not (math.isfinite(place) and np.isfinite(held).all()):
        return Estimate(value=value, low=-math.inf, high=math.inf, n=1)
    spread = math.sqrt((n - 1) / n * float(((held - held.mean()) ** 2).sum()))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread
    low, high = min(value, back(place - half)), max(value, back(place + half))
    return Estimate(value=value, low=low, high=high, n=n)
