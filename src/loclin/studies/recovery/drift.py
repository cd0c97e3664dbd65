"""Does the useful basis move? Overlap of gradient bases along a recovery, corrected for minibatch
noise (measures §5).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from loclin import theory
from loclin.geometry.spectrum import principal_directions
from loclin.geometry.subspace import Subspace
from loclin.run.rows import Row, finite
from loclin.seeds import derived
from loclin.studies.context import RunContext
from loclin.studies.directions import batch_gradients, disjoint_batches
from loclin.studies.recovery.settings import RecoverySettings
from loclin.tasks.batch import Batch

#: ρ is undefined where the noise floor exceeds k/D by less than this: two bases of the same point
#: then agree hardly more than chance, and a ratio to their agreement says nothing.
LEAST_FLOOR = 0.05


def corrected_overlap(overlap: float, floor: float, chance: float) -> float:
    """ρ = (O(θ_D, θ_t) − k/D) / (O(θ_D, θ_D′) − k/D); NaN where the floor is near k/D.

    >>> corrected_overlap(0.25, 0.5, 0.0), corrected_overlap(0.25, 0.01, 0.0)
    (0.5, nan)
    """
    return (overlap - chance) / (floor - chance) if floor - chance > LEAST_FLOOR else math.nan


class DriftMeter:
    """Bases at θ_D from two independent sets of batches, to hold later bases against.

    Args:
        ctx: of the run, the space standing at θ_D when the meter is made.
    """

    def __init__(self, ctx: RunContext[RecoverySettings]) -> None:
        self._ctx, count = ctx, ctx.settings.gradients
        data, seed = ctx.problem.batch("gradients", ctx.task), derived(ctx.seed, "drift")
        drawn = disjoint_batches(data, ctx.settings.gradient_batch, 2 * count, seed=seed)
        self._sets = drawn[:count], drawn[count:]
        self._start, other = (self._basis(batches) for batches in self._sets)
        self.floor, k = self._start.overlap(other), ctx.settings.k
        self.chance, _ = theory.random_overlap(k, k, ctx.space.dimension)

    def _basis(self, batches: list[Batch]) -> Subspace:
        gradients = batch_gradients(self._ctx.problem, self._ctx.space, batches)
        return principal_directions(gradients, self._ctx.settings.k)

    def floor_row(self, context: Mapping[str, Any]) -> Row:
        """O(θ_D, θ_D′): how far two sets of batches agree at the very same point."""
        here = {**context, "k": self._ctx.settings.k}
        return Row(quantity="overlap_floor", value=self.floor, null=self.chance, context=here)

    def rows(self, t: int, context: Mapping[str, Any]) -> Iterator[Row]:
        """Overlap of the basis where the space stands, after t steps, with that at θ_D, from the
        same and from independent batches, and ρ(t).
        """
        here = {**context, "k": self._ctx.settings.k, "t": t}
        overlaps = [self._start.overlap(self._basis(batches)) for batches in self._sets]
        for name, overlap in zip(("same", "independent"), overlaps, strict=True):
            there = {**here, "batches": name}
            yield Row(quantity="overlap", value=overlap, null=self.chance, context=there)
        rho = corrected_overlap(overlaps[1], self.floor, self.chance)
        yield Row(quantity="rho", value=finite(rho), null=1.0, context=here)
