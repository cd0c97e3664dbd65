"""Searches around one point against the law: over N and σ, and over kinds of noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from loclin import law
from loclin.run.rows import Row
from loclin.search.ensemble import best_of
from loclin.search.local_law import LocalLaw
from loclin.search.noise import Noise
from loclin.studies.search import claims_names as names
from loclin.studies.search.point import Gains, PointContext, SearchSpace

SIMULATED = 400  # searches behind a chance error: known to 4 %


def point_rows(here: PointContext) -> list[Row]:
    """What the law is made from, and how well the model answers here."""
    local, (sums, counts) = here.law, here.eval_set.tallies()
    values = {
        "gradient_norm": local.gradient,
        "trace": local.trace,
        "frobenius_norm": local.frobenius,
        "curvature_along_gradient": local.along,
        "reference_sigma": here.reference,
        "validity_edge": local.edge / here.reference,
        "loss": float(sums[0] / counts[0]),
        "score": float(sums[1] / counts[1]),
    }
    return [here.row(quantity, value) for quantity, value in values.items()]


def sweep(here: PointContext, count: int) -> tuple[list[Row], dict[float, Gains]]:
    """Search at every σ: the rows, and what candidates gain by the relative size of σ. `count` are
    drawn at the reference σ.
    """
    settings, rows, swept = here.ctx.settings, list[Row](), dict[float, Gains]()
    sigmas = [size * here.reference for size in settings.sizes]
    for done, (size, sigma) in enumerate(zip(settings.sizes, sigmas, strict=True)):
        here.progress(f"searching at the {here.point} point", done / len(sigmas))
        found = here.search(here.whole, count if size == 1 else settings.others, sigma)
        rows += gain_rows(here, found, here.whole, sigma, size=size)
        inside = here.law.in_domain(settings.n, sigma)
        rows.append(here.row("in_domain", float(inside), size=size))
        swept[size] = found
    rows += error_rows(here, rows, names.OVER_SIZES)
    rows += edge_rows(here, sigmas, [found.best_of(settings.n) for found in swept.values()])
    return rows, swept


def gain_rows(
    here: PointContext,
    found: Gains,
    where: SearchSpace,
    sigma: float,
    *,
    size: float,
    noise: str = names.GAUSSIAN,
) -> Iterator[Row]:
    """Observed and predicted gain over N; at the N that decides their ratio, and the gain over its
    linear scale σ‖g‖.
    """
    n, finite = here.ctx.settings.n, np.isfinite(found.loss)
    context: dict[str, Any] = {"space": where.name, "noise": noise, "size": size}
    ns = [n for n in here.ctx.settings.best_of if n <= finite.sum()]
    for best, gain in zip(ns, best_of(found.loss, ns), strict=True):
        yield here.row("gain", float(gain), best_of=best, **context)
        yield here.row("gain_law", where.law.gain(best, sigma), best_of=best, **context)
    yield here.row("gain_ratio", _ratio(found, where.law, n, sigma), null=1.0, **context)
    slope = found.best_of(n) / (sigma * where.law.gradient)
    yield here.row("gain_per_slope", slope, null=law.expected_maximum(n), **context)
    yield here.row("sigma", sigma, **context)
    yield here.row("finite", float(finite.mean()), **context)


def _ratio(found: Gains, local: LocalLaw, n: int, sigma: float) -> float | None:
    """Gain over the law's, where that is positive."""
    expected = local.gain(n, sigma)
    return found.best_of(n) / expected if expected > 0 else None


