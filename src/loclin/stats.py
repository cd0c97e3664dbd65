"""Estimates with intervals over independent runs or examples, p-values of nulls, Holm's correction
(measures §14).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from loclin.errors import LoclinError

CONFIDENCE = 0.95
BOOTSTRAP_FROM = (
    20  # independent values from which the percentile bootstrap replaces Student's t (measures §14)
)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval over n independent runs; the interval is infinite for n = 1."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def over_runs(values: Sequence[float] | np.ndarray, *, seed: int = 0) -> Estimate:
    """Mean over independent runs: Student t below 20 of them, percentile bootstrap from there on.

    The bootstrap's percentiles are taken a little further out, at Φ(−√(n/(n−1)) t_{0.975, n−1}):
    the plain ones cover 93 % at n = 24 (Hesterberg, "What teachers should know about the
    bootstrap", 2015, section 4.1).

    Args:
        values: one number per independent run, never correlated points of one run. NaN (not defined
            in that run) is left out and lowers n.
        seed: of the bootstrap.

    Raises:
        LoclinError: no defined value at all.

    >>> print(over_runs([1.0, 2.0, 3.0]))
    2 [-0.484, 4.48]
    """
    given = np.asarray(values, dtype=float)
    given = given[~np.isnan(given)]
    n = len(given)
    if n == 0:
        raise LoclinError("expected a value from at least one run, found none: run more seeds")
    mean = float(given.mean())
    if n == 1:
        return Estimate(value=mean, low=-math.inf, high=math.inf, n=1)
    if n >= BOOTSTRAP_FROM:
        draws = np.random.default_rng(seed).choice(given, size=(10_000, n)).mean(1)
        low, high = np.quantile(draws, _tails(n))
    else:
        half = (
            float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
            * float(given.std(ddof=1))
            / math.sqrt(n)
        )
        low, high = mean - half, mean + half
    return Estimate(value=mean, low=float(low), high=float(high), n=n)


def over_examples(
    values: Sequence[float | int] | np.ndarray,
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int,
) -> Estimate:
    """Mean over the examples of one run: percentile bootstrap over them, or over groups of examples
    that belong together.

    What a group adds to the sum and to the count is drawn together (cluster bootstrap, Davison and
    Hinkley 1997, section 3.8). Percentiles as in `over_runs`; with fewer than 20 examples or
    groups, Student's t with the ratio's linearised spread. This is the spread over examples of one
    run; for what another search would find, take `over_runs` over several.

    Args:
        values: one number or truth for each example.
        groups: of each example, where examples of one group (a passage, a fact) are not
            independent.
        seed: of the bootstrap.

    Returns:
        Mean, interval, and the number of examples. Infinite for one example or one group; empty
        where all are equal.

    Raises:
        LoclinError: no examples, a value that is not finite, or not one group for each.

    >>> print(over_examples([0.0, 1.0, 1.0], seed=0))
    0.667 [-0.768, 2.1]
    """
    given = np.asarray(values, dtype=float)
    if given.ndim != 1 or not len(given) or not np.isfinite(given).all():
        raise LoclinError(
            f"expected a finite number for each of one example or more, found {given}: score all "
            "of them"
        )
    if groups is not None and len(groups) != len(given):
        raise LoclinError(
            f"expected a group for each of {len(given)} examples, found {len(groups)}: give one "
            "for each"
        )
    place = {
        g: i for i, g in enumerate(dict.fromkeys(range(len(given)) if groups is None else groups))
    }
    home = np.array([place[g] for g in (range(len(given)) if groups is None else groups)])
    sums, counts = np.bincount(home, given), np.bincount(home)
    mean, n = float(given.mean()), len(place)
    if n == 1:
        return Estimate(value=mean, low=-math.inf, high=math.inf, n=len(given))
    if n < BOOTSTRAP_FROM:
        spread = math.sqrt(n / (n - 1) * float(((sums - mean * counts) ** 2).sum())) / len(given)
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread
        return Estimate(value=mean, low=mean - half, high=mean + half, n=len(given))
    # groups that add the same are one kind, and a draw is how many of each kind it holds: few
    # kinds, whatever n is
    kinds, sizes = np.unique(np.stack([sums, counts], axis=1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    block = max(
        1, 4_000_000 // len(kinds)
    )  # draws at a time, so that memory stays at tens of megabytes
    drawn = [
        rng.multinomial(n, sizes / n, size=min(block, 10_000 - i)) @ kinds
        for i in range(0, 10_000, block)
    ]
    totals = np.concatenate(drawn)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], _tails(n))
    return Estimate(value=mean, low=float(low), high=float(high), n=len(given))


def paired_difference(
    a: Sequence[float | int] | np.ndarray,
    b: Sequence[float | int] | np.ndarray,
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int,
) -> Estimate:
    """Mean of a − b over examples that both answered, with `over_examples`' interval (measures
    §11).

    The interval is empty where no example differs, and too short where only a few do: `mcnemar` is
    exact there.

    Args:
        a: one number or truth for each example.
        b: of the same examples.
        groups: of each example, where examples of one group are not independent.
        seed: of the bootstrap.

    Raises:
        LoclinError: not the same number of each, or as `over_examples` does.

    >>> print(paired_difference([True, True, False], [True, False, False], seed=0))
    0.333 [-1.1, 1.77]
    """
    if len(a) != len(b):
        raise LoclinError(
            f"expected two outcomes of each example, found {len(a)} and {len(b)}: answer all with "
            "both"
        )
    return over_examples(
        np.asarray(a, dtype=float) - np.asarray(b, dtype=float), groups=groups, seed=seed
    )


def _tails(n: int) -> list[float]:
    """The percentiles of a bootstrap over n independent values, a little further out than 2.5 and
    97.5: see `over_runs`.
    """
    tail = float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)))
    return [tail, 1 - tail]


def mcnemar(a: Bool[np.ndarray, " n"], b: Bool[np.ndarray, " m"]) -> float:
    """Two-sided p of McNemar's exact test: of d examples that just one of two answers right, each
    has half (measures §11).

    min(1, 2 P(X ≤ min(d₁, d₂))), X ~ Binomial(d₁ + d₂, ½); 1 where no example differs. Takes
    examples as independent.

    Args:
        a: whether each example is answered right.
        b: the same of another answerer.

    Raises:
        LoclinError: not the same number of each.

    >>> round(mcnemar(np.array([True] * 12 + [False] * 2), np.array([False] * 12 + [True] * 2)), 4)
    0.0129
    """
    if len(a) != len(b):
        raise LoclinError(
            f"expected two outcomes of each example, found {len(a)} and {len(b)}: answer all with "
            "both"
        )
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return min(1.0, 2 * float(stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))


def mean_above(values: Sequence[float] | np.ndarray, threshold: float) -> float:
    """One-sided p of "the mean over runs is at most the threshold" by Student's t; 1 where fewer
    than two runs are defined.

    The test that goes with the interval of `over_runs`: no null can be drawn for a mean of few
    runs.
    """
    given = np.asarray(values, dtype=float)
    given = given[~np.isnan(given)]
    if len(given) < 2:
        return 1.0
    if np.ptp(given) <= 1e-12 * np.abs(given).max():  # alike up to round-off
        return 0.0 if given[0] > threshold else 1.0
    return float(stats.ttest_1samp(given, threshold, alternative="greater").pvalue)


def mean_differs(values: Sequence[float] | np.ndarray) -> float:
    """Two-sided p of "the mean over runs is 0" by Student's t: twice the smaller of both one-sided
    ones (`mean_above`).

    The test that goes with the interval of `over_runs` on paired differences; 1 where fewer than
    two runs are defined, or where no run differs.

    >>> round(mean_differs([0.1, 0.2, 0.15]), 4)
    0.0351
    """
    given = np.asarray(values, dtype=float)
    return min(1.0, 2 * min(mean_above(given, 0.0), mean_above(-given, 0.0)))


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    """Whether a mean lies between two margins.

    Attributes:
        estimate: the mean over runs with its 95 % interval.
        p: of "the mean lies outside the margins"; equivalent where it is below the level.
    """

    estimate: Estimate
    p: float


def equivalence(values: Sequence[float] | np.ndarray, low: float, high: float) -> Equivalence:
    """Two one-sided t-tests that the mean over runs lies between low and high: p is the larger of
    the two (measures §13).

    Schuirmann, "A comparison of the two one-sided tests procedure and the power approach for
    assessing the equivalence of average bioavailability", 1987. A difference that is not
    significant shows nothing of the kind. At the level 0.05 it agrees with a 90 % interval inside
    the margins.

    Args:
        values: one number per independent run; NaN (not defined in that run) is left out.
        low: lower margin, set before the runs.
        high: upper margin.

    Returns:
        p = 1 where fewer than two runs are defined.

    Raises:
        LoclinError: margins that are no interval, or no defined value at all.

    >>> round(equivalence([0.02, -0.05, 0.04, 0.01], -0.2, 0.2).p, 4)
    0.001
    """
    if not low < high:
        raise LoclinError(
            f"expected a lower margin below the upper one, found {low} and {high}: change them"
        )
    given = np.asarray(values, dtype=float)
    return Equivalence(
        estimate=over_runs(given), p=max(mean_above(given, low), mean_above(-given, -high))
    )


def permutation_p(observed: float, null: Sequence[float] | np.ndarray) -> float:
    """(b+1)/(m+1): b of m draws from the null are at least as large as what was observed.

    What is not defined, observed or drawn, counts as not below: p is 1 for an observation that is
    NaN.

    >>> permutation_p(3.0, [1.0, 2.0, 4.0]), permutation_p(float("nan"), [1.0, 2.0, 4.0])
    (0.5, 1.0)
    """
    draws = np.asarray(null, dtype=float)
    return float((np.sum(~(draws < observed)) + 1) / (len(draws) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: reject where the adjusted value is below the level of the whole
    family.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, running = [0.0] * len(order), 0.0
    for rank, index in enumerate(order):
        running = max(running, min((len(order) - rank) * p_values[index], 1.0))
        adjusted[index] = running
    return adjusted


def rank_correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Spearman's ρ; NaN where one side is constant or fewer than three pairs are given.

    >>> rank_correlation([1.0, 2.0, 3.0], [1.0, 4.0, 9.0])
    1.0
    """
    a, b = stats.rankdata(np.asarray(x, dtype=float)), stats.rankdata(np.asarray(y, dtype=float))
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))


