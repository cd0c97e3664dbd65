"""Three routes to a steering vector: from labels, from one gradient step, from a random search
(measures §13).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from jaxtyping import Bool, Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.activations.blocks import blocks, chosen_layers
from loclin.activations.capture import activations
from loclin.errors import LoclinError
from loclin.parameters import ParameterSpace
from loclin.search.splits import examples_hash
from loclin.steering.asked import Asked
from loclin.steering.config import Estimand, Form
from loclin.steering.contrast import class_contrast, paired_differences
from loclin.steering.given import asked_within, check_named, halves
from loclin.steering.gradient import centred_shift, step_direction
from loclin.steering.readout import logit_gradient
from loclin.steering.searched import SIZE, perturbed_shifts, winners_vector
from loclin.steering.vector import SteeringVector
from loclin.tasks.example import Example

ETA = 1e-3  # length of a gradient step over ‖θ‖, at which the shift is still linear in the step


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
        """The average at one layer with other weights of the prompts, once for every row of
        weights; NaN where a class has none.
        """
        each: np.ndarray = self.each[layer].double().numpy()
        if self.labels is None:
            return _mean(each, weights)
        difference: np.ndarray = _mean(each, weights * self.labels) - _mean(
            each, weights * ~self.labels
        )
        return difference


def _mean(
    each: Float[np.ndarray, "n d"], weights: Float[np.ndarray, "r n"]
) -> Float[np.ndarray, "r d"]:
    total, found = weights.sum(1, keepdims=True), np.full((len(weights), each.shape[1]), np.nan)
    np.divide(weights @ each, total, out=found, where=total > 0)
    return found


def from_labels(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    layers: Sequence[int] | None = None,
    positive: str | None = None,
    form: Form = "auto",
    path: str | None = None,
) -> SteeringVector:
    """The difference that labels make (CAA, measures §13); strength 1 is that difference.

    Class form: mean of h_L at the last prompt token where the positive option is right, less the
    mean where not. Paired form: mean over prompts of h_L at the answer token of one answer, less
    that of the other.

    Args:
        model: in evaluation mode; untouched.
        tokenizer: its tokenizer.
        examples: each with two options that differ in one token.
        layers: 0-based, negative from the end; all by default.
        positive: the option that counts as +; " yes" where every example has it.
        form: "auto" takes the class form where there is a positive option.
        path: of the list of blocks, where it is not found by itself.

    Raises:
        LoclinError: examples that cannot be asked so or are longer than the model's context, one
            class alone, a layer out of range, an unknown form, the class form without classes.
    """
    numbers = chosen_layers(len(blocks(model, path)), layers)
    check_named("form", form, Form)
    asked = asked_within(examples, tokenizer, model, positive=positive, form=form)
    made = labels_averaged(model, asked, form=form, layers=numbers, path=path)
    return described(
        model,
        dict(zip(numbers, made.direction(), strict=True)),
        route="labels",
        norm=labels_norm(asked, class_form=made.labels is not None),
        data=examples_hash(examples),
        path=path,
        position="last" if made.labels is not None else "answer",
        about=made_of(asked, form=form),
    )


def from_gradient(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    layers: Sequence[int] | None = None,
    estimand: Estimand = "E1",
    eta: float = ETA,
    space: str = "full",
    positive: str | None = None,
    path: str | None = None,
    seed: int = 0,
) -> SteeringVector:
    """The shift of activations that one gradient step makes, as long as the difference that labels
    make.

    The step is taken on one half of the examples, by group, and its shift is read on the other
    half.

    Args:
        model: in evaluation mode, float32 or better; bit for bit what it was afterwards.
        tokenizer: its tokenizer.
        examples: each with two options that differ in one token.
        layers: 0-based, negative from the end; all by default.
        estimand: E1, mean shift of a step towards the positive answer; E2, of a step towards the
            right answers; E3, class contrast of the shift of that step.
        eta: η, the length of the step over the length of the weights.
        space: "full", or a shell pattern of the parameters that step.
        positive: the option that counts as +; " yes" where every example has it.
        path: of the list of blocks, where it is not found by itself.
        seed: of the halves.

    Raises:
        LoclinError: examples that cannot be asked so or are longer than the model's context, a
            layer out of range, an unknown estimand, an eta not above 0, weights in half precision,
            a gradient that is zero or not finite, E3 without classes.
    """
    numbers = chosen_layers(len(blocks(model, path)), layers)
    check_named("estimand", estimand, Estimand)
    if not 0 < eta < np.inf:
        raise LoclinError(f"expected eta above 0 and finite, found {eta}: change it")
    step, read = halves(examples, tokenizer, model, positive=positive, seed=seed)
    weights = space_of(model, space)
    toward = step_direction(model, weights, step, loss=loss_of(estimand))
    made = step_averaged(
        model, weights, toward, read, estimand=estimand, eta=eta, layers=numbers, path=path
    )
    directions = as_long_as(
        made.direction(), reference(model, read, layers=numbers, path=path), numbers
    )
    return described(
        model,
        dict(zip(numbers, directions, strict=True)),
        route=f"gradient step, {estimand}",
        norm=f"as long as {labels_norm(read, class_form=read.labels is not None)}",
        data=examples_hash(examples),
        path=path,
        about={"eta": f"{eta:g}", "space": space, **made_of(read, seed=seed)},
    )


def from_search(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    layers: Sequence[int] | None = None,
    count: int = 200,
    winners: int = 20,
    size: float = SIZE,
    space: str = "full",
    positive: str | None = None,
    path: str | None = None,
    seed: int = 0,
) -> SteeringVector:
    """The mean shift of activations of the best of many random weight steps, as long as the
    difference that labels make.

    Steps are scored by log p(toward) on one half of the examples, by group, and the shift of the
    winners is read on the other half.

    Args:
        model: in evaluation mode, float32 or better; bit for bit what it was afterwards.
        tokenizer: its tokenizer.
        examples: each with two options that differ in one token.
        layers: 0-based, negative from the end; all by default.
        count: random steps.
        winners: of them, the best, whose mean shift is taken.
        size: length of a step over the length of the weights.
        space: "full", or a shell pattern of the parameters that move.
        positive: the option that counts as +; " yes" where every example has it.
        path: of the list of blocks, where it is not found by itself.
        seed: of the halves and of the steps.

    Raises:
        LoclinError: examples that cannot be asked so or are longer than the model's context, a
            layer out of range, weights in half precision, more winners than steps.
    """
    numbers = chosen_layers(len(blocks(model, path)), layers)
    search, read = halves(examples, tokenizer, model, positive=positive, seed=seed)
    raw = searched(
        model,
        space_of(model, space),
        search,
        read,
        count=count,
        winners=winners,
        size=size,
        layers=numbers,
        seed=seed,
        path=path,
    )
    directions = as_long_as(raw, reference(model, read, layers=numbers, path=path), numbers)
    return described(
        model,
        dict(zip(numbers, directions, strict=True)),
        route="search",
        norm=f"as long as {labels_norm(read, class_form=read.labels is not None)}",
        data=examples_hash(examples),
        path=path,
        about={
            "n": str(count),
            "k": str(winners),
            "size": f"{size:g}",
            "space": space,
            **made_of(read, seed=seed),
        },
    )


def labels_averaged(
    model: nn.Module, asked: Asked, *, form: Form, layers: Sequence[int], path: str | None
) -> Averaged:
    """What the vector from labels is an average of: activations in the class form, differences in
    the paired one.

    Raises:
        LoclinError: the class form without classes.
    """
    if form == "class" and asked.labels is None:
        raise LoclinError(
            "expected examples with a positive option for the class form, found none: name it, or "
            "take another form"
        )
    if asked.labels is None or form == "paired":
        each = paired_differences(model, asked, layers=layers, path=path)
        return Averaged(each=each, labels=None, groups=asked.groups)
    each = activations(model, asked.batch, layers=layers, path=path)
    return Averaged(each=each, labels=asked.labels, groups=asked.groups)


def logits_averaged(
    model: nn.Module, asked: Asked, *, layers: Sequence[int], path: str | None
) -> Averaged:
    """The gradient of the logit difference in the activations of every prompt: the baseline of §13."""
    each = logit_gradient(model, asked, layers=layers, path=path, per_prompt=True)
    return Averaged(each=each, labels=None, groups=asked.groups)


def step_averaged(
    model: nn.Module,
    space: ParameterSpace,
    direction: Float[Tensor, " D"],
    asked: Asked,
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
    if estimand == "E3" and asked.labels is None:
        raise LoclinError(
            "expected examples with a positive option for E3, found none: name it, or take E1 or E2"
        )
    moved = centred_shift(model, space, direction, asked.batch, size=eta, layers=layers, path=path)
    return estimated_by(moved, asked, estimand)


def estimated_by(moved: Float[Tensor, "L n d"], asked: Asked, estimand: Estimand) -> Averaged:
    """Shifts of every prompt as what the estimand averages: all of them, or for E3 one class less
    the other.
    """
    return Averaged(
        each=moved, labels=asked.labels if estimand == "E3" else None, groups=asked.groups
    )


def searched(
    model: nn.Module,
    space: ParameterSpace,
    search: Asked,
    read: Asked,
    *,
    count: int,
    winners: int,
    size: float,
    layers: Sequence[int],
    seed: int,
    path: str | None,
    told: Callable[[float], None] | None = None,
) -> Float[Tensor, "L d"]:
    """Mean shift on the prompts of `read` of the random steps that score best on those of `search`."""
    found = perturbed_shifts(
        model,
        space,
        search,
        read,
        count=count,
        size=size,
        layers=layers,
        seed=seed,
        best=winners,
        path=path,
        told=told,
    )
    return winners_vector(found, winners)


def reference(
    model: nn.Module, asked: Asked, *, layers: Sequence[int], path: str | None
) -> Float[Tensor, " L"]:
    """How long the difference is that labels make at each layer: of the classes, or of the paired
    answers where there are none.
    """
    made = labels_averaged(model, asked, form="auto", layers=layers, path=path)
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
                f"{b:g} at block {layer}: choose other "
                "blocks or more examples"
            )
    scaled: Tensor = (direction.double() * (lengths / own)[:, None]).to(direction.dtype)
    return scaled


def space_of(model: nn.Module, pattern: str) -> ParameterSpace:
    """The weights that step: "full", or a shell pattern of their names."""
    return ParameterSpace(model, "*" if pattern == "full" else pattern)


def loss_of(estimand: Estimand) -> Literal["fixed", "gold"]:
    """The loss of the gradient step: of the positive answer for E1, of the right one for E2 and E3."""
    return "fixed" if estimand == "E1" else "gold"


def labels_norm(asked: Asked, *, class_form: bool) -> str:
    """What strength 1 is, in words."""
    if class_form:
        return f"the mean activation of prompts whose answer is {asked.positive!r} less that of the others ({len(asked)} prompts)"
    return f"the mean activation at one answer less that at the other ({len(asked)} prompts)"


def made_of(asked: Asked, *, form: Form = "auto", seed: int | None = None) -> dict[str, str]:
    """Form, positive option and seed, as text for the file; what there is not is left out."""
    told = {
        "form": asked.form if form == "auto" else form,
        "positive": asked.positive,
        "seed": seed,
    }
    return {name: str(value) for name, value in told.items() if value is not None}


def described(
    model: PreTrainedModel | PeftModel,
    directions: Mapping[int, Tensor],
    *,
    route: str,
    norm: str,
    data: str,
    path: str | None,
    position: str = "last",
    name: str | None = None,
    revision: str | None = None,
    about: Mapping[str, str] | None = None,
) -> SteeringVector:
    """A vector with what it was made of."""
    core = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    vector = SteeringVector(
        directions=directions,
        model=name or _known_as(core),
        revision=revision,
        model_type=str(core.config.model_type),
        blocks=len(blocks(model, path)),
        route=route,
        position=position,
        norm=norm,
        data=data,
        dtype=str(next(core.parameters()).dtype).removeprefix("torch."),
        layers_path=path,
        about=about or {},
    )
    vector.check()
    return vector


def _known_as(model: PreTrainedModel) -> str:
    """A hub id as it is, the last part of a folder's path."""
    name = str(model.config.name_or_path)
    return Path(name).name if Path(name).is_absolute() else name
