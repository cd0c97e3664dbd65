"""Directions as averages over prompts: what every route averages, contrastive activation addition
(CAA) in both of its forms too, so that it can be drawn again and scaled alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from loclin.activations.capture import activations
from loclin.errors import LoclinError
from loclin.parameters import ParameterSpace
from loclin.steering.estimands import Estimand, Form
from loclin.steering.gradient import centred_shift
from loclin.steering.prompts import PromptSet
from loclin.steering.readout import logit_gradient


@dataclass(frozen=True, eq=False, kw_only=True)
class Averaged:
    """A direction that is an average over prompts.

    Attributes:
        each: one vector of every prompt at every layer.
        labels: the direction is the mean where they are true less the mean where they are not;
            without them, the mean.
        groups: of every prompt.
    """

    each: Float[Tensor, "L n d"]
    labels: Bool[np.ndarray, " n"] | None
    groups: tuple[str, ...]

    def direction(self) -> Float[Tensor, "L d"]:
        """The average over all prompts."""
        if self.labels is not None:
            return class_contrast(self.each, self.labels)
        return self.each.double().mean(1).to(self.each.dtype)

    def weighted(self, layer: int, weights: Float[np.ndarray, "r n"]) -> Float[np.ndarray, "r d"]:
        """The average at one layer by every row of weights of the prompts; NaN where a class has
        none.
        """
        each: np.ndarray = self.each[layer].double().numpy()
        if self.labels is None:
            return _mean(each, weights)
        true, false = (_mean(each, weights * side) for side in (self.labels, ~self.labels))
        return np.asarray(true - false)


def _mean(
    each: Float[np.ndarray, "n d"], weights: Float[np.ndarray, "r n"]
) -> Float[np.ndarray, "r d"]:
    total, found = weights.sum(1, keepdims=True), np.full((len(weights), each.shape[1]), np.nan)
    np.divide(weights @ each, total, out=found, where=total > 0)
    return found


def labels_averaged(
    model: nn.Module, prompts: PromptSet, *, form: Form, layers: Sequence[int], path: str | None
) -> Averaged:
    """What the vector from labels is an average of: activations in the class form, differences in
    the paired one.

    Raises:
        LoclinError: the class form without classes.
    """
    if form == "class" and prompts.labels is None:
        raise LoclinError(
            "expected examples with a positive option for the class form, found none: name it, or "
            "take another form"
        )
    if prompts.labels is None or form == "paired":
        each = paired_differences(model, prompts, layers=layers, path=path)
        return Averaged(each=each, labels=None, groups=prompts.groups)
    each = activations(model, prompts.batch, layers=layers, path=path)
    return Averaged(each=each, labels=prompts.labels, groups=prompts.groups)


def logits_averaged(
    model: nn.Module, prompts: PromptSet, *, layers: Sequence[int], path: str | None
) -> Averaged:
    """The gradient of every prompt's logit difference in the activations: the baseline of §13."""
    each = logit_gradient(model, prompts, layers=layers, path=path, per_prompt=True)
    return Averaged(each=each, labels=None, groups=prompts.groups)


def step_averaged(
    model: nn.Module,
    space: ParameterSpace,
    direction: Float[Tensor, " D"],
    prompts: PromptSet,
    *,
    estimand: Estimand,
    eta: float,
    layers: Sequence[int],
    path: str | None,
) -> Averaged:
    """The shift that a weight step of length η‖θ‖, taken forward and back, makes on every prompt;
    E3 contrasts the classes.

    Raises:
        LoclinError: E3 without classes, weights in half precision.
    """
    if estimand == "E3" and prompts.labels is None:
        raise LoclinError(
            "expected examples with a positive option for E3, found none: name it, or take E1 or E2"
        )
    batch = prompts.batch
    moved = centred_shift(model, space, direction, batch, size=eta, layers=layers, path=path)
    return estimated_by(moved, prompts, estimand)


def estimated_by(moved: Float[Tensor, "L n d"], prompts: PromptSet, estimand: Estimand) -> Averaged:
    """Shifts of every prompt as what the estimand averages: all of them, or for E3 one class less
    the other.
    """
    labels = prompts.labels if estimand == "E3" else None
    return Averaged(each=moved, labels=labels, groups=prompts.groups)


def reference(
    model: nn.Module, prompts: PromptSet, *, layers: Sequence[int], path: str | None
) -> Float[Tensor, " L"]:
    """How long the difference is that labels make at each layer: of the classes, or of the paired
    answers where there are none.
    """
    made = labels_averaged(model, prompts, form="auto", layers=layers, path=path)
    lengths: Tensor = made.direction().double().norm(dim=-1)
    return lengths


def as_long_as(
    direction: Float[Tensor, "L d"], lengths: Float[Tensor, " L"], layers: Sequence[int]
) -> Float[Tensor, "L d"]:
    """The same directions with other lengths.

    Raises:
        LoclinError: a direction or a length that is zero or not finite; the layer is named.
    """
    own = direction.double().norm(dim=-1)
    for layer, a, b in zip(layers, own.tolist(), lengths.tolist(), strict=True):
        if not (0 < a < np.inf and 0 < b < np.inf):
            raise LoclinError(
                f"expected directions that are finite and not zero, found lengths of {a:g} and "
                f"{b:g} at block {layer}: choose other blocks or more examples"
            )
    scaled: Tensor = (direction.double() * (lengths / own)[:, None]).to(direction.dtype)
    return scaled


def space_of(model: nn.Module, pattern: str) -> ParameterSpace:
    """The weights that step: "full", or a shell pattern of their names."""
    return ParameterSpace(model, "*" if pattern == "full" else pattern)


def loss_of(estimand: Estimand) -> Literal["fixed", "gold"]:
    """The loss of the gradient step: of the positive answer for E1, else of the right one."""
    return "fixed" if estimand == "E1" else "gold"


def class_contrast(
    h: Float[Tensor, "L n d"], labels: Bool[np.ndarray, " n"]
) -> Float[Tensor, "L d"]:
    """CAA, class form: mean of h over prompts whose label is true, minus the mean over the others
    (measures §13; Panickssery et al. 2024, "Steering Llama 2 via contrastive activation addition").

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
