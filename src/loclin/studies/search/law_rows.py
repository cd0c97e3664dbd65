"""Searches around one point against the law: over N and σ, and over kinds of noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from loclin.run.rows import Row
from loclin.search.local_law import LocalLaw
from loclin.studies.search import claims_names as names
from loclin.studies.search.point import Gains, PointContext, SearchSpace


def point_rows(here: PointContext) -> list[Row]:
    """What the law is made from, and how well the model answers here."""
    local, (sums, counts) = here.law, here.eval_set.tallies()
    here.keep_law(here.whole)
    values = {
        "gradient_norm": local.gradient,
        "trace": local.trace,
        "frobenius_norm": local.frobenius,
        "curvature_along_gradient": local.along,
        "cubed_trace": local.cube,
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
    sigmas = {size: size * here.reference for size in settings.sizes}
    for size, sigma in sigmas.items():
        here.progress(f"searching at the {here.point} point", len(swept) / len(sigmas))
        drawn = count if size == 1 else settings.others
        swept[size] = here.search(here.whole, drawn, sigma, at=size)
        rows += gain_rows(here, swept[size], size)
        inside = here.law.in_domain(settings.n, sigma)
        rows.append(here.row("in_domain", float(inside), size=size))
    domain = [size for size, sigma in sigmas.items() if here.law.in_domain(settings.n, sigma)]
    rows += error_rows(here, rows, names.OVER_SIZES, sizes=domain)
    rows += error_rows(here, rows, names.OVER_ALL, sizes=[s for s in sigmas if s <= 1])
    rows += edge_rows(here, list(sigmas.values()), [g.best_of(settings.n) for g in swept.values()])
    for size in domain[-1:]:  # the largest of them stands beside the other spaces
        end = {"at": names.DOMAIN_END}
        rows += ratio_rows(here, swept[size], here.whole, sigmas[size], **end)
    return rows, swept


def gain_rows(
    here: PointContext, found: Gains, size: float, *, noise: str = names.GAUSSIAN
) -> Iterator[Row]:
    """Observed and predicted gain of a search in all coordinates, over N; and its ratios."""
    finite, sigma = np.isfinite(found.loss), size * here.reference
    context: dict[str, Any] = {"space": names.ALL, "noise": noise, "size": size}
    ns = [n for n in here.ctx.settings.best_of if n <= finite.sum()]
    for best, gain in zip(ns, found.curve(ns), strict=True):
        second = here.law.second_order_gain(best, sigma)
        yield here.row("gain", float(gain), best_of=best, **context)
        yield here.row("gain_law", here.law.gain(best, sigma), best_of=best, **context)
        yield here.row("gain_second_order", second, best_of=best, **context)
    yield here.row("finite", float(finite.mean()), **context)
    yield from ratio_rows(here, found, here.whole, sigma, noise=noise, size=size)


def ratio_rows(
    here: PointContext,
    found: Gains,
    where: SearchSpace,
    sigma: float,
    *,
    noise: str = names.GAUSSIAN,
    **at: Any,
) -> Iterator[Row]:
    """At the N that decides: gain over the law's; and over the slope's, σ‖g‖m_N, the gain, the
    law's and the second-order form's. `at` says where σ lies, for the context.
    """
    n, local = here.ctx.settings.n, where.law
    gain, slope = found.best_of(n), local.linear_gain(n, sigma)
    expected, second = local.gain(n, sigma), local.second_order_gain(n, sigma)
    context = {"space": where.name, "noise": noise, **at}
    yield here.row("sigma", sigma, **context)
    yield here.row("gain_ratio", gain / expected if expected > 0 else None, null=1.0, **context)
    over = {"gain": gain, "law": expected, "second_order": second}
    for name, value in over.items():
        yield here.row(f"{name}_per_slope", value / slope if slope else None, **context)


#: What a gain is held against, by the quantity that holds its error: over the slope's gain.
PREDICTIONS = {
    "law_error": "law_per_slope",
    "linear_error": None,
    "second_order_error": "second_order_per_slope",
}


KINDS, SUBSPACES = (names.ALL, names.LARGEST), "subspaces"


def error_rows(
    here: PointContext, rows: Sequence[Row], over: str, *, sizes: Sequence[float] = ()
) -> Iterator[Row]:
    """How far the gain of the best of N is off the law, the slope alone, σ‖g‖m_N, and the second
    -order form: means of |gain − predicted|/(σ‖g‖m_N) over some σ, or over spaces; and the signed
    `law_bias`, of gain/law − 1.

    The common scale, that of chance, keeps an exact law from losing to a slope that is too steep.
    Spaces are averaged within their kind first (all coordinates, the largest tensor, subspaces of k
    dimensions), so that many of one dimension do not hide another.

    Args:
        here: the point.
        rows: with the ratios.
        over: its name; over spaces each is at the end of its own domain.
        sizes: of all coordinates, to average over.
    """
    off: dict[str, dict[str, list[float]]] = {q: {} for q in (*PREDICTIONS, "law_bias")}
    for context, ratios in _searches(rows):
        end, size = context.get("at") == names.DOMAIN_END, context.get("size")
        if not (end if over == names.OVER_SPACES else size in sizes):
            continue
        kind = context["space"] if context["space"] in KINDS else SUBSPACES
        off["law_bias"].setdefault(kind, []).append(ratios["gain_ratio"] - 1)
        for quantity, predicted in PREDICTIONS.items():
            expected = ratios[predicted] if predicted else 1.0
            off[quantity].setdefault(kind, []).append(abs(ratios["gain_per_slope"] - expected))
    for quantity, kinds in off.items():
        means = [float(np.mean(values)) for values in kinds.values()]
        yield here.row(quantity, float(np.mean(means)) if means else None, over=over)


def _searches(rows: Sequence[Row]) -> list[tuple[Mapping[str, Any], dict[str, float]]]:
    """Every search with gaussian noise: its context, and its ratios by quantity."""
    searches: dict[tuple[Any, ...], tuple[Mapping[str, Any], dict[str, float]]] = {}
    for row in rows:
        if row.context.get("noise") == names.GAUSSIAN and "best_of" not in row.context:
            key = tuple(row.context.get(k) for k in ("space", "size", "at"))
            value = math.nan if row.value is None else row.value
            searches.setdefault(key, (row.context, {}))[1][row.quantity] = value
    return list(searches.values())


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
        found = here.search(here.whole, settings.inside, sigma, at=size, noise=name)
        yield from gain_rows(here, found, size, noise=name)
        if name == names.TIED and folded is not None:
            ratio = found.best_of(settings.n) / folded.gain(settings.n, sigma)
            yield here.row("gain_ratio_folded", ratio, null=1.0, noise=name, size=size)
            yield here.row("folded_gradient", folded.gradient / here.law.gradient, null=1.0)


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
