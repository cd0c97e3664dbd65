"""Three routes to a steering vector: from labels, from one gradient step, from a random search
(measures §13).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.activations.blocks import blocks, chosen_layers
from loclin.activations.capture import activations
from loclin.errors import LoclinError
from loclin.search.splits import examples_hash
from loclin.steering.averages import (
    as_long_as,
    labels_averaged,
    loss_of,
    reference,
    space_of,
    step_averaged,
)
from loclin.steering.estimands import Estimand, Form
from loclin.steering.gradient import step_direction
from loclin.steering.prompts import PromptSet, prompt_halves, prompts_within
from loclin.steering.search import SIZE, perturbed_shifts, winners_vector
from loclin.steering.vector import SteeringVector
from loclin.tasks.batch import as_batch
from loclin.tasks.example import Example

ETA = 1e-3  # length of a gradient step over ‖θ‖, at which the shift is still linear in the step


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

    >>> import loclin
    >>> problem = loclin.load("sequences-small")
    >>> asked = [
    ...     Example(prompt=f"{task} {x} {y} a b =", answer=f" {x if task == 'copy' else y}",
    ...             options=(f" {x}", f" {y}"), group=f"{x} {y}")
    ...     for task in ("copy", "swap") for x, y in ("cd", "de", "ef", "fg", "gh", "hc")
    ... ]
    >>> vector = from_labels(problem.model, problem.tokenizer, asked)
    >>> vector.layers, vector.about["form"]
    ((0, 1), 'paired')
    """
    numbers = chosen_layers(len(blocks(model, path)), layers)
    _check_named("form", form, Form)
    prompts = prompts_within(examples, tokenizer, model, positive=positive, form=form)
    made = labels_averaged(model, prompts, form=form, layers=numbers, path=path)
    return described(
        model,
        dict(zip(numbers, made.direction(), strict=True)),
        route="labels",
        norm=labels_norm(prompts, form),
        data=examples_hash(examples),
        path=path,
        position="last" if made.labels is not None else "answer",
        about=made_of(prompts, form=form),
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
    """The shift [h_L(θ − ηĝ‖θ‖) − h_L(θ + ηĝ‖θ‖)]/2 of activations that one gradient step makes, as
    long as the difference that labels make (measures §13).

    The step is taken on one half of the examples, by group; its shift is read on the other. The
    model is afterwards what it was, bit for bit.

    Args:
        model, tokenizer, examples, layers, positive, path: as of `from_labels`; the model in
            float32 or better.
        estimand: E1, mean shift of a step towards the positive answer; E2, of a step towards the
            right answers; E3, class contrast of the shift of that step.
        eta: η, the length of the step over the length of the weights.
        space: "full", or a shell pattern of the parameters that step.
        seed: of the halves.

    Raises:
        LoclinError: as `from_labels`; an unknown estimand, an eta not above 0, weights in half
            precision, a gradient that is zero or not finite, E3 without classes.

    >>> import loclin
    >>> problem = loclin.load("sequences-small")
    >>> asked = [
    ...     Example(prompt=f"{task} {x} {y} a b =", answer=f" {x if task == 'copy' else y}",
    ...             options=(f" {x}", f" {y}"), group=f"{x} {y}")
    ...     for task in ("copy", "swap") for x, y in ("cd", "de", "ef", "fg", "gh", "hc")
    ... ]
    >>> step = from_gradient(problem.model, problem.tokenizer, asked, estimand="E1")
    >>> labels = from_labels(problem.model, problem.tokenizer, asked)
    >>> sorted(step.cosine(labels))  # by block
    [0, 1]
    """
    numbers = chosen_layers(len(blocks(model, path)), layers)
    _check_named("estimand", estimand, Estimand)
    if not 0 < eta < np.inf:
        raise LoclinError(f"expected eta above 0 and finite, found {eta}: change it")
    step, read = prompt_halves(examples, tokenizer, model, positive=positive, seed=seed)
    weights = space_of(model, space)
    toward = step_direction(model, weights, step, loss=loss_of(estimand))
    made = step_averaged(
        model, weights, toward, read, estimand=estimand, eta=eta, layers=numbers, path=path
    )
    about = {"eta": f"{eta:g}", "space": space, **made_of(read, seed=seed)}
    facts = {"route": f"gradient step, {estimand}", "data": examples_hash(examples)}
    return _as_labels(model, made.direction(), read, numbers, path, about=about, **facts)


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
    """The mean shift h_L(θ + σz) − h_L(θ) of activations of the best of many random weight steps,
    as long as the difference that labels make (measures §13).

    Steps are scored by the mean log p (nats) of the positive answer, or of the right ones where
    there is none, on one half of the examples, by group; the shift of the winners is read on the
    other. The model is afterwards what it was, bit for bit.

    Args:
        model, tokenizer, examples, layers, positive, path: as of `from_labels`; the model in
            float32 or better.
        count: random steps.
        winners: of them, the best, whose mean shift is taken.
        size: length of a step over the length of the weights.
        space: "full", or a shell pattern of the parameters that move.
        seed: of the halves and of the steps.

    Raises:
        LoclinError: as `from_labels`; weights in half precision, more winners than steps, a size
            that is not above 0.

    >>> import loclin
    >>> problem = loclin.load("sequences-small")
    >>> asked = [
    ...     Example(prompt=f"{task} {x} {y} a b =", answer=f" {x if task == 'copy' else y}",
    ...             options=(f" {x}", f" {y}"), group=f"{x} {y}")
    ...     for task in ("copy", "swap") for x, y in ("cd", "de", "ef", "fg", "gh", "hc")
    ... ]
    >>> found = from_search(problem.model, problem.tokenizer, asked, count=8, winners=2)
    >>> found.route, found.about["n"]
    ('search', '8')
    """
    numbers = chosen_layers(len(blocks(model, path)), layers)
    search, read = prompt_halves(examples, tokenizer, model, positive=positive, seed=seed)
    at: dict[str, Any] = {"layers": numbers, "seed": seed, "path": path, "best": winners}
    weights = space_of(model, space)
    found = perturbed_shifts(model, weights, search, read, count=count, size=size, **at)
    numbered = {"n": str(count), "k": str(winners), "size": f"{size:g}", "space": space}
    about = {**numbered, **made_of(read, seed=seed)}
    facts = {"route": "search", "data": examples_hash(examples)}
    raw = winners_vector(found, winners)
    return _as_labels(model, raw, read, numbers, path, about=about, **facts)


def labels_norm(prompts: PromptSet, form: Form = "auto") -> str:
    """What strength 1 of a vector from labels is, in words."""
    if prompts.labels is None or form == "paired":
        return f"the mean activation at one answer less that at the other ({len(prompts)} prompts)"
    return (
        f"the mean activation of prompts whose answer is {prompts.positive!r} less that of the "
        f"others ({len(prompts)} prompts)"
    )


def made_of(prompts: PromptSet, *, form: Form = "auto", seed: int | None = None) -> dict[str, str]:
    """Form, positive option and seed, as text for the file; what there is not is left out."""
    facts = {"form": prompts.form if form == "auto" else form, "positive": prompts.positive}
    return {n: str(v) for n, v in {**facts, "seed": seed}.items() if v is not None}


def _as_labels(
    model: PreTrainedModel | PeftModel,
    raw: Float[Tensor, "L d"],
    read: PromptSet,
    layers: Sequence[int],
    path: str | None,
    **facts: Any,
) -> SteeringVector:
    """A vector as long as the difference that labels make on the prompts it was read on."""
    directions = as_long_as(raw, reference(model, read, layers=layers, path=path), layers)
    norm = f"as long as {labels_norm(read)}"
    return described(
        model, dict(zip(layers, directions, strict=True)), norm=norm, path=path, **facts
    )


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
    about: Mapping[str, str],
) -> SteeringVector:
    """A vector with what it was made of, checked."""
    core = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    known_as = str(core.config.name_or_path)  # a hub id as it is, the last part of a folder's path
    vector = SteeringVector(
        directions=directions,
        model=name or (Path(known_as).name if Path(known_as).is_absolute() else known_as),
        revision=revision,
        model_type=str(core.config.model_type),
        blocks=len(blocks(model, path)),
        route=route,
        position=position,
        norm=norm,
        data=data,
        dtype=str(next(core.parameters()).dtype).removeprefix("torch."),
        layers_path=path,
        about=about,
    )
    vector.check()
    return vector


