"""What a line of losses says, as rows: curves, windows and what is inside them (measures §7).

Steps and windows are relative: ε‖θ‖ along a unit direction. Windows are averaged over runs as
logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.line import Profile, Window, additivity_error, first_order_window, predicted_additivity
from loclin.run.rows import Row, finite
from loclin.studies.linearity.names import BOTH, SIGNS

Context = Mapping[str, Any]
Number = float | None


def rows_of(here: Context, **values: Number | tuple[Number, Number]) -> Iterator[Row]:
    """A row for each quantity: its value, or its value and null."""
    for quantity, value in values.items():
        value, null = value if isinstance(value, tuple) else (value, None)
        yield Row(quantity=quantity, value=value, null=null, context=here)


def at_step(here: Context, step: float) -> dict[str, Any]:
    """Context of a signed step."""
    return {**here, "sign": SIGNS[1 if step > 0 else -1], "step": abs(float(step))}


def curve_rows(profile: Profile, here: Context, *, logarithms: bool = True) -> Iterator[Row]:
    """Loss change, relative error and score at every step, beside what slope and curvature say.

    Sizes are given as logarithms too, so that means over runs are geometric ones.
    """
    slope = profile.slope
    of = zip(profile.steps, profile.changes, profile.errors, profile.scores, strict=True)
    for step, change, error, score in of:
        there = at_step(here, step)
        yield from rows_of(there, loss_change=(finite(change), step * slope))
        if logarithms:
            bend = abs(step * profile.curvature / (2 * slope)) if slope else None
            size, line = log10(abs(change)), log10(abs(step * slope))
            errors = log10(error), log10(bend)
            yield from rows_of(there, log10_loss_change=(size, line), log10_error=errors)
        else:
            yield from rows_of(there, first_order_error=finite(error))
        yield from rows_of(there, score=float(score))


def line_rows(profile: Profile, tolerances: Sequence[float], here: Context) -> Iterator[Row]:
    """Slope, curvature and windows of one direction."""
    yield from rows_of(here, slope=profile.slope, curvature=profile.curvature)
    for tolerance in tolerances:
        there, limit = {**here, "tolerance": tolerance}, profile.limit(tolerance)
        yield from rows_of(there, log10_limit=log10(limit))
        windows = {sign: profile.window(sign, tolerance) for sign in SIGNS}
        yield from _window_rows(windows, profile.predicted(tolerance), limit, there)


def _window_rows(
    windows: Mapping[int, Window], predicted: float, limit: float, here: Context
) -> Iterator[Row]:
    """The windows of both sides and the smaller of them, beside the prediction from curvature.

    The prediction is held against windows that are closed: an open one is only known to be as large
    as it is. `window_width` counts the decades from the round-off limit.
    """
    expected, smaller = log10(predicted), smaller_window(windows)
    for sign, window in (*windows.items(), (0, smaller)):
        there, size = {**here, "sign": SIGNS.get(sign, BOTH)}, log10(window.size)
        none = float(window.size is None)
        yield from rows_of(there, log10_window=(size, expected), no_window=none)
    ratio = None if size is None or expected is None or smaller.open else expected - size
    opened = float(smaller.open)
    yield from rows_of(there, window_open=opened, log10_prediction_ratio=(ratio, 0.0))
    least = log10(limit)
    width = 0.0 if size is None else None if least is None else size - least
    yield Row(quantity="window_width", value=width, unit="decades", context=there)


def smaller_window(windows: Mapping[int, Window]) -> Window:
    """That of the side where linearity ends first; a side without a window has the smallest."""
    return min(windows.values(), key=lambda w: -math.inf if w.size is None else w.size)


def edge_rows(profile: Profile, change: Number, score: Number, here: Context) -> Iterator[Row]:
    """How much of the loss has changed at the edge of a window, and the score there."""
    share = None if change is None or not profile.loss else finite(abs(change) / profile.loss)
    yield Row(quantity="edge_loss_change", value=share, unit="share of the loss", context=here)
    yield from rows_of(here, edge_score=(score, profile.score))


def whole_rows(
    profile: Profile, step: float, end: Sequence[float], tolerance: float, here: Context
) -> Iterator[Row]:
    """A displacement taken as a whole: how long it is, in windows too, and what it does.

    Its length in windows is defined where the window is closed, and whether it is inside wherever
    that is known. `end` is loss change, error and score there.
    """
    window, (change, error, score) = profile.window(1, tolerance), end
    inside = window.size is not None and step <= window.size
    known = float(inside) if inside or not window.open else None
    windows = None if window.size is None or window.open else log10(step / window.size)
    yield from rows_of(here, log10_whole_step=log10(step))
    there, line = {**here, "tolerance": tolerance}, step * profile.slope
    yield from rows_of(there, log10_whole_in_windows=(windows, 0.0), whole_inside=known)
    yield from rows_of(here, log10_whole_error=log10(error))
    yield from rows_of(here, whole_loss_change=(finite(change), line))
    yield from rows_of(here, whole_score=(score, profile.score))


def pair_rows(
    steps: Float[np.ndarray, " n"],
    both: Float[np.ndarray, " n"],
    profiles: tuple[Profile, Profile],
    mixed: float,
    tolerances: Sequence[float],
    here: Context,
) -> Iterator[Row]:
    """Is the effect of the sum the sum of the effects: the error at every step, and its window on
    the smaller side.

    Args:
        steps: signed, in rising order, without 0.
        both: loss changes along the sum of the two rays there.
        profiles: of the two, at these steps or more.
        mixed: vᵀHw.
    """
    errors = additivity_error(both, *(p.on(steps).changes for p in profiles))
    for step, error in zip(steps, errors, strict=True):
        yield from rows_of(at_step(here, step), log10_additivity_error=log10(error))
    slopes = profiles[0].slope, profiles[1].slope
    # of one change; three are subtracted
    scatter = max(p.floor * abs(p.slope) if p.slope else 0.0 for p in profiles)
    total, unit = sum(map(abs, slopes)), profiles[0].unit
    floor = 2 * scatter / total if total else math.inf
    for tolerance in tolerances:
        windows = {
            sign: first_order_window(steps, errors, tolerance, floor, sign=sign, unit=unit)
            for sign in SIGNS
        }
        smaller = smaller_window(windows)
        expected = log10(predicted_additivity(slopes, mixed, tolerance))
        yield from rows_of(
            {**here, "tolerance": tolerance},
            log10_additivity_window=(log10(smaller.size), expected),
            no_additivity=float(smaller.size is None),
            additivity_open=float(smaller.open),
        )


def of_defined_tasks(rows: Iterable[Row]) -> Iterator[Row]:
    """All rows but those of a single task of a run (`on`) that are not defined: a run's mean over
    tasks is over the others. How many that leaves out is in `no_window` and `window_open`.
    """
    return (r for r in rows if r.value is not None or "on" not in r.context)


def log10(value: Number) -> Number:
    """The decimal logarithm; None where there is none.

    >>> log10(100.0), log10(0.0), log10(None)
    (2.0, None, None)
    """
    return math.log10(value) if value is not None and 0 < value < math.inf else None
