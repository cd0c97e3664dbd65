"""Every route of one `loclin steer`: its directions, their common length, how far they agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from loclin.activations.capture import activations
from loclin.geometry.gramian import at_least_float32
from loclin.models.problem import Problem
from loclin.progress import ProgressCallback
from loclin.run.rows import Part, Row
from loclin.run.runner import Session
from loclin.steering.agreement import Resampled, agreement, gradient_batches
from loclin.steering.averages import (
    Averaged,
    as_long_as,
    labels_averaged,
    logits_averaged,
    loss_of,
    reference,
    space_of,
    step_averaged,
)
from loclin.steering.compare import shares_of
from loclin.steering.gradient import step_direction
from loclin.steering.null import RandomSteps, cosines_by_law, drawn_cosines
from loclin.steering.search import perturbed_shifts, winners_vector
from loclin.studies.steering.rows import cosine_rows
from loclin.studies.steering.settings import SteerSettings
from loclin.studies.steering.splits import Splits


@dataclass(frozen=True, eq=False, kw_only=True)
class SteerContext:
    """What every step of one `loclin steer` needs; `layers` are all blocks."""

    settings: SteerSettings
    problem: Problem
    splits: Splits
    layers: tuple[int, ...]
    progress: ProgressCallback

    @property
    def model(self) -> PreTrainedModel | PeftModel:
        """The model, in evaluation mode."""
        return self.problem.model

    @property
    def at(self) -> dict[str, Any]:
        """Which blocks are read, and where they are."""
        return {"layers": self.layers, "path": self.settings.layers_path}

    def stage(self, text: str) -> Callable[[float], None]:
        """A stage begins; what shows the share of it that is done."""
        self.progress(text, 0.0)
        return partial(self.progress, text)


@dataclass(frozen=True, eq=False, kw_only=True)
class Directions:
    """The directions of every route at every layer.

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


def kept_directions(session: Session, ctx: SteerContext) -> Directions:
    """The directions that an earlier session of the command made, or new ones."""

    def made() -> Part:
        d = make_directions(ctx)
        raw, scaled = (
            {f"{kind}/{route}": at_least_float32(v).cpu().numpy() for route, v in each.items()}
            for kind, each in (("raw", d.raw), ("scaled", d.scaled))
        )
        lengths = np.array([d.lengths[n] for n in ctx.layers])
        return Part(rows=d.rows, arrays={**raw, **scaled, "lengths": lengths})

    part = session.pieces("directions", made)
    raw, scaled = (
        {r: torch.from_numpy(part.arrays[f"{kind}/{r}"]) for r in ctx.settings.routes}
        for kind in ("raw", "scaled")
    )
    lengths = dict(zip(ctx.layers, part.arrays["lengths"].tolist(), strict=True))
    return Directions(raw=raw, scaled=scaled, lengths=lengths, rows=part.rows)


def make_directions(ctx: SteerContext) -> Directions:
    """Every route, and how far they agree."""
    settings, labels, model = ctx.settings, ctx.splits.labels, ctx.model
    raw: dict[str, Tensor] = {}
    prompts: dict[str, Averaged] = {}
    shares, batches, null = dict[str, float](), tuple[Averaged, ...](), None
    ctx.stage("reading activations")
    labelled = labels_averaged(model, labels, form=settings.form, **ctx.at)
    lengths = labelled.direction().double().norm(dim=-1)
    if settings.form != "auto":
        lengths = reference(model, labels, **ctx.at)
    for route in settings.routes:
        if route == "gradient":
            shares, raw[route], batches = _gradient_step(ctx)
        elif route == "search":
            raw[route] = _search(ctx)
        else:
            prompts[route] = labelled if route == "labels" else _logits(ctx)
            raw[route] = prompts[route].direction()
    if shares and "labels" in raw and settings.null:
        null = _null(ctx, shares, raw["labels"])
    made = Resampled(prompts=prompts, batches=batches)
    return Directions(
        raw=raw,
        scaled={route: as_long_as(each, lengths, ctx.layers) for route, each in raw.items()},
        lengths=dict(zip(ctx.layers, lengths.tolist(), strict=True)),
        rows=list(cosine_rows(agreement(raw, made, seed=settings.seed), null, ctx.layers)),
    )


def _logits(ctx: SteerContext) -> Averaged:
    ctx.stage("differentiating logits")
    return logits_averaged(ctx.model, ctx.splits.labels, **ctx.at)


def _gradient_step(
    ctx: SteerContext,
) -> tuple[dict[str, float], Float[Tensor, "L d"], tuple[Averaged, ...]]:
    """How long the step is in every tensor, the shift that it makes, and the same in batches, for
    its interval.
    """
    settings, splits, model = ctx.settings, ctx.splits, ctx.model
    ctx.stage("stepping along the gradient")
    space, by = space_of(model, settings.space), {"estimand": settings.estimand, **ctx.at}
    weights = step_direction(model, space, splits.gradient, loss=loss_of(settings.estimand))
    whole = step_averaged(model, space, weights, splits.shift, eta=settings.eta, **by)
    shares = shares_of(space, weights)
    del weights  # as large as the model
    progress = ctx.stage("stepping along the gradient, batch by batch")
    batches = gradient_batches(model, space, splits.gradient, splits.shift, progress=progress, **by)
    return shares, whole.direction(), batches


def _search(ctx: SteerContext) -> Float[Tensor, "L d"]:
    settings, splits = ctx.settings, ctx.splits
    found = perturbed_shifts(
        ctx.model,
        space_of(ctx.model, settings.space),
        splits.gradient,
        splits.shift,
        count=settings.n,
        best=settings.k,
        size=settings.size,
        seed=settings.seed,
        progress=ctx.stage("searching at random"),
        **ctx.at,
    )
    return winners_vector(found, settings.k)


def _null(
    ctx: SteerContext, shares: Mapping[str, float], labels: Float[Tensor, "L d"]
) -> Float[np.ndarray, "m L"]:
    """Cosines with labels of random steps like the gradient step."""
    settings, shift = ctx.settings, ctx.splits.shift
    steps = RandomSteps(
        model=ctx.model,
        space=space_of(ctx.model, settings.space),
        shares=shares,
        read=shift,
        estimand=settings.estimand,
        eta=settings.eta,
        seed=settings.seed,
        **ctx.at,
    )
    progress = ctx.stage("stepping at random")
    if settings.null == "law":
        return cosines_by_law(steps, labels, progress=progress)
    origin = activations(ctx.model, shift.batch, **ctx.at)
    return drawn_cosines(steps, labels, count=int(settings.null), origin=origin, progress=progress)
