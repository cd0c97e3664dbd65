"""Every route of one `loclin steer`: the directions, their common length, and how far they agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from loclin.activations.capture import activations
from loclin.models.problem import Problem
from loclin.record import Row
from loclin.steering.agreement import Resampled, agreement, gradient_batches, null_cosines
from loclin.steering.config import Config
from loclin.steering.gradient import step_direction
from loclin.steering.parts import Parts
from loclin.steering.routes import (
    Averaged,
    as_long_as,
    labels_averaged,
    logits_averaged,
    loss_of,
    reference,
    searched,
    space_of,
    step_averaged,
)
from loclin.steering.rows import cosine_rows

Told = Callable[[str, float], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Work:
    """What every step of one `loclin steer` needs.

    Attributes:
        config: what was asked.
        problem: model and tokenizer.
        parts: the examples by what they serve.
        layers: all blocks.
        told: shows what is being done, and which share of it is done.
    """

    config: Config
    problem: Problem
    parts: Parts
    layers: tuple[int, ...]
    told: Told

    @property
    def model(self) -> PreTrainedModel | PeftModel:
        """The model, in evaluation mode."""
        return self.problem.model

    def share(self, text: str) -> Callable[[float], None]:
        """Shows one kind of work as it goes on."""
        self.told(text, 0.0)
        return lambda share: self.told(text, share)


@dataclass(frozen=True, eq=False, kw_only=True)
class Made:
    """The directions of every route at every layer, and what they are averages of.

    Attributes:
        raw: as the routes give them.
        scaled: as long as the difference that labels make.
        lengths: of that difference, by layer.
        rows: cosines between the routes.
    """

    raw: Mapping[str, Float[Tensor, "L d"]]
    scaled: Mapping[str, Float[Tensor, "L d"]]
    lengths: Mapping[int, float]
    rows: Sequence[Row]


def made(work: Work) -> Made:
    """Every route, and how far they agree."""
    config, parts, model, path = work.config, work.parts, work.model, work.config.layers_path
    raw: dict[str, Tensor] = {}
    prompts: dict[str, Averaged] = {}
    step, null = None, None
    work.told("reading activations", 0.0)
    labelled = labels_averaged(model, parts.labels, form=config.form, layers=work.layers, path=path)
    unit = reference(model, parts.labels, layers=work.layers, path=path)
    for route in config.routes:
        if route == "labels":
            prompts[route] = labelled
        elif route == "logits":
            work.told("differentiating logits", 0.0)
            prompts[route] = logits_averaged(model, parts.labels, layers=work.layers, path=path)
        elif route == "gradient":
            step = _stepped(work)
            raw[route] = step.direction
        else:
            raw[route] = _searched(work)
        if route in prompts:
            raw[route] = prompts[route].direction()
    if step is not None and "labels" in raw and config.null:
        null = step.null(work, raw["labels"])
    found = agreement(
        raw, Resampled(prompts=prompts, batches=step.batches if step else ()), seed=config.seed
    )
    return Made(
        raw=raw,
        scaled={route: as_long_as(each, unit, work.layers) for route, each in raw.items()},
        lengths=dict(zip(work.layers, unit.tolist(), strict=True)),
        rows=list(cosine_rows(found, null, work.layers)),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Stepped:
    """The gradient step.

    Attributes:
        weights: its direction in the space of the weights.
        direction: the shift that it makes.
        batches: the same in parts, for the interval.
        origin: activations of the shift part before any step.
    """

    weights: Float[Tensor, " D"]
    direction: Float[Tensor, "L d"]
    batches: tuple[Averaged, ...]
    origin: Float[Tensor, "L n d"]

    def null(self, work: Work, labels: Float[Tensor, "L d"]) -> Float[np.ndarray, "m L"]:
        """Cosines with labels of random steps."""
        config = work.config
        return null_cosines(
            work.model,
            space_of(work.model, config.space),
            self.weights,
            work.parts.shift,
            labels,
            estimand=config.estimand,
            eta=config.eta,
            count=config.null,
            layers=work.layers,
            path=config.layers_path,
            origin=self.origin,
            seed=config.seed,
            told=work.share("stepping at random"),
        )


def _stepped(work: Work) -> Stepped:
    config, parts, model, path = work.config, work.parts, work.model, work.config.layers_path
    work.told("stepping along the gradient", 0.0)
    space = space_of(model, config.space)
    weights = step_direction(model, space, parts.gradient, loss=loss_of(config.estimand))
    origin = activations(model, parts.shift.batch, layers=work.layers, path=path)
    whole = step_averaged(
        model,
        space,
        weights,
        parts.shift,
        estimand=config.estimand,
        eta=config.eta,
        layers=work.layers,
        path=path,
    )
    batches = gradient_batches(
        model,
        space,
        parts.gradient,
        parts.shift,
        estimand=config.estimand,
        layers=work.layers,
        path=path,
        told=work.share("stepping along the gradient, batch by batch"),
    )
    return Stepped(weights=weights, direction=whole.direction(), batches=batches, origin=origin)


def _searched(work: Work) -> Float[Tensor, "L d"]:
    config = work.config
    return searched(
        work.model,
        space_of(work.model, config.space),
        work.parts.gradient,
        work.parts.shift,
        count=config.n,
        winners=config.k,
        size=config.size,
        layers=work.layers,
        seed=config.seed,
        path=config.layers_path,
        told=work.share("searching at random"),
    )
