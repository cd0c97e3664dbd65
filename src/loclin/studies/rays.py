"""The loss and the score of an exam along a ray of the weights, by folds of its examples (measures
§7).

Steps are relative, as everywhere in `window`: ε moves the point by ε‖θ‖ along a unit direction.
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
from loclin.models.exam import Exam
from loclin.parameters import ParameterSpace
from loclin.window import (
    Window,
    evaluation_noise,
    first_order_window,
    losses_along,
    predicted_window,
    relative_error,
    round_off,
    unit_round_off,
)

Array = Float[np.ndarray, " n"]
#: The scatter of the loss is read from the smallest steps that are at most this far below the one
#: where curvature doubles the change, but so many unit round-offs long that the weights move along
#: the line rather than from one rounding to the next.
STRAIGHT, SCATTER_STEPS, ROUNDINGS = 1e-3, 5, 30
SPREAD = 4.0  # from the least to the largest of them at least


@dataclass(frozen=True, eq=False, kw_only=True)
class Profile:
    """The loss of some folds along a ray.

    Attributes:
        steps: signed ε in rising order, without 0.
        changes: loss there less the loss at 0 (nats per answer token).
        scores: share answered right.
        loss, score: at ε = 0.
        slope, curvature: gᵀw and wᵀHw, the derivatives in ε.
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
        """Unit round-off of the evaluation."""
        return unit_round_off(self.dtype)

    @property
    def _straight(self) -> tuple[float, float]:
        """Between which steps the scatter is read."""
        least = ROUNDINGS * self.unit
        most = min(STRAIGHT * predicted_window(self.slope, self.curvature, 1.0), STRAIGHT)
        return least, max(most, SPREAD * least)

    def further_for_scatter(self) -> list[float]:
        """Signed steps that are still to be asked for enough pairs of opposite ones to read the
        scatter from.
        """
        least, most = self._straight
        pairs = [s for s in self.steps if least <= s <= most and -s in self.steps]
        wanted = np.geomspace(max(least, most / SPREAD**4), most, SCATTER_STEPS)
        new = [float(s) for s in wanted if s not in self.steps][
            : max(0, SCATTER_STEPS - len(pairs))
        ]
        return [sign * s for s in new for sign in (1, -1)]

    @property
    def noise(self) -> float:
        """Scatter of the loss, from the smallest steps that have an opposite (`evaluation_noise`).

        Where none lies between the bounds, from the smallest of all: rather too large a scatter
        than none.
        """
        least, most = self._straight
        pairs = [s for s in self.steps if s > 0 and -s in self.steps]
        small = [s for s in pairs if least <= s <= most][:SCATTER_STEPS] or pairs[:1]
        plus, minus = (
            np.array([self.changes[self.steps == sign * s][0] for s in small]) for sign in (1, -1)
        )
        return evaluation_noise(plus, minus, np.array(small), self.curvature)

    @property
    def floor(self) -> float:
        """Step at which the change of the loss drowns in its rounding."""
        return round_off(self.loss, self.slope, self.dtype, noise=self.noise)

    def limit(self, tolerance: float) -> float:
        """The smallest step whose error can be told from round-off at this τ
        (`first_order_window`).
        """
        return max(self.floor / tolerance, self.unit)

    def on(self, steps: Sequence[float] | Array) -> Profile:
        """The same profile at some of its steps alone; scatter and floor are then those of these."""
        kept = np.isin(self.steps, np.asarray(steps))
        return replace(
            self, steps=self.steps[kept], changes=self.changes[kept], scores=self.scores[kept]
        )

    def window(self, sign: int, tolerance: float) -> Window:
        """ε_τ on one side, measured."""
        side = np.flatnonzero(np.sign(self.steps) == sign)[::sign]
        steps, errors = np.abs(self.steps[side]), self.errors[side]
        return first_order_window(steps, errors, tolerance, self.floor, unit=self.unit)

    def predicted(self, tolerance: float) -> float:
        """ε_τ on either side, from slope and curvature alone."""
        return predicted_window(self.slope, self.curvature, tolerance)


