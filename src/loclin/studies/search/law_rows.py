"""Searches around one point against the law: over N and σ, over kinds of noise, and what goes with
the gain of a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from loclin import law
from loclin.correlation import correlation
from loclin.geometry.gramian import gramian, inner, to_float64
from loclin.geometry.subspace import Subspace
from loclin.run.rows import Row
from loclin.search.candidate import Perturbed
from loclin.search.local_law import LocalLaw
from loclin.search.noise import Noise
from loclin.studies.search import names
from loclin.studies.search.point import Gains, PointContext, SearchSpace, Values

#: What a gain is held against, by the quantity that holds its error: over the slope's gain.
PREDICTIONS = {
    "law_error": "law_per_slope",
    "linear_error": None,
    "second_order_error": "second_order_per_slope",
}
#: A subspace, and tr(QᵀHQ) of the scored loss where it is known.
Plane = tuple[Subspace, float | None]


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
    rows += error_rows(here, names.OVER_SIZES, sizes=domain)
    rows += error_rows(here, names.OVER_ALL, sizes=[s for s in sigmas if s <= 1])
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
    ratios = {"gain_ratio": gain / expected if expected > 0 else None}
    for name, value in (("gain", gain), ("law", expected), ("second_order", second)):
        ratios[f"{name}_per_slope"] = value / slope if slope else None
    if noise == names.GAUSSIAN:
        here.ratios.append((where.name, at, ratios))
    yield here.row("sigma", sigma, **context)
    for quantity, ratio in ratios.items():
        yield here.row(quantity, ratio, null=1.0 if quantity == "gain_ratio" else None, **context)


def error_rows(here: PointContext, over: str, *, sizes: Sequence[float] = ()) -> Iterator[Row]:
    """How far the gain of the best of N is off the law, the slope alone, σ‖g‖m_N, and the second
    -order form: means of |gain − predicted|/(σ‖g‖m_N) over some σ, or over spaces; and the signed
    `law_bias`, of gain/law − 1.

    The common scale, that of chance, keeps an exact law from losing to a slope that is too steep.
    Spaces are averaged within their kind first (all coordinates, the largest tensor, subspaces of k
    dimensions), so that many of one dimension do not hide another.

    Args:
        here: the point, its searches done.
        over: its name; over spaces each is at the end of its own domain.
        sizes: of all coordinates, to average over.
    """
    off: dict[str, dict[str, list[float]]] = {q: {} for q in (*PREDICTIONS, "law_bias")}
    for space, at, found in here.ratios:
        end = at.get("at") == names.DOMAIN_END
        if not (end if over == names.OVER_SPACES else at.get("size") in sizes):
            continue
        kind = space if space in (names.ALL, names.LARGEST) else "subspaces"
        ratios = {q: math.nan if ratio is None else ratio for q, ratio in found.items()}
        off["law_bias"].setdefault(kind, []).append(ratios["gain_ratio"] - 1)
        for quantity, predicted in PREDICTIONS.items():
            expected = ratios[predicted] if predicted else 1.0
            off[quantity].setdefault(kind, []).append(abs(ratios["gain_per_slope"] - expected))
    for quantity, kinds in off.items():
        means = [float(np.mean(values)) for values in kinds.values()]
        yield here.row(quantity, float(np.mean(means)) if means else None, over=over)


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


def relation_rows(
    here: PointContext, swept: Mapping[float, Gains], planes: Mapping[str, Plane], *, each: bool
) -> Iterator[Row]:
    """Correlations of gain with alignment and with overlap over the candidates of every σ (Figure
    3).

    The null of the first is the law's prediction: r of measures §10, r² = σ²‖g‖²/(σ²‖g‖² +
    σ⁴‖H‖_F²/2 + τ²) with τ = 0, as all candidates answer the same examples, times the cosine of the
    two gradients, since alignment is with a gradient of other examples than those that score. That
    of the second is what the plane's curvature alone gives (`overlap_correlation`).

    Args:
        here: the point.
        swept: the candidates of every σ, by its size; they begin with the same seeds at each, so in
            the same directions.
        planes: to overlap with.
        each: whether the numbers of every candidate at the reference σ are rows too.
    """
    main, local = swept[1.0], here.law
    aligned, overlaps = _directions(here, main, planes)
    gradients = gramian(torch.stack([here.whole.gradient, here.recovery_gradient]))
    here.keep(f"gradients/{here.point}", gradients)
    shared = float(gradients[0, 1] / math.sqrt(gradients[0, 0] * gradients[1, 1]))
    yield here.row("gradient_cosine", shared)
    for size, found in swept.items():
        sigma, count = found.candidates[0].sigma, len(found.candidates)
        expected = shared * law.alignment_correlation(
            gradient=local.gradient, frobenius=local.frobenius, sigma=sigma
        )
        for of, gain in (("loss", found.loss), ("score", found.score)):
            context: dict[str, Any] = {"of": of, "size": size}
            null = expected if of == "loss" else None
            r = correlation(aligned[:count], gain)
            yield here.row("alignment_correlation", r, null=null, **context)
            for name, (plane, trace) in planes.items():
                bent = None
                if of == "loss" and trace is not None:
                    bent = overlap_correlation(local, sigma=sigma, trace=trace, k=plane.k)
                r = correlation(overlaps[name][:count], gain)
                yield here.row("overlap_correlation", r, null=bent, plane=name, **context)
    if each:
        for i, gain in enumerate(main.loss):
            yield here.row("candidate_gain", float(gain), candidate=i)
            yield here.row("candidate_alignment", float(aligned[i]), candidate=i)
            yield here.row("candidate_overlap", float(overlaps[names.STATIC][i]), candidate=i)


def _directions(
    here: PointContext, main: Gains, planes: Mapping[str, Plane]
) -> tuple[Values, dict[str, Values]]:
    """cos(δ, −g) of every candidate, and ‖Qᵀδ‖²/‖δ‖² for every plane. What they are made of is
    kept: ‖δ‖², δᵀg and ‖Qᵀδ‖².
    """
    perturbed, g = Perturbed(here.ctx.space, Noise()), to_float64(here.recovery_gradient).cpu()
    products = np.empty((2 + len(planes), len(main.candidates)))
    for i, candidate in enumerate(main.candidates):
        delta = perturbed.vector(candidate)
        products[:2, i] = inner(delta, delta), float(to_float64(delta) @ g)
        for row, (plane, _) in enumerate(planes.values(), start=2):
            q = plane.basis.cpu()
            products[row, i] = float(to_float64(q @ delta.to(q)).square().sum())
    here.keep(f"directions/{here.point}", products)
    energy, along, *inside = products
    aligned = -along / (np.sqrt(energy) * float(g.norm()))
    return aligned, {name: own / energy for name, own in zip(planes, inside, strict=True)}


def overlap_correlation(local: LocalLaw, *, sigma: float, trace: float, k: int) -> float:
    """Correlation of gain with ‖Qᵀδ‖² over candidates of a quadratic: −σ tr(QᵀHQ) / [√(2k) √(‖g‖² +
    σ²‖H‖_F²/2)], Q of k columns, g and H those of all coordinates.

    The overlap is even in δ and the linear gain odd, so to first order no plane's overlap goes with
    gain, not even that of a plane which holds all of g; what remains is the plane's curvature.

    >>> local = LocalLaw(gradient=1.0, trace=10.0, along=0.0, frobenius=0.0)
    >>> round(overlap_correlation(local, sigma=0.1, trace=10.0, k=2), 3)
    -0.5
    """
    spread = math.hypot(local.gradient, sigma * local.frobenius / math.sqrt(2))
    return -sigma * trace / (math.sqrt(2 * k) * spread) if spread else 0.0