def error_rows(
    here: PointContext, rows: Sequence[Row], over: str, *, size: float | None = None
) -> Iterator[Row]:
    """|gain/law − 1| at the N that decides, and the same signed: means over the σ of the law's
    domain, or over spaces.

    Spaces are averaged within their kind first (all coordinates, the largest tensor, subspaces of k
    dimensions), so that many of one dimension do not hide another. The null of the error is what it
    would be by chance under an exact law. `linear_error` is the error of the slope alone, σ‖g‖m_N,
    in the same searches.

    Args:
        here: the point.
        rows: with the ratios, and with which σ are in the domain.
        over: all coordinates at every σ; or every space, all coordinates at one relative σ.
        size: that one.
    """
    settings, subspaces = here.ctx.settings, "subspaces"
    inside = {r.context["size"] for r in rows if r.quantity == "in_domain" and r.value == 1}
    off: dict[str, dict[str, list[float]]] = {"gain_ratio": {}, "gain_per_slope": {}}
    for r in rows:
        if r.quantity not in off or r.context["noise"] != names.GAUSSIAN or r.value is None:
            continue
        space, whole = r.context["space"], r.context["space"] == names.ALL
        if whole and r.context["size"] not in (inside if over == names.OVER_SIZES else {size}):
            continue
        if whole or over == names.OVER_SPACES:
            kind = space if space in (names.ALL, names.LARGEST) else subspaces
            off[r.quantity].setdefault(kind, []).append(r.value / (r.null or 1.0) - 1)

    def mean(quantity: str, of: Callable[[np.ndarray], np.ndarray]) -> float | None:
        kinds = [float(of(np.array(values)).mean()) for values in off[quantity].values()]
        return float(np.mean(kinds)) if kinds else None

    counts = {
        names.ALL: settings.others,
        names.LARGEST: settings.others,
        subspaces: settings.inside,
    }
    chance = [chance_error(settings.n, counts[kind]) for kind in off["gain_ratio"]]
    null = float(np.mean(chance)) if chance else None
    yield here.row("law_error", mean("gain_ratio", np.abs), null=null, over=over)
    yield here.row("law_bias", mean("gain_ratio", lambda x: x), null=0.0, over=over)
    yield here.row("linear_error", mean("gain_per_slope", np.abs), over=over)


def edge_rows(
    here: PointContext, sigmas: Sequence[float], observed: Sequence[float]
) -> Iterator[Row]:
    """The σ at which the gain leaves the straight line, over the reference σ; where the law puts
    it, in the runs in which it was seen; and their ratio.
    """
    settings, edge = here.ctx.settings, bend(sigmas, observed, here.ctx.settings.edge)
    yield here.row("edge", None if edge is None else edge / here.reference)
    expected = here.law.bends_at(settings.n, settings.edge)
    seen = edge is not None and math.isfinite(expected)
    yield here.row("edge_law", expected / here.reference if seen else None)
    ratio = math.log10(edge / expected) if seen and edge else None
    yield here.row("log10_edge_ratio", ratio, null=0.0)


def noise_rows(here: PointContext, folded: LocalLaw | None) -> Iterator[Row]:
    """The law under other kinds of noise, at one σ within its domain; tied noise is held against
    what the law sees of it, `folded`, as well.
    """
    settings, size = here.ctx.settings, here.ctx.settings.size
    sigma = size * here.reference
    for name in settings.noises:
        here.progress(f"searching with {name} noise", 0.0)
        found = here.search(here.whole, settings.inside, sigma, Noise.parse(name))
        yield from gain_rows(here, found, here.whole, sigma, size=size, noise=name)
        if name == names.TIED and folded is not None:
            ratio = _ratio(found, folded, settings.n, sigma)
            yield here.row("gain_ratio_folded", ratio, null=1.0, noise=name, size=size)
            yield here.row("folded_gradient", folded.gradient / here.law.gradient, null=1.0)


def chance_error(n: int, candidates: int) -> float:
    """E|b/m_N − 1|, b the best-of-N mean over all draws of N from so many standard normals: what an
    exact law is off by. By 400 simulated searches of a fixed seed.

    >>> 0.04 < chance_error(20, 200) < 0.08
    True
    """
    rng = np.random.default_rng(0)
    draws = [best_of(rng.standard_normal(candidates), [n])[0] for _ in range(SIMULATED)]
    best = np.array(draws)
    return float(np.abs(best / best.mean() - 1).mean())


def bend(sigmas: Sequence[float], gains: Sequence[float], departure: float) -> float | None:
    """The first σ at which gain/σ has departed by a share, either way, from what it is at the
    smallest σ; interpolated in σ, which is exact for a quadratic.

    The candidates of all σ have the same directions, so the chance in the smallest one's gain is in
    all of them.

    Args:
        sigmas: growing.
        gains: of the best of N, at each.
        departure: the share.

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
