"""How far is the loss straight along a direction: the first-order window, its prediction from
curvature, its round-off limit.

Steps are relative everywhere (measures §7): a step ε moves the point by ε‖θ‖ along a unit direction
v, that is by εw with the ray w = ‖θ‖v/‖v‖ of `ray`. Slope and curvature are those in ε: gᵀw and
wᵀHw. The paper's Figure 6 does the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.parameters import ParameterSpace

T = TypeVar("T")
Array = Float[np.ndarray, " n"]
#: Summed loss and number of items of every group of examples, where the space stands.
GroupLosses = Callable[[], tuple[Float[np.ndarray, " groups"], Float[np.ndarray, " groups"]]]


@dataclass(frozen=True, kw_only=True)
class Window:
    """The steps from 0 along one side of a direction over which the first-order error stays within
    a tolerance τ.

    Attributes:
        size: ε_τ, the largest such step; None where no step above round-off stays within τ.
        open: whether no step that was tried goes beyond τ; `size` is then the last one tried, and
            the window at least that.
        limit: the smallest step whose error can be told from round-off at this τ: floor/τ, or the
            unit round-off if larger.
        bracket: the last step tried within τ and the first beyond it, for `bisected`; None where
            there is no crossing.
    """

    size: float | None
    open: bool
    limit: float
    bracket: tuple[float, float] | None = None


def ray(point: Float[Tensor, " D"], direction: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
    """w = ‖θ‖ v/‖v‖: the step ε = 1 along a direction, as long as the point itself.

    Raises:
        LoclinError: the direction is zero or not finite, or the point is zero.

    >>> ray(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]))
    tensor([0., 5.])
    """
    if not torch.isfinite(direction).all():
        raise LoclinError(
            "expected a finite direction, found NaN or infinity: check where it comes from"
        )
    length, whole = float(direction.norm()), float(point.norm())
    if length == 0:
        raise LoclinError(
            "expected a direction that is not zero, found zeros: there is nothing to step along"
        )
    if whole == 0:
        raise LoclinError(
            "expected a point that is not zero, found zeros: relative steps are not defined there"
        )
    return direction * (whole / length)


def along(
    space: ParameterSpace,
    direction: Float[Tensor, " D"],
    steps: Sequence[float],
    measure: Callable[[], T],
) -> Iterator[T]:
    """What `measure` gives at θ + εw for every ε in `steps`; the point is restored bit for bit
    whatever happens.

    Every step starts from θ itself, so that no rounding adds up. One copy of θ is held. The space
    is moved while the iterator runs: finish it, or close it.

    Args:
        space: standing at θ.
        direction: the ray w.
        steps: ε of both signs, in any order.
        measure: called at each of the points.
    """
    origin = space.read()
    try:
        for step in steps:
            space.write(origin)
            space.add(direction, scale=step)
            yield measure()
    finally:
        space.write(origin)


def losses_along(
    space: ParameterSpace,
    losses: GroupLosses,
    direction: Float[Tensor, " D"],
    steps: Sequence[float],
) -> tuple[Float[np.ndarray, "steps groups"], Float[np.ndarray, " groups"]]:
    """Summed losses of every group of examples at θ + εw, and the groups' numbers of items.

    One sweep serves every group and every union of groups: sums add up. A loss that is not finite
    stays so.

    Args:
        space, direction, steps: as in `along`.
        losses: the groups' summed losses and counts where the space stands; the counts do not
            change.
    """
    found = list(along(space, direction, steps, losses))
    if not found:
        raise LoclinError("expected at least one step, found none: give a grid of steps")
    return np.stack([sums for sums, _ in found]).astype(np.float64), np.asarray(
        found[0][1], dtype=np.float64
    )


def relative_error(change: Array, step: Array, slope: float) -> Array:
    """|ΔL − ε gᵀw| / |ε gᵀw|; infinite where the loss is not finite or the slope is zero.

    >>> relative_error(np.array([1.1, np.nan]), np.array([1.0, 2.0]), 1.0).round(3)
    array([0.1, inf])
    """
    predicted = np.asarray(step, dtype=float) * slope
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(np.asarray(change, dtype=float) - predicted) / np.abs(predicted)
    return np.where(np.isfinite(error), error, np.inf)


def first_order_window(
    steps: Array, errors: Array, tolerance: float, floor: float, *, unit: float = 0.0
) -> Window:
    """ε_τ: the largest step up to which the error stays within τ at every step tried above the
    round-off limit.

    That limit is max(floor/τ, u): below the unit round-off u of their dtype the weights themselves
    do not move.

    The crossing between the last step within τ and the first beyond it is interpolated in log ε and
    log error; where the error is proportional to ε, as on a quadratic, that is exact.

    Args:
        steps: lengths ε > 0 in rising order, all of one sign of the direction.
        errors: the relative error at each.
        tolerance: τ.
        floor: step whose whole change is round-off (`round_off`); at ε, round-off alone makes an
            error of floor/ε.
        unit: u, relative as the steps are.

    >>> window = first_order_window(np.array([0.1, 1.0, 10.0]), np.array([0.01, 0.1, 1.0]), 0.2, 0.0)
    >>> round(window.size, 6), window.open
    (2.0, False)
    """
    if len(steps) != len(errors) or (np.diff(steps) <= 0).any() or (len(steps) and steps[0] <= 0):
        raise LoclinError("expected steps above 0 in rising order with one error each: sort them")
    limit = max(floor / tolerance, unit)
    tried = np.flatnonzero(np.asarray(steps) >= limit)
    beyond = [i for i in tried if not errors[i] <= tolerance]
    if not len(tried) or (beyond and beyond[0] == tried[0]):
        return Window(size=None, open=False, limit=limit)
    if not beyond:
        return Window(size=float(steps[-1]), open=True, limit=limit)
    first = beyond[0]
    low, high = float(steps[first - 1]), float(steps[first])
    size = _crossing((low, high), (float(errors[first - 1]), float(errors[first])), tolerance)
    return Window(size=size, open=False, limit=limit, bracket=(low, high))


def _crossing(steps: tuple[float, float], errors: tuple[float, float], tolerance: float) -> float:
    """Where the error passes τ between two steps, by a straight line in log ε and log error."""
    if not math.isfinite(errors[1]):
        return steps[0]
    small = max(errors[0], 1e-12 * tolerance)  # an error of exactly nought has no logarithm
    share = (math.log(tolerance) - math.log(small)) / (math.log(errors[1]) - math.log(small))
    return float(steps[0] * (steps[1] / steps[0]) ** min(max(share, 0.0), 1.0))


def bisected(
    error: Callable[[float], float],
    bracket: tuple[float, float],
    tolerance: float,
    *,
    precision: float = 1e-3,
) -> float:
    """The step at which the error passes τ inside a bracket, by bisection in log ε.

    Args:
        error: the relative error at a step.
        bracket: a step within τ and a longer one beyond it, of `Window.bracket`.
        tolerance: τ.
        precision: relative width of the bracket at which to stop.

    Returns:
        The last step found within τ: the error there does not exceed it.

    >>> round(bisected(lambda step: step / 4, (0.1, 9.0), 0.5, precision=1e-6), 4)
    2.0
    """
    low, high = bracket
    if not 0 < low < high:
        raise LoclinError(f"expected a bracket 0 < low < high, found {bracket}: give two steps")
    while high > low * (1 + precision):
        middle = math.sqrt(low * high)
        if error(middle) <= tolerance:
            low = middle
        else:
            high = middle
    return low


def predicted_window(slope: float, curvature: float, tolerance: float) -> float:
    """ε_τ = 2τ|gᵀw|/|wᵀHw|: the window of the quadratic with this slope and curvature; infinite
    without curvature.

    >>> predicted_window(1.0, -4.0, 0.1)
    0.05
    """
    return 2 * tolerance * abs(slope) / abs(curvature) if curvature else math.inf


def predicted_additivity(slopes: tuple[float, float], mixed: float, tolerance: float) -> float:
    """τ(|gᵀv| + |gᵀw|)/|vᵀHw|: the additivity window to first order in ε; infinite where vᵀHw is
    zero.
    """
    return tolerance * (abs(slopes[0]) + abs(slopes[1])) / abs(mixed) if mixed else math.inf


def unit_round_off(dtype: torch.dtype) -> float:
    """u, the largest relative error of one rounding: half the distance from 1 to the next number
    (measures §7).

    >>> unit_round_off(torch.float32) == 2.0**-24
    True
    """
    return float(torch.finfo(dtype).eps) / 2


def round_off(loss: float, slope: float, dtype: torch.dtype, *, noise: float = 0.0) -> float:
    """max(u|L|, 4s)/|gᵀw|: the step at which the change of the loss drowns in its rounding.

    u is the unit round-off of the dtype (measures §7), s the scatter that was measured
    (`evaluation_noise`): a change is the difference of two losses, and 4s is nearly three of its
    standard deviations, √2·s.

    >>> round_off(2.0, 4.0, torch.float64) == 0.5 * 2.0**-53
    True
    """
    return max(unit_round_off(dtype) * abs(loss), 4 * noise) / abs(slope) if slope else math.inf


def evaluation_noise(plus: Array, minus: Array, steps: Array, curvature: float) -> float:
    """s, how much the loss scatters for no reason but round-off, from steps too small to bend it
    otherwise than by curvature.

    L(ε) + L(−ε) − 2L(0) = ε²wᵀHw + noise of variance 6s² for independent errors of standard
    deviation s. A pass through a network rounds at every operation, so that s may well exceed u|L|.
    From the median size of the rest, which a few steps that do bend it further leave alone: for
    normal errors that is 0.6745 of a standard deviation.

    Args:
        plus, minus: loss changes at +ε and −ε.
        steps: ε of each.
        curvature: wᵀHw.

    Returns:
        s; 0 where nothing is given or not all of it is finite.
    """
    if not len(steps):
        return 0.0
    rest = np.abs(np.asarray(plus) + np.asarray(minus) - np.square(steps) * curvature)
    return float(np.median(rest)) / (0.6745 * math.sqrt(6)) if np.isfinite(rest).all() else 0.0


def additivity_error(both: Array, first: Array, second: Array) -> Array:
    """|Δ(v+w) − Δ(v) − Δ(w)| / (|Δ(v)| + |Δ(w)|) of loss changes at equal ε along v, w and their
    sum.

    The window of additivity is `first_order_window` of it. On a quadratic the numerator is
    ε²|vᵀHw|.

    >>> additivity_error(np.array([3.5]), np.array([1.0]), np.array([2.0])).round(3)
    array([0.167])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(both - first - second) / (np.abs(first) + np.abs(second))
    return np.where(np.isfinite(error), error, np.inf)
