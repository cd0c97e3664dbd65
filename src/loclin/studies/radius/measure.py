"""The largest predictable step along a ray, both ways: sweep, close in, and what folds of the
examples say (measures §7, §14).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from loclin.record import Row, estimated, finite
from loclin.stats import CONFIDENCE, Estimate
from loclin.studies.rays import Line, Profile
from loclin.window import Window, bisected

SIGNS = {1: "+", -1: "−"}
SMALLEST = 1e-12  # a step that no float64 tells from none
#: Losses by fold at some signed steps.
Ask = Callable[[Sequence[float]], Float[np.ndarray, "steps twice"]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Scale:
    """What a step ε = 1 is.

    Attributes:
        weights: ‖θ‖ of the weights that move.
        vector: ‖v‖ of the direction as it was given.
    """

    weights: float
    vector: float

    @property
    def whole(self) -> float:
        """ε of the whole vector, λ = 1."""
        return self.vector / self.weights


def told_from_scatter(line: Line, ask: Ask) -> Line:
    """The same line with the tiny steps, of both signs, from which the scatter of the loss is read."""
    steps = line.profile().further_for_scatter()
    return line.joined(steps, ask(steps)) if steps else line


def closed_in(line: Line, ask: Ask, tolerance: float, *, precision: float) -> Line:
    """The same line with further steps: below the grid where no step of it is predictable, and
    around both edges.

    Args:
        line: swept over a grid.
        ask: for the losses at further steps.
        tolerance: τ.
        precision: relative width to which an edge is closed in on.
    """
    line = _from_below(line, ask, tolerance)
    for sign in SIGNS:
        bracket = line.profile().window(sign, tolerance).bracket
        if bracket is None:
            continue
        found: dict[float, np.ndarray] = {}

        def error(
            step: float, sign: int = sign, line: Line = line, found: dict[float, np.ndarray] = found
        ) -> float:
            found[sign * step] = ask([sign * step])[0]
            here = line.joined([sign * step], found[sign * step][None]).profile()
            return float(here.errors[here.steps == sign * step][0])

        bisected(error, bracket, tolerance, precision=precision)
        line = line.joined(list(found), np.stack(list(found.values())))
    return line


def _from_below(line: Line, ask: Ask, tolerance: float) -> Line:
    """Smaller steps, a tenth at a time, until one is predictable on both sides or round-off begins."""
    step = float(np.min(np.abs(line.steps[line.steps != 0])))
    while True:
        windows = [line.profile().window(sign, tolerance) for sign in SIGNS]
        step /= 10
        if all(w.size is not None for w in windows) or step < max(SMALLEST, windows[0].limit):
            return line
        line = line.joined([-step, step], ask([-step, step]))


def jackknifed(value: float, without: Sequence[float]) -> Estimate | None:
    """A value with its interval from what it would be without each of n groups: the jackknife
    (Tukey 1958), Student's t.

    The standard error is √((n−1)/n Σ(x_i − x̄)²), with n − 1 degrees of freedom. For a mean of
    equal groups it is the usual one.

    Returns:
        None where the value, or one of those without a group, is not defined.

    >>> print(jackknifed(2.0, [2.5, 2.0, 1.5]))
    2 [-0.484, 4.48]
    """
    n, held = len(without), np.asarray(without, dtype=float)
    if not math.isfinite(value) or not np.isfinite(held).all():
        return None
    spread = math.sqrt((n - 1) / n * float(((held - held.mean()) ** 2).sum()))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread
    return Estimate(value=value, low=value - half, high=value + half, n=n)


def over_folds(
    line: Line, measure: Callable[[Profile], float | None], *, powers: bool = False
) -> Estimate | None:
    """A number of a line's profile, with its interval over folds.

    Args:
        line: with losses by fold.
        measure: of a profile; None where it is not defined.
        powers: the interval is taken on the logarithm, for numbers above 0 that spread over
            decades.
    """

    def number(without: int | None) -> float:
        value = measure(line.profile(without))
        if value is None or (powers and not 0 < value < math.inf):
            return math.nan
        return math.log(value) if powers else value

    value = number(None)
    found = jackknifed(value, [number(i) for i in range(len(line.slopes))])
    if found is None:
        return (
            None
            if math.isnan(value)
            else Estimate(value=_up(value, powers), low=-math.inf, high=math.inf, n=1)
        )
    low, middle, high = (_up(x, powers) for x in (found.low, found.value, found.high))
    return Estimate(value=middle, low=low, high=high, n=found.n)


def _up(value: float, powers: bool) -> float:
    return math.exp(min(value, 700.0)) if powers else value


def radius_rows(line: Line, scale: Scale, tolerance: float) -> Iterator[Row]:
    """The radius both ways, in three units, with its prediction, and what the loss and the score
    are at its edge.
    """
    whole = line.profile()
    for sign, name in SIGNS.items():
        window = whole.window(sign, tolerance)
        here = {"sign": name, "tolerance": tolerance}
        size = over_folds(line, lambda p, sign=sign: p.window(sign, tolerance).size, powers=True)  # type: ignore[misc]
        for unit, factor in (("‖δ‖/‖θ‖", 1.0), ("‖δ‖", scale.weights), ("λ", 1 / scale.whole)):
            predicted = whole.predicted(tolerance) * factor
            yield estimated(
                "radius",
                _times(size, factor),
                here | {"as": unit},
                null=finite(predicted),
            )
        yield Row(quantity="radius_open", value=float(window.open), context=here)
    expected = over_folds(line, lambda p: p.predicted(tolerance), powers=True)
    for unit, factor in (("‖δ‖/‖θ‖", 1.0), ("‖δ‖", scale.weights), ("λ", 1 / scale.whole)):
        yield estimated(
            "predicted_radius", _times(expected, factor), {"as": unit, "tolerance": tolerance}
        )
    limit = whole.limit(tolerance)
    yield Row(quantity="limit", value=finite(limit), context={"tolerance": tolerance})


def edge_rows(line: Line, step: float, here: dict[str, object], name: str) -> Iterator[Row]:
    """Loss change, its relative error and the score at one signed step of the line.

    Nulls: the change to first order; the score before the step.
    """
    whole = line.profile()

    def at(values: Callable[[Profile], np.ndarray]) -> Estimate | None:
        return over_folds(line, lambda p: float(values(p)[p.steps == step][0]))

    yield estimated(f"{name}_loss_change", at(lambda p: p.changes), here, null=step * whole.slope)
    yield estimated(f"{name}_error", at(lambda p: p.errors), here)
    yield estimated(f"{name}_score", at(lambda p: p.scores), here, null=whole.score)


def whole_rows(line: Line, scale: Scale, tolerance: float) -> Iterator[Row]:
    """The whole vector, λ = 1: is it inside, and what does it do. The step must be one of the
    line's.
    """
    window: Window = line.profile().window(1, tolerance)
    inside = window.size is not None and scale.whole <= window.size
    here: dict[str, object] = {"tolerance": tolerance}
    known = inside or not window.open  # an open window ends nobody knows where
    yield Row(quantity="whole_step", value=scale.whole, context=here)
    yield Row(quantity="whole_inside", value=float(inside) if known else None, context=here)
    yield from edge_rows(line, scale.whole, here, "whole")


def curve_rows(line: Line) -> Iterator[Row]:
    """Loss change, relative error and score at every step of the line."""
    profile = line.profile()
    for step, change, error, score in zip(
        profile.steps, profile.changes, profile.errors, profile.scores, strict=True
    ):
        here = {"sign": SIGNS[1 if step > 0 else -1], "step": abs(float(step))}
        yield Row(
            quantity="loss_change", value=finite(change), null=step * profile.slope, context=here
        )
        yield Row(quantity="first_order_error", value=finite(error), context=here)
        yield Row(quantity="score", value=float(score), context=here)


def _times(estimate: Estimate | None, factor: float) -> Estimate | None:
    if estimate is None:
        return None
    low, value, high = (x * factor for x in (estimate.low, estimate.value, estimate.high))
    return Estimate(value=value, low=low, high=high, n=estimate.n)