def _check_named(name: str, value: str, known: object) -> None:
    """Whether a name is one of those of a `Literal`."""
    if value not in get_args(known):
        raise LoclinError(
            f"expected {name} among {', '.join(get_args(known))}, found {value!r}: change it"
        )


def from_pairs(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    path: str | None = None,
) -> SteeringVector:
    """Mean of h_L at the last token of the positive texts, less that of the negative ones.

    The mean difference of contrastive pairs (CAA, arXiv 2312.06681); the texts need not be paired,
    as a difference of means is the mean of the differences. Strength 1 is that difference, of the
    model's width and in units of its activations.

    Args:
        model, tokenizer, layers, path: as of `from_labels`.
        positive, negative: texts, at least one of each.

    Raises:
        LoclinError: a list without texts, a text without tokens, a layer out of range.

    >>> import loclin
    >>> problem = loclin.load("sequences-small")
    >>> vector = from_pairs(problem.model, problem.tokenizer, ["copy a b"], ["swap a b"])
    >>> vector.layers, vector.width
    ((0, 1), 32)
    """
    if isinstance(positive, str) or isinstance(negative, str):
        raise LoclinError("expected lists of texts, found one text: give [text]")
    if not positive or not negative:
        raise LoclinError(
            f"expected positive and negative texts, found {len(positive)} and {len(negative)}: "
            "give at least one of each"
        )
    numbers = chosen_layers(len(blocks(model, path)), layers)

    def mean(texts: Sequence[str]) -> Float[Tensor, "L d"]:
        rows = tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt")
        batch = as_batch(rows).to(next(model.parameters()).device)
        return activations(model, batch, layers=numbers, path=path).mean(1)

    data = hashlib.sha256("\0".join([*positive, "", *negative]).encode()).hexdigest()[:16]
    return described(
        model,
        dict(zip(numbers, mean(positive) - mean(negative), strict=True)),
        route="labels",
        norm=f"the mean of {len(positive)} texts less that of {len(negative)}",
        data=data,
        path=path,
        about={"form": "texts"},
    )
