"""Specialists joined without training: average, task arithmetic, TIES; and the loss on the straight
line between two (measures §12).

All in the coordinates that are trained. With LoRA these are the factors: every specialist starts at
one adapter, and the merged one has the same rank, but a mean of products BA is not the product of
the means.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from peft.utils.merge_utils import ties as elected

from loclin.schedules.comparison import Choice, Point, ScheduleComparison

DENSITY = 0.2  # share of every task vector that TIES keeps (Yadav et al. 2023, arXiv 2306.01708)


def soup(start: Point, ends: Sequence[Point]) -> Point:
    """The mean of the specialists (Wortsman et al. 2022, arXiv 2203.05482)."""
    return arithmetic(start, ends, 1 / len(ends))


def arithmetic(start: Point, ends: Sequence[Point], scale: float) -> Point:
    """start + λ Σ (end − start): task arithmetic (Ilharco et al. 2022, arXiv 2212.04089).

    >>> arithmetic(torch.zeros(2), [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])], 0.5)
    tensor([0.5000, 1.0000])
    """
    return start + scale * torch.stack([end - start for end in ends]).sum(0)


def ties(start: Point, ends: Sequence[Point], scale: float) -> Point:
    """start + λ TIES(end − start): the largest fifth of each, the sign of the larger sum, the mean
    of those that have it (Yadav et al. 2023, arXiv 2306.01708, by peft).
    """
    vectors = [end - start for end in ends]
    return start + scale * elected(vectors, torch.ones(len(vectors), device=start.device), DENSITY)


def merge_by(comparison: ScheduleComparison, name: str) -> tuple[Point, Choice | None]:
    """Specialists of every task joined, and how the scale of their task vectors was chosen; the
    average has none.
    """
    start, ends = comparison.start, [comparison.specialist(task).end for task in comparison.tasks]
    if name == "average":
        return soup(start, ends), None
    join, scales = ties if name == "TIES" else arithmetic, comparison.options.merge_scales
    choice = comparison.choice(scales, (join(start, ends, scale) for scale in scales))
    return join(start, ends, choice.strength), choice


def barrier(losses: Float[np.ndarray, " n"], shares: Sequence[float]) -> float:
    """max of L(α) − [(1−α) L(0) + α L(1)] over the shares α of a line from 0 to 1: the barrier of
    linear mode connectivity, 0 where the loss is never above the chord (Frankle et al. 2020, arXiv
    1912.05671).

    >>> barrier(np.array([1.0, 3.0, 2.0]), [0.0, 0.5, 1.0])
    1.5
    """
    alpha = np.asarray(shares)
    return float((losses - (1 - alpha) * losses[0] - alpha * losses[-1]).max())