def permuted_rank_correlations(
    groups: Sequence[tuple[np.ndarray, np.ndarray]], *, draws: int, seed: int
) -> Float[np.ndarray, " draws"]:
    """Null draws of the mean of Spearman's ρ over runs: y is shuffled inside each run.

    Args:
        groups: (x, y) of each independent run, none of them constant.
        draws: number of null draws.
        seed: of the shuffles.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(draws)
    for x, y in groups:
        a, b = stats.zscore(stats.rankdata(x)), stats.zscore(stats.rankdata(y))
        total += rng.permuted(np.tile(b, (draws, 1)), axis=1) @ a / len(a)
    return total / len(groups)


def mean_rank_correlation(
    x: Float[np.ndarray, "conditions S"], y: Float[np.ndarray, "conditions S"]
) -> float:
    """Spearman's ρ over S runs, averaged over the conditions in which it is defined; NaN where it
    is in none.
    """
    found = [r for r in map(rank_correlation, x, y) if not math.isnan(r)]
    return float(np.mean(found)) if found else math.nan


def permuted_over_runs(
    x: Float[np.ndarray, "conditions S"],
    y: Float[np.ndarray, "conditions S"],
    *,
    draws: int,
    seed: int,
) -> Float[np.ndarray, " draws"]:
    """Null draws of `mean_rank_correlation`: whole runs are exchanged, in all conditions alike; NaN
    where it is not defined.

    Draws are raised by 1e-12: one that is what was observed must not fall below it by round-off,
    which `permutation_p` would count.
    """
    rng = np.random.default_rng(seed)
    orders = np.array([rng.permutation(y.shape[1]) for _ in range(draws)])
    ranks = [stats.rankdata(side, axis=1) for side in (x, y)]
    known = [(a, b) for a, b in zip(*ranks, strict=True) if not math.isnan(rank_correlation(a, b))]
    found = [stats.zscore(b)[orders] @ stats.zscore(a) / len(a) for a, b in known]
    return np.mean(found, axis=0) + 1e-12 if found else np.full(draws, np.nan)


def rank_correlation_over_runs(
    x: Float[np.ndarray, "conditions S"], y: Float[np.ndarray, "conditions S"]
) -> Estimate | None:
    """`mean_rank_correlation` with an interval over runs, on Fisher's scale z = artanh ρ.

    The spread of z is the delete-one-run jackknife's (Tukey 1958), but no less than 1.03/√(S−3),
    that of one Spearman correlation of independent normal pairs (Fieller, Hartley and Pearson
    1957): a few runs in perfect order would have none. Student's t with S − 1 degrees of freedom.

    Returns:
        None where it is not defined for all runs, or without one of them, or for fewer than five
        runs.

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
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, runs - 1)) * max(
        spread, 1.03 / math.sqrt(runs - 3)
    )
    low, value, high = np.tanh([z[0] - half, z[0], z[0] + half])
    return Estimate(value=float(value), low=float(low), high=float(high), n=runs)
