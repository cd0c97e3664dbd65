"""Estimates with intervals over independent runs or examples, and p-values (measures §14).

Where a test is not defined its p is 1; functions that raise `LoclinError` say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Bool
from scipy import special, stats

from loclin.errors import LoclinError

CONFIDENCE = 0.95
#: Independent values from which the percentile bootstrap replaces Student's t (measures §14).
BOOTSTRAP_FROM = 20
DRAWS = 10_000

Numbers = Sequence[float | int] | np.ndarray
#: On which scale means are taken: shares by their logit (scores of some hundred examples not beyond
#: half an example), correlations and cosines by Fisher's z, ratios by their logarithm.
Scale = Literal["plain", "logit", "score", "fisher", "log"]
_SCALES: dict[Scale, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "plain": (np.asarray, np.asarray),
    "logit": (lambda x: special.logit(np.clip(x, 1e-9, 1 - 1e-9)), special.expit),
    "score": (lambda x: special.logit(np.clip(x, 5e-3, 1 - 5e-3)), special.expit),
    "fisher": (lambda x: np.arctanh(np.clip(x, -0.999, 0.999)), np.tanh),
    "log": (lambda x: np.log(np.maximum(x, 1e-12)), np.exp),
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval over n independent units, all in the unit of what is measured
    (nats, a share, ..); infinite for n = 1 (measures §14).

    >>> print(Estimate(value=0.5, low=0.4, high=0.6, n=6))
    0.5 [0.4, 0.6]
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

    @staticmethod
    def around(value: float, half: float, n: int) -> Estimate:
        """value ± half."""
        return Estimate(value=value, low=value - half, high=value + half, n=n)


def on_scale(values: Numbers | float, scale: Scale) -> np.ndarray:
    """Values on a scale on which their spread is even: x (plain), ln(x/(1−x)) (logit; score, cut
    at 0.005 and 0.995), artanh x (fisher), ln x (log); cut to its range (measures §14).

    >>> on_scale([0.5, 0.0], "score").round(2), on_scale(1.0, "log")
    (array([ 0.  , -5.29]), array(0.))
    """
    return np.asarray(_SCALES[scale][0](np.asarray(values, dtype=float)))


def unscaled(values: np.ndarray | float, scale: Scale) -> np.ndarray:
    """Back from a scale: the inverse of `on_scale`.

    >>> unscaled(on_scale([0.9], "logit"), "logit").round(3)
    array([0.9])
    """
    return np.asarray(_SCALES[scale][1](values))


def by_model(values: Numbers, models: int, scale: Scale = "plain") -> np.ndarray:
    """The units of a claim, on a scale: means of the runs of every model, run r being one of model
    r mod `models`; with one model, its runs (measures §14).

    >>> by_model([1.0, 2.0, 3.0, float("nan")], 2)
    array([2., 2.])
    """
    found = on_scale(values, scale)
    if models < 2:
        return found
    groups = [_defined(found[m::models]) for m in range(models)]
    return np.array([g.mean() if len(g) else math.nan for g in groups])


def over_models(values: Numbers, models: int, scale: Scale = "plain") -> Estimate:
    """`over_runs` of the models' means on a scale, and back: no interval leaves the scale's range.

    Arguments as in `by_model`. Raises `LoclinError` as `over_runs` does.

    >>> print(over_models([0.9, 0.99, 0.96], 1, "logit"))
    0.965 [0.581, 0.998]
    """
    e = over_runs(by_model(values, models, scale))
    value, low, high = unscaled(np.array([e.value, e.low, e.high]), scale).tolist()
    return replace(e, value=value, low=low, high=high) if e.n > 1 else replace(e, value=value)


def over_runs(values: Numbers, *, seed: int = 0) -> Estimate:
    """Mean over independent units: Student t below 20 of them, percentile bootstrap from there on.

    Values are one per unit, never correlated points of one; NaN (not defined there) is left out. By
    t the interval is x̄ ± t_{0.975, n−1} s/√n. The bootstrap's percentiles are at
    Φ(−√(n/(n−1)) t_{0.975, n−1}): the plain ones cover 93 % at n = 24 (Hesterberg, "What
    teachers should know about the bootstrap", 2015, section 4.1). Raises `LoclinError` where no
    value is defined.

    >>> print(over_runs([1.0, 2.0, 3.0]))
    2 [-0.484, 4.48]
    """
    defined = _defined(values)
    n = len(defined)
    if n == 0:
        raise LoclinError("expected a value from at least one run, found none: run more seeds")
    mean = float(defined.mean())
    if n == 1:
        return Estimate.around(mean, math.inf, 1)
    if n < BOOTSTRAP_FROM:
        return Estimate.around(
            mean, student_t(n - 1) * float(defined.std(ddof=1)) / math.sqrt(n), n
        )
    draws = np.random.default_rng(seed).choice(defined, size=(DRAWS, n)).mean(1)
    low, high = np.quantile(draws, _tails(n))
    return Estimate(value=mean, low=float(low), high=float(high), n=n)


def over_examples(
    values: Numbers, *, groups: Sequence[Hashable] | None = None, seed: int
) -> Estimate:
    """Mean over the examples of one run, n of them: percentile bootstrap over examples or groups.

    Groups are of examples (of one passage, of one fact) that are not independent: what a group adds
    to the sum and to the count is drawn together (cluster bootstrap, Davison and Hinkley 1997,
    section 3.8). Percentiles as in `over_runs`; below 20 groups, Student's t with the ratio's
    linearised spread. It is the spread over examples of one run, not over runs. Raises
    `LoclinError` for no examples, a value that is not finite, or not one group for each.

    >>> print(over_examples([0.0, 1.0, 1.0], seed=0))
    0.667 [-0.768, 2.1]
    """
    numbers = np.asarray(values, dtype=float)
    if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
        raise LoclinError(
            f"expected a finite number for each of one example or more, found {numbers}: score all "
            "of them"
        )
    groups = range(len(numbers)) if groups is None else groups
    if len(groups) != len(numbers):
        raise LoclinError(
            f"expected a group for each of {len(numbers)} examples, found {len(groups)}: give one "
            "for each"
        )
    place = {g: i for i, g in enumerate(dict.fromkeys(groups))}
    home = np.array([place[g] for g in groups])
    sums, counts = np.bincount(home, numbers), np.bincount(home)
    mean, n = float(numbers.mean()), len(place)
    if n == 1:
        return Estimate.around(mean, math.inf, len(numbers))
    if n < BOOTSTRAP_FROM:
        spread = math.sqrt(n / (n - 1) * float(((sums - mean * counts) ** 2).sum())) / len(numbers)
        return Estimate.around(mean, student_t(n - 1) * spread, len(numbers))
    low, high = np.quantile(_ratios(sums, counts, seed), _tails(n))
    return Estimate(value=mean, low=float(low), high=float(high), n=len(numbers))


def _ratios(sums: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Σ sums / Σ counts over groups drawn with replacement. Equal groups are one kind."""
    kinds, sizes = np.unique(np.stack([sums, counts], axis=1), axis=0, return_counts=True)
    rng, n = np.random.default_rng(seed), len(sums)
    block = max(1, 4_000_000 // len(kinds))  # draws at a time: tens of megabytes
    starts = range(0, DRAWS, block)
    drawn = [rng.multinomial(n, sizes / n, size=min(block, DRAWS - i)) @ kinds for i in starts]
    totals = np.concatenate(drawn)
    ratios: np.ndarray = totals[:, 0] / totals[:, 1]
    return ratios


def paired_difference(
    a: Numbers, b: Numbers, *, groups: Sequence[Hashable] | None = None, seed: int
) -> Estimate:
    """Mean of a − b over examples that both answered: see `over_examples` (measures §11).

    The interval is too short where few examples differ, and empty where none does; `mcnemar` is
    exact there. Raises `LoclinError` also for another number of each.

    >>> print(paired_difference([True, True, False], [True, False, False], seed=0))
    0.333 [-1.1, 1.77]
    """
    _check_pairs(a, b)
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    return over_examples(difference, groups=groups, seed=seed)


def mcnemar(a: Bool[np.ndarray, " n"], b: Bool[np.ndarray, " m"]) -> float:
    """Two-sided p of McNemar's exact test of two answerers, right or wrong (measures §11).

    min(1, 2 P(X ≤ min(d₁, d₂))), X ~ Binomial(d₁ + d₂, ½), d the examples that just one answers
    right. Examples are taken as independent. Raises `LoclinError` for another number of each.

    >>> round(mcnemar(np.array([True] * 12 + [False] * 2), np.array([False] * 12 + [True] * 2)), 4)
    0.0129
    """
    _check_pairs(a, b)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return min(1.0, 2 * float(stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))


def mean_above(values: Numbers, threshold: float) -> float:
    """One-sided p of "the mean over units is at most the threshold" by Student's t, that of
    (x̄ − threshold)√n/s. NaN is left out; 1 for fewer than two units.

    Units that are alike up to round-off have no spread: the sign test's 2^−n there.

    >>> mean_above([1.0, 1.0, 1.0], 0.0)
    0.125
    """
    defined = _defined(values)
    if len(defined) < 2:
        return 1.0
    if np.ptp(defined) <= 1e-12 * np.abs(defined).max():
        return 0.5 ** len(defined) if defined[0] > threshold else 1.0
    error = defined.std(ddof=1) / math.sqrt(len(defined))
    return float(special.stdtr(len(defined) - 1, (threshold - defined.mean()) / error))


def mean_differs(values: Numbers) -> float:
    """Two-sided p of "the mean over runs is 0": twice the smaller of both sides of `mean_above`.

    >>> round(mean_differs([0.1, 0.2, 0.15]), 4)
    0.0351
    """
    numbers = np.asarray(values, dtype=float)
    return min(1.0, 2 * min(mean_above(numbers, 0.0), mean_above(-numbers, 0.0)))


def mean_within(values: Numbers, low: float, high: float) -> float:
    """p of "the mean over units lies outside the margins": the larger of two one-sided t-tests.

    The margins are set before the runs (Schuirmann, "A comparison of the two one-sided tests
    procedure and the power approach for assessing the equivalence of average bioavailability",
    1987). At 0.05 it agrees with a 90 % interval inside the margins.

    >>> round(mean_within([0.02, -0.05, 0.04, 0.01], -0.2, 0.2), 4)
    0.001
    """
    numbers = np.asarray(values, dtype=float)
    return max(mean_above(numbers, low), mean_above(-numbers, -high))


def permutation_p(observed: float, null: Numbers) -> float:
    """(b+1)/(m+1): b of m draws from the null are at least as large as what was observed.

    NaN, observed or drawn, counts as not below: p is 1 for an observation that is NaN.

    >>> permutation_p(3.0, [1.0, 2.0, 4.0]), permutation_p(float("nan"), [1.0, 2.0, 4.0])
    (0.5, 1.0)
    """
    draws = np.asarray(null, dtype=float)
    return float((np.sum(~(draws < observed)) + 1) / (len(draws) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: of m p-values the j-th smallest becomes max_{i≤j} (m−i+1) p_(i),
    at most 1. Reject where that is below the level of the whole family (measures §14).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, running = [0.0] * len(order), 0.0
    for rank, index in enumerate(order):
        running = max(running, min((len(order) - rank) * p_values[index], 1.0))
        adjusted[index] = running
    return adjusted


def _defined(values: Numbers) -> np.ndarray:
    numbers = np.asarray(values, dtype=float)
    defined: np.ndarray = numbers[~np.isnan(numbers)]
    return defined


def _check_pairs(a: Sequence[object] | np.ndarray, b: Sequence[object] | np.ndarray) -> None:
    if len(a) != len(b):
        raise LoclinError(
            f"expected two outcomes of each example, found {len(a)} and {len(b)}: answer all with "
            "both"
        )


@cache
def student_t(freedom: int) -> float:
    """t_{0.975, f}: Student's t, of f degrees of freedom, that the 95 % interval reaches out to.

    >>> round(student_t(5), 2)
    2.57
    """
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def _tails(n: int) -> list[float]:
    """Percentiles of a bootstrap over n independent values, as `over_runs` says."""
    tail = float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * student_t(n - 1)))
    return [tail, 1 - tail]
