"""What mends training one task after another: replay, elastic weight consolidation, updates kept
out of the old task's gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loclin.parameters import ParameterSpace
from loclin.tasks.batch import IGNORED, Batch, answer_logits


def replayed(batch: int, share: float) -> tuple[int, int]:
    """Examples of the new task and of the old ones in a batch with replay, at least one of each.

    >>> replayed(24, 0.25)
    (18, 6)
    """
    old = min(max(round(share * batch), 1), batch - 1)
    return batch - old, old


def fisher_diagonal(
    model: nn.Module, space: ParameterSpace, data: Batch, *, seed: int
) -> Float[Tensor, " D"]:
    """F_i = E[(∂ log p(token)/∂θ_i)²] per answer token, at the current point: the diagonal of the
    Gauss-Newton matrix of the mean loss per answer token.

    The tokens are drawn from the model, after the right ones before them, with one gradient an
    example: squares of the data's own gradients are no curvature (Kunstner et al. 2019, arXiv
    1905.12558).
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(batch: Batch) -> tuple[Tensor, int]:
        logits, labels = answer_logits(model, batch)
        chosen = logits[labels != IGNORED].float()
        sampled = torch.multinomial(chosen.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
        return nn.functional.cross_entropy(chosen, sampled.to(chosen.device), reduction="sum"), 1

    total = torch.zeros_like(space.read())
    for row in data.chunks(1):
        total += space.gradient(drawn, [row]).square()
    return total / int((data.labels[:, 1:] != IGNORED).sum())


def consolidated(
    space: ParameterSpace, anchor: Float[Tensor, " D"], fisher: Float[Tensor, " D"], strength: float
) -> Callable[[], Float[Tensor, " D"]]:
    """Gradient λ F ⊙ (θ − anchor) of the penalty (λ/2) Σ F_i (θ_i − anchor_i)² (Kirkpatrick et al.
    2017, arXiv 1612.00796).

    With λ = 1 the penalty is the Gauss-Newton model of the old task's mean loss, so that training
    minimises the sum of both tasks' losses as far as the diagonal knows the old one.
    """
    return lambda: strength * fisher * (space.read() - anchor)


def evaluations_of(examples: int, batch: int) -> int:
    """Gradient evaluations that so many examples are worth, one a batch.

    >>> evaluations_of(64, 24)
    3
    """
    return ceil(examples / batch)
