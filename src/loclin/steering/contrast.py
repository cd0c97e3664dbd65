"""Directions from labels alone: contrastive activation addition (CAA) in both of its forms
(Panickssery et al. 2024, "Steering Llama 2 via contrastive activation addition").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from loclin.activations.capture import activations
from loclin.errors import LoclinError
from loclin.steering.prompts import PromptSet


def class_contrast(
    h: Float[Tensor, "L n d"], labels: Bool[np.ndarray, " n"]
) -> Float[Tensor, "L d"]:
    """CAA, class form: mean of h over prompts whose label is true, minus the mean over the others
    (measures §13).

    Sums are in float64: the two means are often far longer than their difference.

    Args:
        h: activations by layer and prompt.
        labels: whether the right answer is the positive one.

    Raises:
        LoclinError: prompts of one class alone.

    >>> h = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 4.0]]])
    >>> class_contrast(h, np.array([True, True, False]))
    tensor([[ 2., -4.]])
    """
    positive = int(labels.sum())
    if positive in (0, len(labels)):
        raise LoclinError(
            f"expected prompts of both classes, found {len(labels)} with {positive} of the "
            "positive one: give both"
        )
    weights = torch.from_numpy(labels / positive - ~labels / (len(labels) - positive)).to(h.device)
    return torch.stack([weights @ layer.double() for layer in h]).to(h.dtype)


def paired_differences(
    model: nn.Module, prompts: PromptSet, *, layers: Sequence[int], path: str | None = None
) -> Float[Tensor, "L n d"]:
    """h at the answer token of prompt and toward token, minus the same for the away token; CAA's
    paired form is the mean over n. Raises as `activations` does.
    """
    toward, away = (
        activations(model, prompts.answered(t), layers=layers, position="answer", path=path)
        for t in (prompts.toward, prompts.away)
    )
    return toward - away
