"""What goes with the gain of a candidate: its alignment with the recovery gradient, its overlap
with a plane.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from loclin import law
from loclin.geometry.gramian import gramian, inner, to_float64
from loclin.geometry.subspace import Subspace
from loclin.run.rows import Row
from loclin.search.candidate import Perturbed
from loclin.search.local_law import LocalLaw
from loclin.search.noise import Noise
from loclin.studies.search.claims_names import STATIC
from loclin.studies.search.point import Gains, PointContext, Values


@dataclass(frozen=True, eq=False, kw_only=True)
class Plane:
    """A plane that candidates overlap with; tr(QᵀHQ) of the scored loss, where it is known."""

    space: Subspace
    trace: float | None = None


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
        each: whether to keep the numbers of every candidate at the reference σ.
    """
    main, local = swept[1.0], here.law
    aligned, overlaps = _directions(here, main, planes)
    gradients = gramian(torch.stack([here.gradient, here.recovery_gradient]))
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
            for name, plane in planes.items():
                k, trace = plane.space.k, plane.trace if of == "loss" else None
                bent = None
                if trace is not None:
                    bent = overlap_correlation(local, sigma=sigma, trace=trace, k=k)
                r = correlation(overlaps[name][:count], gain)
                yield here.row("overlap_correlation", r, null=bent, plane=name, **context)
    if each:
        for i, gain in enumerate(main.loss):
            yield here.row("candidate_gain", float(gain), candidate=i)
            yield here.row("candidate_alignment", float(aligned[i]), candidate=i)
            yield here.row("candidate_overlap", float(overlaps[STATIC][i]), candidate=i)


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
        for row, plane in enumerate(planes.values(), start=2):
            q = plane.space.basis.cpu()
            products[row, i] = float(to_float64(q @ delta.to(q)).square().sum())
    here.keep(f"directions/{here.point}", products)
    energy, along, *inside = products
    aligned = -along / (np.sqrt(energy) * float(g.norm()))
    return aligned, {name: own / energy for name, own in zip(planes, inside, strict=True)}


def correlation(x: Values, y: Values) -> float:
    """Pearson's r over the candidates where both are finite; NaN where one side is constant or
    fewer than three are left.
    """
    kept = np.isfinite(x) & np.isfinite(y)
    a, b = x[kept], y[kept]
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))


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


def permuted_correlations(
    groups: Sequence[tuple[Values, Values]], *, draws: int, seed: int
) -> Float[np.ndarray, " draws"]:
    """Null draws of the mean of Pearson's r over runs: y is shuffled among a run's candidates."""
    rng = np.random.default_rng(seed)
    total = np.zeros(draws)
    for x, y in groups:
        kept = np.isfinite(x) & np.isfinite(y)
        a, b = ((v - v.mean()) / v.std() for v in (x[kept], y[kept]))
        total += rng.permuted(np.tile(b, (draws, 1)), axis=1) @ a / len(a)
    return total / len(groups)