@dataclass(frozen=True, eq=False, kw_only=True)
class Line:
    """The tallies of an exam along a ray, from which the profile of any folds follows.

    Attributes:
        steps: signed ε in rising order, 0 among them.
        sums: `Exam.tallies` at each.
        counts: tokens of every fold, then examples.
        slopes, curvatures: gᵀw and wᵀHw of every fold's mean loss.
        dtype: of the evaluation.
    """

    steps: Array
    sums: Float[np.ndarray, "steps twice"]
    counts: Float[np.ndarray, " twice"]
    slopes: Float[np.ndarray, " folds"]
    curvatures: Float[np.ndarray, " folds"]
    dtype: torch.dtype

    def profile(self, without: int | None = None) -> Profile:
        """All folds together, or all but one."""
        folds = len(self.slopes)
        kept = np.array([i for i in range(folds) if i != without])
        losses = self.sums[:, kept].sum(1) / self.counts[kept].sum()
        scores = self.sums[:, kept + folds].sum(1) / self.counts[kept + folds].sum()
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

    def joined(self, steps: Sequence[float], sums: Float[np.ndarray, "more twice"]) -> Line:
        """The same line with further steps."""
        every, rows = np.concatenate([self.steps, steps]), np.concatenate([self.sums, sums])
        order = np.argsort(every, kind="stable")
        return Line(
            steps=every[order],
            sums=rows[order],
            counts=self.counts,
            slopes=self.slopes,
            curvatures=self.curvatures,
            dtype=self.dtype,
        )


def signed_grid(smallest: float, largest: float, per_decade: int) -> list[float]:
    """ε from the smallest to the largest, so many in every decade, with both signs and 0, in rising
    order.

    >>> [round(s, 3) for s in signed_grid(0.1, 1.0, 2)]
    [-1.0, -0.316, -0.1, 0.0, 0.1, 0.316, 1.0]
    """
    count = max(2, round(math.log10(largest / smallest) * per_decade) + 1)
    steps = [float(f"{s:.6g}") for s in np.geomspace(smallest, largest, count)]
    return [*(-s for s in reversed(steps)), 0.0, *steps]


def line_along(
    space: ParameterSpace,
    exam: Exam,
    direction: Float[Tensor, " D"],
    steps: Sequence[float],
    *,
    slopes: Float[np.ndarray, " folds"],
    curvatures: Float[np.ndarray, " folds"],
    passed: Callable[[], None] = lambda: None,
) -> Line:
    """Sweep an exam along the ray w where the space stands; the space is back there afterwards.

    Args:
        space, exam: what is moved, what is asked.
        direction: w, of `window.ray`.
        steps: signed ε in rising order, 0 among them.
        slopes, curvatures: of every fold in ε.
        passed: called after every step, for a progress bar.

    Raises:
        LoclinError: the loss is not finite at ε = 0.
    """

    def asked() -> tuple[np.ndarray, np.ndarray]:
        found = exam.tallies()
        passed()
        return found

    sums, counts = losses_along(space, asked, direction, steps)
    finite_centre(sums[list(steps).index(0.0)], counts, exam.count)
    return Line(
        steps=np.asarray(steps, dtype=float),
        sums=sums,
        counts=counts,
        slopes=slopes,
        curvatures=curvatures,
        dtype=space.parameters[0].dtype,
    )


def finite_centre(
    sums: Float[np.ndarray, " twice"], counts: Float[np.ndarray, " twice"], folds: int
) -> None:
    """Raise for tallies of a loss that is not finite where the model stands."""
    centre = float(sums[:folds].sum() / counts[:folds].sum())
    if not math.isfinite(centre):
        raise LoclinError(
            f"expected a finite loss at the point itself, found {centre}: check the model, the "
            "data or --dtype"
        )
