"""Estimates of claims recomputed from a run's arrays alone: numpy, scipy, nothing of loclin."""

import math

import numpy as np
from scipy import special, stats

TO = {
    "plain": lambda x: x,
    "logit": lambda x: special.logit(np.clip(x, 1e-9, 1 - 1e-9)),
    "score": lambda x: special.logit(np.clip(x, 5e-3, 1 - 5e-3)),
    "fisher": lambda x: np.arctanh(np.clip(x, -0.999, 0.999)),
    "log": lambda x: np.log(np.maximum(x, 1e-12)),
}
BACK = {
    "plain": lambda x: x,
    "logit": special.expit,
    "score": special.expit,
    "fisher": np.tanh,
    "log": np.exp,
}


def by_run(arrays: dict[str, np.ndarray], prefix: str) -> np.ndarray:
    """The arrays "PREFIX/RUN", stacked by the number of the run."""
    rest = [key.removeprefix(prefix + "/") for key in arrays if key.startswith(prefix + "/")]
    runs = sorted(int(r) for r in rest if r.isdecimal())
    return np.stack([arrays[f"{prefix}/{run}"] for run in runs])


def units(values: np.ndarray, models: int, scale: str = "plain") -> np.ndarray:
    """On a scale: the mean of the runs of every model, run r on model r mod `models`."""
    x = TO[scale](np.asarray(values, dtype=float))
    if models < 2:
        return x[~np.isnan(x)]
    groups = [g[~np.isnan(g)] for g in (x[m::models] for m in range(models))]
    return np.array([g.mean() for g in groups if len(g)])


def interval(values: np.ndarray, models: int, scale: str = "plain") -> tuple[float, float, float]:
    """Mean over models with its 95 % interval: Student's t below 20 units, else a bootstrap.

    The bootstrap: 10,000 means of units drawn with replacement by numpy's generator of seed 0, its
    percentiles at Φ(−√(n/(n−1)) t) and 1 less that (Hesterberg 2015, section 4.1).
    """
    x, back = units(values, models, scale), BACK[scale]
    n = len(x)
    value = float(back(x.mean()))
    if n == 1:
        return value, -math.inf, math.inf
    t = float(stats.t.ppf(0.975, n - 1))
    if n < 20:
        half = t * x.std(ddof=1) / math.sqrt(n)
        return value, float(back(x.mean() - half)), float(back(x.mean() + half))
    means = np.random.default_rng(0).choice(x, size=(10_000, n)).mean(1)
    tail = float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * t))
    low, high = np.quantile(means, [tail, 1 - tail])
    return value, float(back(low)), float(back(high))
