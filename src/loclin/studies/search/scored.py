"""Candidates around the point where a space stands, scored: how much the loss falls and the score
rises by each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from loclin.models.exam import Exam
from loclin.search.candidate import Candidate, Perturbed
from loclin.search.scoring import score

Values = Float[np.ndarray, " n"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Gains:
    """What n candidates gain over the point they were drawn around.

    Attributes:
        candidates: which.
        loss: decrease of the mean loss by each (nats per answer token); NaN where its loss is not
            finite.
        score: increase of the share answered right.
        right: whether each answers each example right.
    """

    candidates: tuple[Candidate, ...]
    loss: Values
    score: Values
    right: Bool[np.ndarray, "n examples"]


def gains(moved: Perturbed, exam: Exam, drawn: Sequence[Candidate], *, stacked: int = 1) -> Gains:
    """Score the point itself, then every candidate.

    Args:
        moved: the space where it stands, and its noise.
        exam: what is asked.
        drawn: the candidates.
        stacked: how many go through the model in one pass.
    """
    sums, counts = exam.tallies()
    loss, right = sums / counts
    groups = [drawn[i : i + stacked] for i in range(0, len(drawn), stacked)]
    found = [
        outcome for group in groups for outcome in score(moved, exam, group, batched=stacked > 1)
    ]
    losses = np.array([o.loss for o in found])
    return Gains(
        candidates=tuple(drawn),
        loss=np.where(np.isfinite(losses), loss - losses, np.nan),
        score=np.array([o.score - right for o in found]),
        right=np.stack([o.right for o in found]),
    )
