"""What a line of losses says, as rows: the curves, the windows and what is inside them (measures
§7).

Steps and windows are relative: ε‖θ‖ along a unit direction. Windows are averaged over runs as
logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.record import Row, finite
from loclin.studies.rays import Profile
from loclin.window import (
    Window,
    additivity_error,
    first_order_window,
    predicted_additivity,
    relative_error,
)

SIGNS = {1: "+", -1: "−"}
BOTH = "both"
Context = Mapping[str, Any]


def line_rows(profile: Profile, tolerances: tuple[float, ...], here: Context) -> Iterator[Row]:
    """Slope, curvature and windows of one direction.

    `log10_window` of sign "both" is the smaller side's; its null is what curvature predicts.
    `window_width` counts the decades from the round-off limit to it, none where there is no window
    above that limit.
    """
    yield Row(quantity="slope", value=profile.slope, context=dict(here))
    yield Row(quantity="curvature", value=profile.curvature, context=dict(here))
    for tolerance in tolerances:
        there = {**here, "tolerance": tolerance}
        limit = profile.limit(tolerance)
        yield Row(quantity="log10_limit", value=log10(limit), context=there)
        windows = {sign: profile.window(sign, tolerance) for sign in SIGNS}
        yield from window_rows(windows, profile.predicted(tolerance), limit, there)


def curve_rows(profile: Profile, here: Context) -> Iterator[Row]:
    """Loss change, relative error and score at every step, the first two beside what slope and
    curvature say.

    Sizes are logarithms too, so that means over runs are geometric ones.
    """
    for step, change, error, score in zip(
        profile.steps, profile.changes, profile.errors, profile.scores, strict=True
    ):
        there = {**here, "sign": SIGNS[1 if step > 0 else -1], "step": abs(float(step))}
        bend = abs(step * profile.curvature / (2 * profile.slope)) if profile.slope else None
        yield Row(
            quantity="loss_change", value=finite(change), null=step * profile.slope, context=there
        )
        size, line = log10(abs(change)), log10(abs(step * profile.slope))
        yield Row(quantity="log10_loss_change", value=size, null=line, context=there)
        yield Row(quantity="log10_error", value=log10(error), null=log10(bend), context=there)
        yield Row(quantity="score", value=float(score), context=there)


def window_rows(
    windows: Mapping[int, Window], predicted: float, limit: float, here: Context
) -> Iterator[Row]:
    """The windows of both sides and the smaller of them, the prediction, and the decades above
    round-off.

    The prediction is held against windows that were measured: an open one is only known to be as
    large as it is.
    """
    for sign, window in windows.items():
        yield Row(
            quantity="log10_window",
            value=log10(window.size),
            null=log10(predicted),
            context={**here, "sign": SIGNS[sign]},
        )
        yield Row(
            quantity="no_window",
            value=float(window.size is None),
            context={**here, "sign": SIGNS[sign]},
        )
    smaller = smaller_window(windows)
    there = {**here, "sign": BOTH}
    size = log10(smaller.size)
    yield Row(quantity="log10_window", value=size, null=log10(predicted), context=there)
    yield Row(quantity="no_window", value=float(smaller.size is None), context=there)
    yield Row(quantity="window_open", value=float(smaller.open), context=there)
    expected, least = log10(predicted), log10(limit)
    ratio = None if size is None or expected is None or smaller.open else expected - size
    yield Row(quantity="log10_prediction_ratio", value=ratio, null=0.0, context=there)
    width = 0.0 if size is None else None if least is None else size - least
    yield Row(quantity="window_width", value=width, unit="decades", context=there)


def smaller_window(windows: Mapping[int, Window]) -> Window:
    """That of the side where linearity ends first; a side without a window counts as the smallest."""
    return min(windows.values(), key=lambda w: -math.inf if w.size is None else w.size)


def edge_rows(
    profile: Profile, change: float | None, score: float | None, here: Context
) -> Iterator[Row]:
    """How much of the loss has changed at the edge of a window, and the score there; nothing where
    there is no window.
    """
    share = None if change is None or not profile.loss else finite(abs(change) / profile.loss)
    yield Row(
        quantity="edge_loss_change", value=share, unit="share of the loss", context=dict(here)
    )
    yield Row(quantity="edge_score", value=score, null=profile.score, context=dict(here))


def whole_rows(
    profile: Profile,
    step: float,
    change: float,
    score: float,
    window: Window,
    tolerance: float,
    here: Context,
) -> Iterator[Row]:
    """A displacement taken as a whole: how long it is, in windows too, and what it does beside what
    its slope says.

    Its length in windows is defined where the window is closed, and whether it is inside wherever
    that is known.
    """
    inside = window.size is not None and step <= window.size
    known = inside or not window.open
    yield Row(quantity="log10_whole_step", value=log10(step), context=dict(here))
    there = {**here, "tolerance": tolerance}
    windows = None if window.size is None or window.open else log10(step / window.size)
    yield Row(quantity="log10_whole_in_windows", value=windows, null=0.0, context=there)
    yield Row(quantity="whole_inside", value=float(inside) if known else None, context=there)
    error = relative_error(np.array([change]), np.array([step]), profile.slope)
    yield Row(quantity="log10_whole_error", value=log10(float(error[0])), context=dict(here))
    yield Row(
        quantity="whole_loss_change",
        value=finite(change),
        null=step * profile.slope,
        context=dict(here),
    )
    yield Row(quantity="whole_score", value=score, null=profile.score, context=dict(here))


def pair_rows(
    steps: Float[np.ndarray, " n"],
    both: Float[np.ndarray, " n"],
    profiles: tuple[Profile, Profile],
    mixed: float,
    tolerances: tuple[float, ...],
    here: Context,
) -> Iterator[Row]:
    """Is the effect of the sum the sum of the effects: the error at every step, and its window on
    the smaller side.

    Args:
        steps: signed, in rising order, without 0.
        both: loss changes along the sum of the two rays there.
        profiles: of the two, at these steps or more.
        mixed: vᵀHw.
        tolerances: τ.
        here: context.
    """
    first, second = profiles
    errors = additivity_error(both, *(p.on(steps).changes for p in profiles))
    for step, error in zip(steps, errors, strict=True):
        there = {**here, "sign": SIGNS[1 if step > 0 else -1], "step": abs(float(step))}
        yield Row(quantity="log10_additivity_error", value=log10(error), context=there)
    slopes = first.slope, second.slope
    scatter = max(
        p.floor * abs(p.slope) if p.slope else 0.0 for p in profiles
    )  # of one change; three are subtracted
    total = sum(map(abs, slopes))
    floor = 2 * scatter / total if total else math.inf
    for tolerance in tolerances:
        windows = {}
        for sign in SIGNS:
            side = np.flatnonzero(np.sign(steps) == sign)[::sign]
            windows[sign] = first_order_window(
                np.abs(steps[side]), errors[side], tolerance, floor, unit=first.unit
            )
        smaller, expected = smaller_window(windows), predicted_additivity(slopes, mixed, tolerance)
        there = {**here, "tolerance": tolerance}
        yield Row(
            quantity="log10_additivity_window",
            value=log10(smaller.size),
            null=log10(expected),
            context=there,
        )
        yield Row(quantity="no_additivity", value=float(smaller.size is None), context=there)
        yield Row(quantity="additivity_open", value=float(smaller.open), context=there)


def of_defined_tasks(rows: Iterable[Row]) -> Iterator[Row]:
    """All rows but those of a single task of a run (`on`) that are not defined: a run's mean over
    tasks is over the others.

    How many that leaves out is in `no_window` and `window_open`.
    """
    return (r for r in rows if r.value is not None or "on" not in r.context)


def log10(value: float | None) -> float | None:
    """The decimal logarithm; None where there is none.

    >>> log10(100.0), log10(0.0), log10(None)
    (2.0, None, None)
    """
    return math.log10(value) if value is not None and 0 < value < math.inf else None
