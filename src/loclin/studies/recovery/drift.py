"""Does the useful basis move? Overlap of gradient bases along a recovery, corrected for minibatch
noise (measures §5).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin import theory
from loclin.geometry.gramian import gramian
from loclin.geometry.spectrum import principal_directions
from loclin.geometry.subspace import Subspace
from loclin.run.rows import Row, finite
from loclin.seeds import derived
from loclin.studies.context import RunContext
from loclin.studies.directions import batch_gradients, disjoint_batches
from loclin.studies.recovery.settings import RecoverySettings

#: ρ is undefined where a noise floor exceeds k/D by less than this: two bases of a point then agree
#: hardly more than chance, and a ratio to their agreement says nothing.
LEAST_FLOOR = 0.05
#: Pairs of bases, by the set of batches and the point of each: two floors, two overlaps from
#: independent batches, two from the same.
PAIRS = {
    "floor": ((0, "start"), (1, "start")),
    "floor later": ((0, "later"), (1, "later")),
    "independent": ((0, "start"), (1, "later")),
    "independent again": ((1, "start"), (0, "later")),
    "same": ((0, "start"), (0, "later")),
    "same again": ((1, "start"), (1, "later")),
}


def corrected_overlap(overlap: float, floors: tuple[float, float], chance: float) -> float:
    """ρ = (O(θ_D, θ_t) − k/D) / √[(O(θ_D, θ_D′) − k/D)(O(θ_t, θ_t′) − k/D)], a floor at both
    points; NaN where either is near k/D.

    >>> corrected_overlap(0.2, (0.5, 0.08), 0.0), corrected_overlap(0.2, (0.5, 0.01), 0.0)
    (1.0, nan)
    """
    above = min(floors) - chance
    if above <= LEAST_FLOOR:
        return math.nan
    return (overlap - chance) / math.sqrt(above * (max(floors) - chance))


class DriftMeter:
    """Bases at θ_D from two independent sets of batches, to hold later bases against; the space
    stands there when the meter is made.
    """

    def __init__(self, ctx: RunContext[RecoverySettings]) -> None:
        self._ctx, count = ctx, ctx.settings.gradients
        data, seed = ctx.problem.batch("gradients", ctx.task), derived(ctx.seed, "drift")
        drawn = disjoint_batches(data, ctx.settings.gradient_batch, 2 * count, seed=seed)
        self._sets, k = (drawn[:count], drawn[count:]), ctx.settings.k
        self._start = self._bases()
        self.chance, _ = theory.random_overlap(k, k, ctx.space.dimension)

    def _bases(self) -> list[Subspace]:
        problem, space, k = self._ctx.problem, self._ctx.space, self._ctx.settings.k
        gradients = (batch_gradients(problem, space, batches) for batches in self._sets)
        return [principal_directions(g, k) for g in gradients]

    def products(self) -> dict[str, Float[np.ndarray, "k k"]]:
        """Inner products of the bases of every pair, with those where the space stands."""
        bases = {"start": self._start, "later": self._bases()}
        return {
            name: gramian(*(bases[point][i].basis for i, point in pair))
            for name, pair in PAIRS.items()
        }

    def rows(
        self, t: int, products: Mapping[str, np.ndarray], context: Mapping[str, Any]
    ) -> Iterator[Row]:
        """After t steps: overlaps with the basis at θ_D from the same and from independent batches,
        the floors at both points, and ρ(t).
        """
        here = {**context, "k": self._ctx.settings.k, "t": t}
        held = {name: overlap_of(p) for name, p in products.items()}
        floors = held["floor"], held["floor later"]
        for point, floor in zip(("damaged", "recovery"), floors, strict=True):
            there = {**here, "point": point}
            yield Row(quantity="overlap_floor", value=floor, null=self.chance, context=there)
        for name in ("same", "independent"):
            overlap, there = (held[name] + held[f"{name} again"]) / 2, {**here, "batches": name}
            yield Row(quantity="overlap", value=overlap, null=self.chance, context=there)
        rho = corrected_overlap(overlap, floors, self.chance)
        yield Row(quantity="rho", value=finite(rho), null=1.0, context=here)


def overlap_of(products: Float[np.ndarray, "k1 k2"]) -> float:
    """overlap(Q₁, Q₂) from the inner products of two orthonormal bases (measures §5)."""
    return min(float(np.sum(products**2)) / float(min(products.shape)), 1.0)
