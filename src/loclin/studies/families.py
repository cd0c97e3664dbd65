"""Ordered directions to hold a recovery against, as every space of a study sees them: the trained
coordinates and, with LoRA, ΔW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float
from torch import Tensor

from loclin.geometry.gramian import gramian
from loclin.geometry.lora import LowRank, low_rank_gramian
from loclin.studies.context import RunContext
from loclin.studies.settings import DamageSettings
from loclin.training import Trajectory

Directions = Float[Tensor, "k D"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """Ordered directions; the basis of size k is the span of the first k.

    Attributes:
        rows: in the trained coordinates, or their sketches where the updates are sketched.
        exact: the first rows in the trained coordinates, for training that is confined to them.
        weights: with LoRA, what the directions are in ΔW, one adapted weight after the other.
    """

    rows: Float[Tensor, "k columns"]
    exact: Float[Tensor, "j D"]
    weights: Callable[[], Iterator[LowRank]] | None = None


def products(
    ctx: RunContext[DamageSettings], first: Family, second: Family | None = None
) -> dict[str, Float[np.ndarray, "n m"]]:
    """Inner products of two families, or of one with itself, in every space of the study."""
    flat = gramian(first.rows, None if second is None else second.rows)
    trained = ctx.settings.spaces[-1]
    if first.weights is None:
        return {trained: flat}
    if second is None:
        found = [low_rank_gramian([w]) for w in first.weights()]
    else:
        assert second.weights is not None
        pairs = zip(first.weights(), second.weights(), strict=True)
        found = [low_rank_gramian([w], [v]) for w, v in pairs]
    return {"weights": np.sum(found, axis=0), trained: flat}


def steps_family(ctx: RunContext[DamageSettings], real: Trajectory) -> Family:
    """The updates of a recorded recovery."""
    factors = ctx.factors
    weights = None if factors is None else lambda: factors.steps(real.start, real.updates)
    return Family(rows=real.updates, exact=real.head, weights=weights)


def family_at(
    ctx: RunContext[DamageSettings],
    point: Float[Tensor, " D"],
    rows: Directions,
    *,
    chords: bool = False,
) -> Family:
    """Directions at a point; `chords`: displacements from it, not small, where ΔW is not linear in
    the factors.
    """
    factors, weights = ctx.factors, None
    if factors is not None:
        of = factors.chords if chords else factors.directions
        weights = partial(of, point, rows)
    return Family(rows=ctx.storage.as_stored(ctx.space, rows), exact=rows, weights=weights)
