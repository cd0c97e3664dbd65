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
from loclin.record import Row
from loclin.seeds import derived
from loclin.studies.bench import Bench
from loclin.studies.directions import batch_gradients, disjoint_batches
from loclin.studies.recovery.config import Config
from loclin.tasks.batch import Batch

#: ρ is undefined where the noise floor exceeds k/D by less than this: two bases of the same point
#: then agree hardly more than chance, and a ratio to their agreement says nothing.
LEAST_FLOOR = 0.05


def corrected_overlap(overlap: float, floor: float, chance: float) -> float:
    """ρ = (O(θ_D, θ_t) − k/D) / (O(θ_D, θ_D′) − k/D); NaN where the floor is near k/D.

    >>> corrected_overlap(0.25, 0.5, 0.0)
    0.5
    >>> corrected_overlap(0.25, 0.01, 0.0)
    nan
    """
    return (overlap - chance) / (floor - chance) if floor - chance > LEAST_FLOOR else math.nan


class DriftMeter:
    """Bases at θ_D from two independent sets of batches, to hold later bases against.

    Args:
        bench: of the run, the space standing at θ_D when the meter is made.
    """

    def __init__(self, bench: Bench[Config]) -> None:
        self._bench, config = bench, bench.config
        data = bench.problem.batch("gradients", bench.task)
        seed = derived(bench.seed, "drift")
        drawn = disjoint_batches(data, config.gradient_batch, 2 * config.gradients, seed=seed)
        self._sets = drawn[: config.gradients], drawn[config.gradients :]
        self._start, other = (self._basis(batches) for batches in self._sets)
        self.floor = self._start.overlap(other)
        self.chance, _ = theory.random_overlap(config.k, config.k, bench.space.dimension)

    def _basis(self, batches: list[Batch]) -> Subspace:
        gradients = batch_gradients(self._bench.problem, self._bench.space, batches)
        return principal_directions(gradients, self._bench.config.k)

    def floor_row(self, context: Mapping[str, Any]) -> Row:
        """O(θ_D, θ_D′): how far two sets of batches agree at the very same point."""
        here = {**context, "k": self._bench.config.k}
        return Row(quantity="overlap_floor", value=self.floor, null=self.chance, context=here)

    def rows(self, t: int, context: Mapping[str, Any]) -> Iterator[Row]:
        """Overlap of the basis where the space stands, after t steps, with that at θ_D, and ρ(t).

        From the same and from independent batches.
        """
        same, independent = (self._start.overlap(self._basis(batches)) for batches in self._sets)
        here = {**context, "k": self._bench.config.k, "t": t}
        yield Row(
            quantity="overlap", value=same, null=self.chance, context={**here, "batches": "same"}
        )
        yield Row(
            quantity="overlap",
            value=independent,
            null=self.chance,
            context={**here, "batches": "independent"},
        )
        rho = corrected_overlap(independent, self.floor, self.chance)
        yield Row(quantity="rho", value=None if math.isnan(rho) else rho, null=1.0, context=here)
