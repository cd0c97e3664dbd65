"""Correlations of pairs, over runs, and their nulls by permutation (measures §14).

What is not defined is NaN or None; no function raises for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from loclin.stats import Estimate, Numbers, student_t

Conditions = Float[np.ndarray, "conditions S"]


def correlation(x: Numbers, y: Numbers) -> float:
    """Pearson's r = Σ(x−x̄)(y−ȳ)/√(Σ(x−x̄)² Σ(y−ȳ)²) over the pairs where both are finite; NaN
    where one side is constant or fewer than three are left.

    >>> correlation([1.0, 2.0, 3.0, math.nan], [2.0, 4.0, 6.0, 0.0])
    1.0
    """
    a, b = (np.asarray(side, dtype=float) for side in (x, y))
    kept = np.isfinite(a) & np.isfinite(b)
    a, b = a[kept], b[kept]
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))


def permuted_correlations(
    groups: Sequence[tuple[np.ndarray, np.ndarray]], *, draws: int, seed: int
) -> Float[np.ndarray, " draws"]:
    """Null draws of the mean of Pearson's r over runs: y is shuffled within each run, whose
    x and y have one length and are not constant.

    >>> place = np.arange(6.0)
    >>> bool(abs(permuted_correlations([(place, place)], draws=999, seed=0).mean()) < 0.1)
    True
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(draws)
    for x, y in groups:
        kept = np.isfinite(x) & np.isfinite(y)
        a, b = ((v - v.mean()) / v.std() for v in (x[kept], y[kept]))
        total += rng.permuted(np.tile(b, (draws, 1)), axis=1) @ a / len(a)
    return total / len(groups)


def rank_correlation(x: Numbers, y: Numbers) -> float:
    """Spearman's ρ: r of the ranks; NaN for a NaN, a constant side, fewer than three pairs.

    >>> rank_correlation([1.0, 2.0, 3.0], [1.0, 4.0, 9.0])
    1.0
    """
    return correlation(*(stats.rankdata(np.asarray(side, dtype=float)) for side in (x, y)))


def permuted_rank_correlations(
    groups: Sequence[tuple[np.ndarray, np.ndarray]], *, draws: int, seed: int
) -> Float[np.ndarray, " draws"]:
    """Null draws of the mean of Spearman's ρ over runs, (x, y) of one length, not constant.

    y is shuffled alike in every run: what stands at one place (a type of basis) is the same thing
    in all of them, and does not become independent by being measured again (measures §14). Draws
    are raised by 1e-12, so that round-off puts none that equals what was observed below it.

    >>> place = np.arange(5.0)
    >>> null = permuted_rank_correlations([(place, place**2)] * 3, draws=999, seed=0)
    >>> from loclin.stats import permutation_p
    >>> permutation_p(1.0, null) < 0.05  # in order, in every run
    True
    """
    rng, count = np.random.default_rng(seed), len(groups[0][0])
    orders = rng.permuted(np.tile(np.arange(count), (draws, 1)), axis=1)
    first, second = (
        stats.zscore(stats.rankdata(side, axis=1), axis=1) for side in zip(*groups, strict=True)
    )
    products = [b[orders] @ a / count for a, b in zip(first, second, strict=True)]
    return np.asarray(np.mean(products, axis=0) + 1e-12)


def mean_rank_correlation(x: Conditions, y: Conditions) -> float:
    """Spearman's ρ over S runs (columns), averaged over conditions (rows) that define it, or NaN.

    >>> mean_rank_correlation(np.array([[1.0, 2.0, 3.0]]), np.array([[3.0, 2.0, 1.0]]))
    -1.0
    """
    found = [r for r in map(rank_correlation, x, y) if not math.isnan(r)]
    return float(np.mean(found)) if found else math.nan


def permuted_over_runs(
    x: Conditions, y: Conditions, *, draws: int, seed: int
) -> Float[np.ndarray, " draws"]:
    """Null draws of `mean_rank_correlation`: whole runs are exchanged, in all conditions alike.

    NaN where it is not defined. x, y have S columns; raised as `permuted_rank_correlations` are.

    >>> x = np.arange(6.0)[None]
    >>> null = permuted_over_runs(x, x, draws=999, seed=0)
    >>> from loclin.stats import permutation_p
    >>> permutation_p(mean_rank_correlation(x, x), null) < 0.05
    True
    """
    rng = np.random.default_rng(seed)
    orders = np.array([rng.permutation(y.shape[1]) for _ in range(draws)])
    ranks = [stats.rankdata(side, axis=1) for side in (x, y)]
    known = [(a, b) for a, b in zip(*ranks, strict=True) if not math.isnan(rank_correlation(a, b))]
    found = [stats.zscore(b)[orders] @ stats.zscore(a) / len(a) for a, b in known]
    return np.mean(found, axis=0) + 1e-12 if found else np.full(draws, np.nan)


def rank_correlation_over_runs(x: Conditions, y: Conditions) -> Estimate | None:
    """`mean_rank_correlation` with an interval over S runs, on Fisher's scale z = artanh ρ.

    The spread of z is the delete-one-run jackknife's (Tukey 1958), but no less than 1.03/√(S−3),
    that of one Spearman correlation of independent normal pairs (Fieller, Hartley and Pearson
    1957): a few runs in perfect order would have none. Student's t with S − 1 degrees of freedom.
    None for fewer than five columns, or where ρ is not defined for all of them and all but one.

    >>> order = np.arange(6.0)[None]
    >>> print(rank_correlation_over_runs(order, order))
    0.999 [0.979, 1]
    """
    runs = x.shape[1]
    if runs < 5:
        return None
    every = [mean_rank_correlation(x, y)]
    every += [mean_rank_correlation(np.delete(x, i, 1), np.delete(y, i, 1)) for i in range(runs)]
    if np.isnan(every).any():
        return None
    z = np.arctanh(np.clip(every, -0.999, 0.999))
    spread = math.sqrt((runs - 1) / runs * float(((z[1:] - z[1:].mean()) ** 2).sum()))
    half = student_t(runs - 1) * max(spread, 1.03 / math.sqrt(runs - 3))
    low, value, high = np.tanh([z[0] - half, z[0], z[0] + half])
    return Estimate(value=float(value), low=float(low), high=float(high), n=runs)
