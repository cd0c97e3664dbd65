"""The loss along a straight line of the weights, by groups of examples, and over which steps its
slope predicts it (measures §7).

Steps are relative: ε moves the point by ε‖θ‖ along a unit direction v, that is by εw with the ray
w = ‖θ‖v/‖v‖. Slope and curvature are the derivatives in ε: gᵀw and wᵀHw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.parameters import ParameterSpace
from loclin.progress import ProgressCallback, silent

Array = Float[np.ndarray, " n"]
#: Where the space stands: the summed losses of every group of examples, then the sums of their
#: scores if they have any; and how many items those sums are over, in the same order.
Tallies = Callable[[], tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " columns"]]]
#: The scatter of the loss is read from the smallest steps that are at most this far below the one
#: where curvature doubles the change, but so many unit round-offs long that the weights move along
#: the line rather than from one rounding to the next.
STRAIGHT, SCATTER_STEPS, ROUNDINGS = 1e-3, 5, 30
SPREAD = 4.0  # from the least to the largest of them at least


@dataclass(frozen=True, kw_only=True)
class Window:
    """The steps on one side of a direction over which the first-order error stays within τ.

    Attributes:
        size: ε_τ, the largest such step; None where there is none above round-off.
        open: whether no step that was tried goes beyond τ; `size` is then the last one tried.
        bracket: the last step tried within τ and the first beyond it, where there is a crossing.
    """

    size: float | None
    open: bool
    bracket: tuple[float, float] | None = None


def ray(
    point: Float[Tensor, " D"], direction: Float[Tensor, " D"], length: float | None = None
) -> Float[Tensor, " D"]:
    """w = ‖θ‖ v/‖v‖, ‖θ‖ of the point itself or `length`: the step ε = 1 along a direction.

    Raises:
        LoclinError: the direction is zero or not finite, or the point is zero.

    >>> ray(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]))
    tensor([0., 5.])
    """
    if not torch.isfinite(direction).all():
        raise LoclinError(
            "expected a finite direction, found NaN or infinity: check where it comes from"
        )
    own, whole = float(direction.norm()), float(point.norm()) if length is None else length
    for name, size in (("direction", own), ("point", whole)):
        if size == 0:
            raise LoclinError(
                f"expected a {name} that is not zero, found zeros: relative steps are not defined"
            )
    return direction * (whole / own)


def signed_grid(smallest: float, largest: float, per_decade: int) -> list[float]:
    """ε from the smallest to the largest, with both signs and 0, in rising order.

    >>> [round(s, 3) for s in signed_grid(0.1, 1.0, 2)]
    [-1.0, -0.316, -0.1, 0.0, 0.1, 0.316, 1.0]
    """
    count = max(2, round(math.log10(largest / smallest) * per_decade) + 1)
    steps = [float(f"{s:.6g}") for s in np.geomspace(smallest, largest, count)]
    return [*(-s for s in reversed(steps)), 0.0, *steps]


def losses_along(
    space: ParameterSpace,
    tallies: Tallies,
    direction: Float[Tensor, " D"],
    steps: Sequence[float],
    progress: ProgressCallback = silent,
) -> tuple[Float[np.ndarray, "steps columns"], Float[np.ndarray, " columns"]]:
    """The tallies at θ + εw for every ε, and the numbers of items, which do not change.

    Every step, of either sign and in any order, starts from θ itself, so that no rounding adds up.
    The point is restored bit for bit whatever happens; one copy of it is held. A loss that is not
    finite stays so. `progress` is called before every step.
    """
    if not len(steps):
        raise LoclinError("expected at least one step, found none: give a grid of steps")
    origin, measured = space.read(), []
    try:
        for i, step in enumerate(steps):
            progress("following the loss", i / len(steps))
            space.write(origin)
            space.add(direction, scale=step)
            measured.append(tallies())
    finally:
        space.write(origin)
    sums = np.stack([sums for sums, _ in measured]).astype(np.float64)
    return sums, np.asarray(measured[0][1], dtype=np.float64)


def relative_error(change: Array, step: Array, slope: float) -> Array:
    """|ΔL − ε gᵀw| / |ε gᵀw|; infinite where the loss is not finite or the slope is zero.

    >>> relative_error(np.array([1.1, np.nan]), np.array([1.0, 2.0]), 1.0).round(3)
    array([0.1, inf])
    """
    predicted = np.asarray(step, dtype=float) * slope
    return _share(np.asarray(change, dtype=float) - predicted, np.abs(predicted))


def additivity_error(both: Array, first: Array, second: Array) -> Array:
    """|Δ(v+w) − Δ(v) − Δ(w)| / (|Δ(v)| + |Δ(w)|) of loss changes at equal ε along v, w and their
    sum. On a quadratic the numerator is ε²|vᵀHw|.

    >>> additivity_error(np.array([3.5]), np.array([1.0]), np.array([2.0])).round(3)
    array([0.167])
    """
    return _share(both - first - second, np.abs(first) + np.abs(second))


def _share(off: Array, size: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(off) / size
    return np.where(np.isfinite(error), error, np.inf)


def first_order_window(
    steps: Array, errors: Array, tolerance: float, floor: float, *, sign: int = 1, unit: float = 0.0
) -> Window:
    """ε_τ: the largest step up to which the error stays within τ at every step tried above the
    round-off limit max(floor/τ, u): below u the weights themselves do not move.

    The crossing of τ is interpolated in log ε and log error: exact where the error is proportional
    to ε, as on a quadratic.

    Args:
        steps: ε in rising order, without 0.
        errors: at each.
        tolerance: τ.
        floor: step whose whole change is round-off; at ε, round-off alone is an error of floor/ε.
        sign: the side that is looked at, 1 or −1.
        unit: u, the unit round-off of the weights.

    >>> steps, errors = np.array([0.1, 1.0, 10.0]), np.array([0.01, 0.1, 1.0])
    >>> round(first_order_window(steps, errors, 0.2, floor=0.0).size, 6)
    2.0
    """
    if len(steps) != len(errors) or (np.diff(steps) <= 0).any() or not np.all(steps):
        raise LoclinError("expected steps in rising order, none 0, with one error each: sort them")
    side = np.flatnonzero(np.sign(steps) == sign)[::sign]
    steps, errors = np.abs(steps[side]), errors[side]
    tried = np.flatnonzero(steps >= max(floor / tolerance, unit))
    beyond = [i for i in tried if not errors[i] <= tolerance]
    if not len(tried) or (beyond and beyond[0] == tried[0]):
        return Window(size=None, open=False)
    if not beyond:
        return Window(size=float(steps[-1]), open=True)
    around = slice(beyond[0] - 1, beyond[0] + 1)
    low, high = steps[around].tolist()
    size = _crossing((low, high), errors[around].tolist(), tolerance)
    return Window(size=size, open=False, bracket=(low, high))


def _crossing(steps: Sequence[float], errors: Sequence[float], tolerance: float) -> float:
    """Where the error passes τ between two steps, by a straight line in log ε and log error."""
    if not math.isfinite(errors[1]):
        return steps[0]
    small = max(errors[0], 1e-12 * tolerance)  # an error of exactly zero has no logarithm
    share = (math.log(tolerance) - math.log(small)) / (math.log(errors[1]) - math.log(small))
    return float(steps[0] * (steps[1] / steps[0]) ** min(max(share, 0.0), 1.0))


def predicted_window(slope: float, curvature: float, tolerance: float) -> float:
    """ε_τ = 2τ|gᵀw|/|wᵀHw|, exact on a quadratic; infinite without curvature.

    >>> predicted_window(1.0, -4.0, 0.1)
    0.05
    """
    return 2 * tolerance * abs(slope) / abs(curvature) if curvature else math.inf


def predicted_additivity(slopes: tuple[float, float], mixed: float, tolerance: float) -> float:
    """τ(|gᵀv| + |gᵀw|)/|vᵀHw|: the window of additivity to first order in ε."""
    return tolerance * (abs(slopes[0]) + abs(slopes[1])) / abs(mixed) if mixed else math.inf


def evaluation_noise(plus: Array, minus: Array, steps: Array, curvature: float) -> float:
    """s, how much the loss scatters by round-off alone, from its changes at ±ε; 0 without any.

    L(ε) + L(−ε) − 2L(0) = ε²wᵀHw + noise of variance 6s² for independent errors of standard
    deviation s. From the median size of the rest, which for normal errors is 0.6745 of a standard
    deviation: a few steps that bend further leave it alone.
    """
    if not len(steps):
        return 0.0
    rest = np.abs(np.asarray(plus) + np.asarray(minus) - np.square(steps) * curvature)
    return float(np.median(rest)) / (0.6745 * math.sqrt(6)) if np.isfinite(rest).all() else 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Profile:
    """The loss of some examples along a ray.

    Attributes:
        steps: signed ε in rising order, without 0.
        changes: loss there less the loss at 0.
        scores: share answered right; NaN where there are no scores.
        loss, score: at ε = 0.
        slope, curvature: gᵀw and wᵀHw.
        dtype: of the evaluation.
    """

    steps: Array
    changes: Array
    scores: Array
    loss: float
    score: float
    slope: float
    curvature: float
    dtype: torch.dtype

    @property
    def errors(self) -> Array:
        """|ΔL − ε gᵀw| / |ε gᵀw| at every step."""
        return relative_error(self.changes, self.steps, self.slope)

    @property
    def unit(self) -> float:
        """u, half the step from 1 to the next number: the largest relative error of a rounding."""
        return float(torch.finfo(self.dtype).eps) / 2

    @property
    def _straight(self) -> tuple[float, float]:
        """Between which steps the scatter is read."""
        least = ROUNDINGS * self.unit
        most = min(STRAIGHT * self.predicted(1.0), STRAIGHT)
        return least, max(most, SPREAD * least)

    def further_for_scatter(self) -> list[float]:
        """Signed steps that are missing for enough opposite pairs to read the scatter from."""
        least, most = self._straight
        pairs = [s for s in self.steps if least <= s <= most and -s in self.steps]
        wanted = np.geomspace(max(least, most / SPREAD**4), most, SCATTER_STEPS)
        new = [float(s) for s in wanted if s not in self.steps]
        return [sign * s for s in new[: max(0, SCATTER_STEPS - len(pairs))] for sign in (1, -1)]

    @property
    def noise(self) -> float:
        """s from the smallest opposite steps; from the very smallest where none is small enough:
        rather too large a scatter than none.
        """
        least, most = self._straight
        pairs = [s for s in self.steps if s > 0 and -s in self.steps]
        small = [s for s in pairs if least <= s <= most][:SCATTER_STEPS] or pairs[:1]
        changes = dict(zip(self.steps, self.changes, strict=True))
        plus, minus = (np.array([changes[sign * s] for s in small]) for sign in (1, -1))
        return evaluation_noise(plus, minus, np.array(small), self.curvature)

    @property
    def floor(self) -> float:
        """max(u|L|, 4s)/|gᵀw|: the step at which the change of the loss drowns in its rounding.

        A pass through a network rounds at every operation, so that s may well exceed u|L|. A change
        is the difference of two losses: 4s is nearly three of its standard deviations, √2·s.
        """
        rounding = max(self.unit * abs(self.loss), 4 * self.noise)
        return rounding / abs(self.slope) if self.slope else math.inf

    def limit(self, tolerance: float) -> float:
        """The smallest step whose error can be told from round-off at this τ."""
        return max(self.floor / tolerance, self.unit)

    def on(self, steps: Sequence[float] | Array) -> Profile:
        """The same at some of its steps alone; scatter and floor are then those of these."""
        kept = np.isin(self.steps, np.asarray(steps))
        changes, scores = self.changes[kept], self.scores[kept]
        return replace(self, steps=self.steps[kept], changes=changes, scores=scores)

    def at(self, step: float) -> tuple[float, float, float]:
        """Loss change, its relative error and score at one of its steps."""
        (i,) = np.flatnonzero(self.steps == step)
        return float(self.changes[i]), float(self.errors[i]), float(self.scores[i])

    def window(self, sign: int, tolerance: float) -> Window:
        """ε_τ on one side, measured."""
        floor, unit = self.floor, self.unit
        return first_order_window(self.steps, self.errors, tolerance, floor, sign=sign, unit=unit)

    def predicted(self, tolerance: float) -> float:
        """ε_τ on either side, from slope and curvature alone."""
        return predicted_window(self.slope, self.curvature, tolerance)


@dataclass(frozen=True, eq=False, kw_only=True)
class Line:
    """The tallies along a ray, from which the profile of any groups follows.

    Attributes:
        steps: signed ε in rising order, 0 among them.
        sums, counts: the tallies there, and their numbers of items.
        slopes, curvatures: gᵀw and wᵀHw of every group's mean loss.
        dtype: of the evaluation.
        measure: gives the tallies at further steps, as long as the space stands at θ.
    """

    steps: Array
    sums: Float[np.ndarray, "steps columns"]
    counts: Float[np.ndarray, " columns"]
    slopes: Float[np.ndarray, " groups"]
    curvatures: Float[np.ndarray, " groups"]
    dtype: torch.dtype
    measure: Callable[[Sequence[float]], Float[np.ndarray, "steps columns"]]

    def profile(self, without: int | None = None) -> Profile:
        """All groups together, or all but one."""
        kept = np.array([i for i in range(len(self.slopes)) if i != without])
        losses, scores = self._mean(kept), self._mean(kept + len(self.slopes))
        weights = self.counts[kept] / self.counts[kept].sum()
        (centre,) = np.flatnonzero(self.steps == 0)
        away = self.steps != 0
        return Profile(
            steps=self.steps[away],
            changes=(losses - losses[centre])[away],
            scores=scores[away],
            loss=float(losses[centre]),
            score=float(scores[centre]),
            slope=float(weights @ self.slopes[kept]),
            curvature=float(weights @ self.curvatures[kept]),
            dtype=self.dtype,
        )

    def _mean(self, columns: np.ndarray) -> Array:
        if columns.max() >= len(self.counts):  # there are no scores
            return np.full(len(self.steps), np.nan)
        means: np.ndarray = self.sums[:, columns].sum(1) / self.counts[columns].sum()
        return means

    def further(self, steps: Sequence[float]) -> Line:
        """The same line, followed at further steps too."""
        new = [s for s in dict.fromkeys(steps) if s not in self.steps]
        if not new:
            return self
        every = np.concatenate([self.steps, new])
        sums, order = np.concatenate([self.sums, self.measure(new)]), np.argsort(every)
        return replace(self, steps=every[order], sums=sums[order])


def line_along(
    space: ParameterSpace,
    tallies: Tallies,
    direction: Float[Tensor, " D"],
    steps: Sequence[float],
    *,
    slopes: Float[np.ndarray, " groups"],
    curvatures: Float[np.ndarray, " groups"],
    progress: ProgressCallback = silent,
) -> Line:
    """Follow the loss at some steps along the ray w, and at tiny ones to read its scatter from.

    Args:
        space, tallies, direction, progress: as in `losses_along`.
        steps: in rising order, 0 among them.
        slopes, curvatures: gᵀw and wᵀHw of every group.

    Raises:
        LoclinError: the loss is not finite at ε = 0.
    """
    sums, counts = losses_along(space, tallies, direction, steps, progress)
    check_finite(sums[list(steps).index(0.0)], counts, len(slopes))
    line = Line(
        steps=np.asarray(steps, dtype=float),
        sums=sums,
        counts=counts,
        slopes=slopes,
        curvatures=curvatures,
        dtype=space.parameters[0].dtype,
        measure=lambda more: losses_along(space, tallies, direction, more)[0],
    )
    return line.further(line.profile().further_for_scatter())


def check_finite(sums: np.ndarray, counts: np.ndarray, groups: int) -> None:
    """Raise for tallies of a loss that is not finite where the model stands."""
    centre = float(sums[:groups].sum() / counts[:groups].sum())
    if not math.isfinite(centre):
        raise LoclinError(
            f"expected a finite loss at the point itself, found {centre}: check the model, the "
            "data or --dtype"
        )
