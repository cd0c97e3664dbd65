"""A point that is searched around, the spaces to search in there, and what candidates gain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from loclin import law
from loclin.geometry.gramian import to_float64
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
from loclin.studies.context import RunContext
from loclin.studies.search.claims_settings import SearchClaimsSettings
from loclin.studies.search.names import ALL, GAUSSIAN

Values = Float[np.ndarray, " n"]
Vector = Float[Tensor, " D"]
SearchRun = RunContext[SearchClaimsSettings]


@dataclass(frozen=True, eq=False, kw_only=True)
class Gains:
    """What n candidates gain over the point they were drawn around.

    Attributes:
        outcomes: of every candidate.
        loss: decrease of the mean loss (nats per answer token); NaN where it is not finite.
        score: increase of the share answered right.
        along: −ĝᵀz of every candidate, standard normal, where the noise is.
        slope: σ‖g‖.
    """

    outcomes: tuple[Outcome, ...]
    loss: Values
    score: Values
    along: Values | None = None
    slope: float = 0.0

    @property
    def candidates(self) -> list[Candidate]:
        """The candidates, in order."""
        return [o.candidate for o in self.outcomes]

    def best_of(self, n: int) -> float:
        """The gain in loss of the best of n."""
        return float(self.curve([n])[0])

    def curve(self, ns: Sequence[int]) -> Values:
        """The observed gain in loss of the best of every n: its mean over all draws of n, less what
        the luck of these candidates adds to the slope's part, σ‖g‖(b_n − m_n), b_n the same mean of
        `along`, whose expectation is m_n: a control variate, which biases nothing, whatever the
        loss (Glasserman, Monte Carlo Methods in Financial Engineering, 2004, section 4.1).
        """
        observed = best_of(self.loss, ns)
        if self.along is None:
            return observed
        luck = best_of(self.along, ns) - [law.expected_maximum(n) for n in ns]
        return np.asarray(observed - self.slope * luck)


def gains(perturbed: Perturbed, eval_set: EvalSet, drawn: Sequence[Candidate]) -> Gains:
    """Score the point itself, then every candidate."""
    sums, counts = eval_set.tallies()
    loss, right = sums / counts
    outcomes = tuple(score(perturbed, eval_set, drawn))
    losses = np.array([o.loss for o in outcomes])  # NaN where it is not finite
    return Gains(
        outcomes=outcomes, loss=loss - losses, score=np.array([o.score - right for o in outcomes])
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchSpace:
    """Coordinates to search in, or with a basis of orthonormal rows a subspace of them; the
    gradient in these coordinates, and what the law sees of the scored loss there.
    """

    name: str
    law: LocalLaw
    space: ParameterSpace
    gradient: Vector
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
        whole: all coordinates, with g and what the law sees of the scored loss.
        recovery_gradient: of recovery examples, which score nothing.
        progress: called with the share of a stage that is done.
        keep: called with what the record keeps beside rows: its key and the numbers.
        along: by space, −ĝᵀz of its gaussian candidates, which have the same z at every σ.
        ratios: of every search with gaussian noise: its space, where σ lies ("size" or "at"), and
            the gain over the law's, and gains over the slope's.
    """

    ctx: SearchRun
    eval_set: EvalSet
    point: str
    whole: SearchSpace
    recovery_gradient: Vector
    progress: ProgressCallback
    keep: Callable[[str, np.ndarray], None]
    along: dict[str, list[float]] = field(default_factory=dict)
    ratios: list[tuple[str, dict[str, Any], dict[str, float | None]]] = field(default_factory=list)

    @property
    def law(self) -> LocalLaw:
        """Of the scored loss in all coordinates."""
        return self.whole.law

    @property
    def reference(self) -> float:
        """The σ that every other is relative to."""
        return self.law.reference(max(self.ctx.settings.best_of))

    @property
    def seed(self) -> int:
        """Of the candidates here: the same at every σ and for every noise."""
        return derived(self.ctx.seed, "search", self.point)

    def search(
        self,
        where: SearchSpace,
        count: int,
        sigma: float,
        *,
        at: float | str,
        noise: str = GAUSSIAN,
    ) -> Gains:
        """Score candidates in a space; what each gains is kept, by noise, space and `at`."""
        seed = self.seed if where.name == ALL else derived(self.seed, where.name)
        with Perturbed(where.space, Noise.parse(noise), basis=where.basis) as perturbed:
            drawn = candidates(count, [sigma], seed=seed)
            scored = gains(perturbed, self.eval_set, drawn)
            if noise == GAUSSIAN:
                along = self._along(where, perturbed, drawn)
                scored = replace(scored, along=along, slope=sigma * where.law.gradient)
        self.keep_gains(where, scored, at=at, noise=noise)
        return scored

    def _along(
        self, where: SearchSpace, perturbed: Perturbed, drawn: Sequence[Candidate]
    ) -> Values:
        known = self.along.setdefault(where.name, [])
        g = to_float64(where.gradient).cpu()
        for c in drawn[len(known) :]:
            along = float(to_float64(perturbed.vector(c)) @ g)
            known.append(-along / (c.scale * where.law.gradient))
        return np.array(known[: len(drawn)])

    def keep_gains(
        self, where: SearchSpace, scored: Gains, *, at: float | str, noise: str = GAUSSIAN
    ) -> None:
        """Keep what each candidate gains, in loss and in score, and where it is known −ĝᵀz."""
        along = [] if scored.along is None else [scored.along]
        values = np.stack([scored.loss, scored.score, *along])
        self.keep(f"gains/{self.point}/{noise}/{where.name}/{at}", values)

    def keep_law(self, where: SearchSpace) -> None:
        """Keep what the law sees in a space: ‖g‖, tr H, ĝᵀHĝ, ‖H‖_F, tr H³; and its dimension."""
        values = np.array([*astuple(where.law), where.dimension])
        self.keep(f"law/{self.point}/{where.name}", values)

    def row(
        self,
        quantity: str,
        value: float | None,
        *,
        null: float | None = None,
        p: float | None = None,
        **context: Any,
    ) -> Row:
        """A row about this point; what is NaN is not defined."""
        value = None if value is None or math.isnan(value) else value
        here = {**self.ctx.context, "point": self.point, **context}
        return Row(quantity=quantity, value=value, null=null, p=p, context=here)
