"""A point that is searched around, the spaces to search in there, and what candidates gain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from loclin.models.evaluation import EvalSet
from loclin.parameters import ParameterSpace
from loclin.progress import ProgressCallback
from loclin.run.rows import Row
from loclin.search.candidate import Candidate, Perturbed, candidates
from loclin.search.ensemble import best_of
from loclin.search.local_law import LocalLaw
from loclin.search.noise import Noise
from loclin.search.scoring import Outcome, score
from loclin.seeds import derived
from loclin.studies.search.claims_data import SearchRun, Vector
from loclin.studies.search.claims_names import ALL

Values = Float[np.ndarray, " n"]
Number = float | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Gains:
    """What n candidates gain over the point they were drawn around.

    Attributes:
        outcomes: of every candidate.
        loss: decrease of the mean loss (nats per answer token); NaN where it is not finite.
        score: increase of the share answered right.
    """

    outcomes: tuple[Outcome, ...]
    loss: Values
    score: Values

    @property
    def candidates(self) -> list[Candidate]:
        """The candidates, in order."""
        return [o.candidate for o in self.outcomes]

    def best_of(self, n: int) -> float:
        """The observed gain in loss of the best of n: its mean over all draws of n."""
        return float(best_of(self.loss, [n])[0])


def gains(perturbed: Perturbed, eval_set: EvalSet, drawn: Sequence[Candidate]) -> Gains:
    """Score the point itself, then every candidate."""
    sums, counts = eval_set.tallies()
    loss, right = sums / counts
    outcomes = score(perturbed, eval_set, drawn)
    losses = np.array([o.loss for o in outcomes])
    return Gains(
        outcomes=tuple(outcomes),
        loss=np.where(np.isfinite(losses), loss - losses, np.nan),
        score=np.array([o.score - right for o in outcomes]),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchSpace:
    """Coordinates to search in, or with a basis of orthonormal rows a subspace of them; and what
    the law sees of the scored loss there.
    """

    name: str
    law: LocalLaw
    space: ParameterSpace
    basis: Float[Tensor, "k D"] | None = None

    @property
    def dimension(self) -> int:
        """Dimensions that are searched."""
        return self.space.dimension if self.basis is None else len(self.basis)


@dataclass(frozen=True, eq=False, kw_only=True)
class PointContext:
    """A point, the space standing there.

    Attributes:
        ctx: of the run.
        eval_set: the select examples, which score every candidate.
        point: its name.
        gradient: g of their mean loss.
        recovery_gradient: of recovery examples, which score nothing.
        law: of the scored loss in all coordinates.
        progress: called with the share of a stage that is done.
    """

    ctx: SearchRun
    eval_set: EvalSet
    point: str
    gradient: Vector
    recovery_gradient: Vector
    law: LocalLaw
    progress: ProgressCallback

    @property
    def reference(self) -> float:
        """The σ that every other is relative to."""
        return self.law.reference(max(self.ctx.settings.best_of))

    @property
    def seed(self) -> int:
        """Of the candidates here: the same at every σ and for every noise."""
        return derived(self.ctx.seed, "search", self.point)

    @property
    def whole(self) -> SearchSpace:
        """All coordinates."""
        return SearchSpace(name=ALL, law=self.law, space=self.ctx.space)

    def search(
        self, where: SearchSpace, count: int, sigma: float, noise: Noise | None = None
    ) -> Gains:
        """Score candidates in a space."""
        seed = self.seed if where.name == ALL else derived(self.seed, where.name)
        with Perturbed(where.space, noise or Noise(), basis=where.basis) as perturbed:
            return gains(perturbed, self.eval_set, candidates(count, [sigma], seed=seed))

    def row(
        self, quantity: str, value: Number, *, null: Number = None, p: Number = None, **context: Any
    ) -> Row:
        """A row about this point."""
        value = None if value is None or math.isnan(value) else value
        here = {**self.ctx.context, "point": self.point, **context}
        return Row(quantity=quantity, value=value, null=null, p=p, context=here)
