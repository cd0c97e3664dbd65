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
from torch import Tensor

DENSITY = 0.2  # share of every task vector that TIES keeps (Yadav et al. 2023, arXiv 2306.01708)


def soup(start: Float[Tensor, " D"], ends: Sequence[Float[Tensor, " D"]]) -> Float[Tensor, " D"]:
    """The mean of the specialists (Wortsman et al. 2022, arXiv 2203.05482)."""
    return arithmetic(start, ends, 1 / len(ends))


def arithmetic(
    start: Float[Tensor, " D"], ends: Sequence[Float[Tensor, " D"]], scale: float
) -> Float[Tensor, " D"]:
    """start + λ Σ (end − start): task arithmetic (Ilharco et al. 2022, arXiv 2212.04089).

    >>> arithmetic(torch.zeros(2), [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])], 0.5)
    tensor([0.5000, 1.0000])
    """
    return start + scale * torch.stack([end - start for end in ends]).sum(0)


def ties(
    start: Float[Tensor, " D"], ends: Sequence[Float[Tensor, " D"]], scale: float
) -> Float[Tensor, " D"]:
    """start + λ TIES(end − start): the largest fifth of each, the sign of the larger sum, the mean
    of those that have it.

    Yadav et al. 2023, arXiv 2306.01708, by peft.
    """
    vectors = [end - start for end in ends]
    return start + scale * elected(vectors, torch.ones(len(vectors), device=start.device), DENSITY)


def barrier(losses: Float[np.ndarray, " n"], shares: Sequence[float]) -> float:
    """max over the line of L(α) − [(1−α) L(0) + α L(1)], 0 where the loss never rises above the
    chord (Frankle et al. 2020).

    Linear mode connectivity, arXiv 1912.05671.

    Args:
        losses: at every α.
        shares: the α, from 0 to 1.

    >>> barrier(np.array([1.0, 3.0, 2.0]), [0.0, 0.5, 1.0])
    1.5
    """
    alpha = np.asarray(shares)
    return float((losses - (1 - alpha) * losses[0] - alpha * losses[-1]).max())
