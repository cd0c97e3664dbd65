"""Candidates asked the examples of an `EvalSet`, one after the other; and their ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from loclin.errors import LoclinError
from loclin.models.evaluation import EvalSet
from loclin.search.candidate import Candidate, Perturbed


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """What one candidate scored.

    Attributes:
        candidate: which.
        loss: mean over all answer tokens, in nats; NaN where the candidate's weights give nothing
            finite.
        right: of every example, whether it is answered right; never where its loss is not a number.
    """

    candidate: Candidate
    loss: float
    right: Bool[np.ndarray, " n"]

    def __post_init__(self) -> None:
        if not math.isfinite(self.loss):
            object.__setattr__(self, "loss", math.nan)

    @property
    def score(self) -> float:
        """Share of the examples answered right."""
        return float(self.right.mean())


def score(perturbed: Perturbed, eval_set: EvalSet, drawn: Sequence[Candidate]) -> list[Outcome]:
    """The outcome of every candidate. Afterwards the model stands at its base, whatever happens.

    Args:
        perturbed: the model's chosen tensors.
        eval_set: asked of every candidate.
        drawn: the candidates.
    """
    outcomes, tokens = [], float(eval_set.tokens.sum())
    try:
        for candidate in drawn:
            perturbed.place(candidate)
            outcomes.append(outcome(candidate, tokens, *eval_set.answers()))
    finally:
        perturbed.restore()
    return outcomes


def best_first(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Best first: by score, then by loss, then by index; without those whose loss is not finite.

    Raises:
        LoclinError: none is finite.
    """
    finite = [o for o in outcomes if math.isfinite(o.loss)]
    if not finite:
        raise LoclinError(
            f"expected a candidate with a finite loss, found none among {len(outcomes)}: choose a "
            "smaller --sigma"
        )
    return sorted(finite, key=lambda o: (-o.score, o.loss, o.candidate.index))


def outcome(candidate: Candidate, tokens: float, losses: Tensor, right: Tensor) -> Outcome:
    """From each example's summed loss and right answer, over all answer tokens."""
    return Outcome(
        candidate=candidate,
        loss=float(losses.sum()) / tokens,
        right=(right & ~losses.isnan()).cpu().numpy(),
    )
