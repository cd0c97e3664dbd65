"""First-order windows from loss changes along the gradient, its slope and its curvature."""

import math

import numpy as np

from tests.recompute import by_run, interval
from tests.recompute.models import models_of

POINTS = {"pretrained": "θ₀", "damaged": "θ_D"}


def estimates(
    settings: dict, arrays: dict[str, np.ndarray]
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """log10 of the window ε_τ along the gradient, the smaller of both signs."""
    double = "float64" in (settings["evaluate"], settings["dtype"])
    unit, found = 2.0 ** (-53 if double else -24), {}
    for point, symbol in POINTS.items():
        name = f"{point}/gradient"
        runs = sorted(int(k.split("/")[-1]) for k in arrays if k.startswith(f"line/{name}/"))
        starts = by_run(arrays, f"start/{name}")
        sizes = [
            window(arrays[f"line/{name}/{run}"], start, settings["tolerances"][0], unit)
            for run, start in zip(runs, starts, strict=True)
        ]
        found["first-order-window", symbol] = interval(np.log10(sizes), models_of(settings))
    return found


def window(line: np.ndarray, start: np.ndarray, tolerance: float, unit: float) -> float:
    """The largest step up to which |ΔL/(ε gᵀw) − 1| stays within τ; NaN where there is none above
    the round-off limit.
    """
    steps, changes = line[:, 0], line[:, 1]
    loss, slope, curvature = start
    rounding = max(unit * abs(loss), 4 * scatter(steps, changes, slope, curvature, unit))
    limit = max(rounding / abs(slope) / tolerance, unit)
    sizes = []
    for sign in (1, -1):
        side = np.argsort(np.abs(steps))
        side = side[(steps[side] * sign > 0) & (np.abs(steps[side]) >= limit)]
        at, off = np.abs(steps[side]), np.abs(changes[side] - steps[side] * slope)
        errors = off / np.abs(steps[side] * slope)
        beyond = np.flatnonzero(~(errors <= tolerance))
        if not len(at) or (len(beyond) and beyond[0] == 0):
            return math.nan
        sizes.append(crossing(at, errors, int(beyond[0]), tolerance) if len(beyond) else at[-1])
    return float(min(sizes))


def crossing(steps: np.ndarray, errors: np.ndarray, after: int, tolerance: float) -> float:
    """Where the error passes τ, by a straight line in log ε and log error."""
    if not math.isfinite(errors[after]):
        return float(steps[after - 1])
    low = math.log(max(errors[after - 1], 1e-12 * tolerance))
    share = (math.log(tolerance) - low) / (math.log(errors[after]) - low)
    return float(steps[after - 1] * (steps[after] / steps[after - 1]) ** min(max(share, 0), 1))


def scatter(
    steps: np.ndarray, changes: np.ndarray, slope: float, curvature: float, unit: float
) -> float:
    """Round-off of one loss, from L(ε) + L(−ε) − 2L(0) − ε²wᵀHw at the five smallest steps that are
    30 round-offs of the weights long at least, and small for curvature.
    """
    least = 30 * unit
    bends = 2 * abs(slope) / abs(curvature) if curvature else math.inf
    most = max(min(1e-3 * bends, 1e-3), 4 * least)
    at = dict(zip(steps.tolist(), changes.tolist(), strict=True))
    pairs = [s for s in sorted(at) if s > 0 and -s in at]
    small = [s for s in pairs if least <= s <= most][:5] or pairs[:1]
    rest = np.array([abs(at[s] + at[-s] - s**2 * curvature) for s in small])
    return float(np.median(rest)) / (0.6745 * math.sqrt(6)) if np.isfinite(rest).all() else 0.0
