"""The recovery study's estimates from its arrays alone (measures §2 to §5)."""

import math

import numpy as np
from scipy import stats

from tests.recompute import by_run, interval, units

BUILT_IN = ("sequences", "sequences-small", "statements", "statements-small")
STATIC = ("gradients at θ₀", "gradients at θ_D", "task vectors", "Hessian at θ_D")
LABELS = {"sgd": "SGD", "adamw": "AdamW"}

Estimates = dict[tuple[str, str], tuple[float, float, float]]


def estimates(settings: dict, arrays: dict[str, np.ndarray]) -> Estimates:
    """Value and limits of every claim that is defined, by claim and the end of its setting."""
    models, k = 1, settings["k"]
    if settings["model"] in BUILT_IN:
        models = min(settings["models_per_claim"], settings["seeds"])
    lora = settings["space"] == "lora"
    space = "factors" if lora and settings["store"] == "sketch" else "weights"
    made: Estimates = {}
    for optimiser, label in LABELS.items():
        grams = by_run(arrays, f"update_gramian/{space}/{optimiser}")
        sizes = by_run(arrays, f"dimension/{space}")[:, 0]
        held = np.array([captured(g, g, g, k) for g in grams])
        made["prefix-holds-most", label] = interval(held, models, "logit")
        beyond = [beyond_drift(g, k, d, optimiser) for g, d in zip(grams, sizes, strict=True)]
        made["prefix-beyond-drift", label] = interval(np.array(beyond), models)
        rho = drift(arrays, settings, optimiser)
        if not np.isnan(rho).all():
            made["basis-drifts", label] = interval(rho, models)
        gaps = gaps_behind(arrays, optimiser, k)
        if not all(np.isnan(gap).all() for gap in gaps):
            made["static-bases-miss", label] = min(interval(gap, models) for gap in gaps)
        related = [spearman(*pair) for pair in pairs(arrays, optimiser, k, grams)]
        if not np.isnan(related).all():
            made["prefix-predicts-recovery", label] = interval(np.array(related), models, "fisher")
    over = over_runs(arrays, space, k, models)
    return made | ({("prefix-predicts-recovery", "over runs"): over} if over else {})


def captured(basis, products, updates, k, first=0):
    """Share of the squared length of Σ_{t>first} u_t in the span of the first k basis vectors."""
    weights = (np.arange(len(updates)) >= first).astype(float)
    lengths = np.sqrt(np.diag(basis)[:k])
    scaled = basis[:k, :k] / np.outer(lengths, lengths)
    target = (products[:k] @ weights) / lengths
    energy = target @ np.linalg.lstsq(scaled, target, rcond=1e-11)[0]
    return min(energy / (weights @ updates @ weights), 1.0)


def beyond_drift(gramian, k, dimension, optimiser):
    """Future-only capture less that of a constant drift with the run's own norms."""
    steps = np.arange(len(gramian))
    lags = np.abs(steps[:, None] - steps)
    noise = np.eye(len(steps))
    if optimiser == "adamw":  # correlation of two exponential averages of white noise
        power = 1 - 0.9 ** (2 * (steps + 1))
        noise = 0.9**lags * np.sqrt(np.minimum.outer(power, power) / np.maximum.outer(power, power))
    norms = np.sqrt(np.diag(gramian))
    cosines = gramian / np.outer(norms, norms)
    far = noise <= max(0.01, noise.min())
    shared = max(np.sum(cosines[far] - noise[far]) / np.sum(1 - noise[far]), 0.0)
    expected = np.outer(norms, norms) * (shared + (1 - shared) * noise)
    held = captured(expected, expected, expected, k, k)
    return captured(gramian, gramian, gramian, k, k) - held - (1 - held) * k / dimension


def drift(arrays, settings, optimiser):
    """ρ at the last measured step up to 100, of every run."""
    t = max(t for t in settings["times"] if t <= 100)

    def overlap(name):
        products = by_run(arrays, f"drift_products/{optimiser}/{t}/{name}")
        return np.minimum((products**2).sum((1, 2)) / products.shape[1], 1.0)

    chance = settings["k"] / trained_dimension(arrays)
    floors = [overlap(name) - chance for name in ("floor", "floor later")]
    between = (overlap("independent") + overlap("independent again")) / 2 - chance
    known = np.minimum(*floors) > 0.05
    return np.where(known, between / np.sqrt(np.where(known, floors[0] * floors[1], 1.0)), np.nan)


def trained_dimension(arrays):
    """D of the trained coordinates: the factors where there are any."""
    spaces = {key.split("/")[1] for key in arrays if key.startswith("dimension/")}
    return by_run(arrays, f"dimension/{'factors' if 'factors' in spaces else 'weights'}")[:, 0]


def gaps_behind(arrays, optimiser, k):
    """How much less than the prefix each fixed basis regains, as shares of unconfined training."""

    def score(name):
        return by_run(arrays, f"regained_score/{optimiser}/{name}/{k}").mean(1)

    whole = score("full") - by_run(arrays, "damaged_score")[:, 0]
    whole = np.where(whole >= 0.1, whole, np.nan)
    return [(score("prefix") - score(name)) / whole for name in STATIC]


def pairs(arrays, optimiser, k, grams):
    """(captures, scores) of every run over the bases of size k."""
    start, end = f"regained_score/{optimiser}/", f"/{k}/0"
    keys = [key for key in arrays if key.startswith(start) and key.endswith(end)]
    names = [key[len(start) : -len(end)] for key in keys if not key.startswith(start + "full")]
    for run, gram in enumerate(grams):
        captures, scores = [], []
        for name in names:
            scores.append(arrays[f"{start}{name}/{k}/{run}"].mean())
            if name == "prefix":
                captures.append(captured(gram, gram, gram, k))
            else:
                of = f"{optimiser}/{name}/{run}"
                basis, products = arrays[f"basis_gramian/{of}"], arrays[f"basis_products/{of}"]
                captures.append(captured(basis, products, gram, k))
        yield np.array(captures), np.array(scores)


def spearman(x, y):
    """Rank correlation; NaN where one side is constant or there are fewer than three pairs."""
    a, b = stats.rankdata(x), stats.rankdata(y)
    return np.corrcoef(a, b)[0, 1] if len(a) > 2 and a.std() and b.std() else math.nan


def over_runs(arrays, space, k, models):
    """Rank correlation over models of the prefix's capture and score, averaged over optimisers,
    with the jackknife's interval on Fisher's scale.
    """
    sides = []
    for optimiser in LABELS:
        grams = by_run(arrays, f"update_gramian/{space}/{optimiser}")
        captures = np.array([captured(g, g, g, k) for g in grams])
        scores = by_run(arrays, f"regained_score/{optimiser}/prefix/{k}").mean(1)
        sides.append((units(captures, models, "logit"), units(scores, models, "score")))
    count = len(sides[0][0])
    if count < 5:
        return None

    def z(kept):
        related = [spearman(x[kept], y[kept]) for x, y in sides]
        known = [r for r in related if not math.isnan(r)]
        return np.arctanh(np.clip(np.mean(known), -0.999, 0.999)) if known else math.nan

    every = np.arange(count)
    whole, less = z(every), np.array([z(np.delete(every, i)) for i in every])
    if np.isnan([whole, *less]).any():
        return None
    spread = math.sqrt((count - 1) / count * ((less - less.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, count - 1) * max(spread, 1.03 / math.sqrt(count - 3))
    return tuple(np.tanh([whole, whole - half, whole + half]))
