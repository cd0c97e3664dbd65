"""What many scored candidates say together: the error of a ladder, where it bends, and correlations
over candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from loclin.search.ensemble import best_of

DRAWS = 400  # simulated searches behind a chance error: known to 4 %

Values = Float[np.ndarray, " n"]


def chance_error(n: int, candidates: int) -> float:
    """E|b/m_N − 1| where b is the best-of-N mean over all draws of N from so many standard normals:
    what an exact law is off by.

    By simulation, of a fixed seed: 400 searches.

    >>> 0.04 < chance_error(20, 200) < 0.08
    True
    """
    rng = np.random.default_rng(0)
    found = np.array([best_of(rng.standard_normal(candidates), [n])[0] for _ in range(DRAWS)])
    return float(np.abs(found / found.mean() - 1).mean())


def bend(sigmas: Sequence[float], gains: Sequence[float], departure: float) -> float | None:
    """The first σ at which gain/σ has departed by a share from what it is at the smallest σ,
    interpolated in σ, which is exact for a quadratic.

    The candidates of all σ have the same directions, so the chance in the smallest one's gain is in
    all of them.

    Args:
        sigmas: growing.
        gains: of the best of N, at each.
        departure: the share, either way.

    Returns:
        None where it departs nowhere on the grid, or where the first gain is not positive.

    >>> round(bend([0.01, 0.1, 1.0], [0.01, 0.1, 0.6], 0.2), 3)
    0.55
    """
    slopes = np.asarray(gains) / np.asarray(sigmas)
    if not slopes[0] > 0:
        return None
    off = np.abs(slopes / slopes[0] - 1)
    past = np.flatnonzero(off >= departure)
    if not len(past):
        return None
    i = int(past[0])
    share = (departure - off[i - 1]) / (off[i] - off[i - 1])
    return float((1 - share) * sigmas[i - 1] + share * sigmas[i])


def correlation(x: Values, y: Values) -> float:
    """Pearson's r over the candidates where both are finite; NaN where one side is constant or
    fewer than three are left.
    """
    kept = np.isfinite(x) & np.isfinite(y)
    a, b = x[kept], y[kept]
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))


def overlap_correlation(
    *, sigma: float, trace: float, k: int, gradient: float, frobenius: float
) -> float:
    """Correlation of gain with ‖Qᵀδ‖² over candidates of a quadratic: −σ tr(QᵀHQ) / [√(2k) √(‖g‖² +
    σ²‖H‖_F²/2)].

    The overlap is even in δ and the linear gain odd, so to first order no plane's overlap goes with
    gain, not even that of a plane which holds all of g; what remains is the plane's curvature.

    Args:
        sigma: σ.
        trace: tr(QᵀHQ).
        k: columns of Q.
        gradient, frobenius: ‖g‖, ‖H‖_F in all coordinates.

    >>> round(overlap_correlation(sigma=0.1, trace=10.0, k=2, gradient=1.0, frobenius=0.0), 3)
    -0.5
    """
    spread = math.hypot(gradient, sigma * frobenius / math.sqrt(2))
    return -sigma * trace / (math.sqrt(2 * k) * spread) if spread else 0.0


def permuted_correlations(
    groups: Sequence[tuple[Values, Values]], *, draws: int, seed: int
) -> Float[np.ndarray, " draws"]:
    """Null draws of the mean of Pearson's r over runs: y is shuffled among the candidates of each
    run.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(draws)
    for x, y in groups:
        kept = np.isfinite(x) & np.isfinite(y)
        a, b = ((v - v.mean()) / v.std() for v in (x[kept], y[kept]))
        total += rng.permuted(np.tile(b, (draws, 1)), axis=1) @ a / len(a)
    return total / len(groups)
