"""Does the useful basis move? Overlap of gradient bases along a recovery, corrected for minibatch noise (measures §5)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from loclin import theory
from loclin.geometry.spectrum import principal_directions
from loclin.geometry.subspace import Subspace
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.record import Row
from loclin.seeds import derived
from loclin.studies.recovery.bases import batch_gradients, disjoint_batches
from loclin.studies.recovery.config import Config
from loclin.tasks.batch import Batch

#: ρ is undefined where the noise floor exceeds k/D by less than this: two bases of the same point then agree hardly more
#: than chance, and a ratio to their agreement says nothing.
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
        problem, space, config, task: as everywhere in the study; the space stands at θ_D when the meter is made.
        seed: of the two sets.
    """

    def __init__(self, problem: Problem, space: ParameterSpace, config: Config, task: str, *, seed: int) -> None:
        self._problem, self._space, self._k = problem, space, config.k
        data = problem.batch("gradients", task)
        drawn = disjoint_batches(data, config.gradient_batch, 2 * config.gradients, seed=derived(seed, "drift"))
        self._sets = drawn[: config.gradients], drawn[config.gradients :]
        self._start, other = (self._basis(batches) for batches in self._sets)
        self.floor = self._start.overlap(other)
        self.chance, _ = theory.random_overlap(config.k, config.k, space.dimension)

    def _basis(self, batches: list[Batch]) -> Subspace:
        return principal_directions(batch_gradients(self._problem, self._space, batches), self._k)

    def floor_row(self, context: Mapping[str, Any]) -> Row:
        """O(θ_D, θ_D′): how far two sets of batches agree at the very same point."""
        return Row(quantity="overlap_floor", value=self.floor, null=self.chance, context={**context, "k": self._k})

    def rows(self, point: Float[Tensor, " D"], t: int, context: Mapping[str, Any]) -> Iterator[Row]:
        """Overlap of the basis at θ_t with that at θ_D, from the same and from independent batches, and ρ(t)."""
        with self._space.restored():
            self._space.write(point)
            same, independent = (self._start.overlap(self._basis(batches)) for batches in self._sets)
        here = {**context, "t": t, "k": self._k}
        yield Row(quantity="overlap", value=same, null=self.chance, context={**here, "batches": "same"})
        yield Row(quantity="overlap", value=independent, null=self.chance, context={**here, "batches": "independent"})
        rho = corrected_overlap(independent, self.floor, self.chance)
        yield Row(quantity="rho", value=None if math.isnan(rho) else rho, null=1.0, context=here)
