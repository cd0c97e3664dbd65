"""Every route of one `loclin steer`: its directions, how long the difference is that labels make,
how far the routes agree.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.activations.capture import activations
from loclin.run.rows import Part
from loclin.steering.agreement import agreement, gradient_batches
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
from loclin.studies.steering.context import SteeringContext
from loclin.studies.steering.rows import cosine_rows
from loclin.studies.steering.settings import SteerSettings

Context = SteeringContext[SteerSettings]
#: Keys of the arrays: a direction of every route as it is made, by layer; and the lengths.
RAW, LENGTHS = "raw/", "lengths"


def make_directions(ctx: Context) -> Part:
    """Every route, and how far they agree."""
    settings, labels, model = ctx.settings, ctx.parts["labels"], ctx.model
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
            prompts[route] = labelled
            if route == "logits":
                ctx.stage("differentiating logits")
                prompts[route] = logits_averaged(model, labels, **ctx.at)
            raw[route] = prompts[route].direction()
    if shares and "labels" in raw and settings.null:
        null = _null(ctx, shares, raw["labels"])
    cosines = agreement(raw, prompts, batches, seed=settings.seed)
    return Part(
        rows=list(cosine_rows(cosines, null, ctx.layers)),
        arrays={LENGTHS: lengths.numpy(), **{RAW + n: v.numpy() for n, v in raw.items()}},
    )


def opened(
    part: Part, ctx: Context
) -> tuple[dict[str, Tensor], dict[str, dict[int, Tensor]], dict[int, float]]:
    """Of what was made: every direction as it is; by layer, as long as the difference that labels
    make; and how long that is.
    """
    raw = {name: torch.from_numpy(part.arrays[RAW + name]) for name in ctx.settings.routes}
    lengths, layers = torch.from_numpy(part.arrays[LENGTHS]), ctx.layers
    scaled = {
        name: dict(zip(layers, as_long_as(each, lengths, layers), strict=True))
        for name, each in raw.items()
    }
    return raw, scaled, dict(zip(layers, lengths.tolist(), strict=True))


def _gradient_step(
    ctx: Context,
) -> tuple[dict[str, float], Float[Tensor, "L d"], tuple[Averaged, ...]]:
    """How long the step is in every tensor, the shift that it makes, and the same in batches, for
    its interval.
    """
    settings, parts, model = ctx.settings, ctx.parts, ctx.model
    ctx.stage("stepping along the gradient")
    space, by = space_of(model, settings.space), {"estimand": settings.estimand, **ctx.at}
    weights = step_direction(model, space, parts["gradient"], loss=loss_of(settings.estimand))
    whole = step_averaged(model, space, weights, parts["shift"], eta=settings.eta, **by)
    shares = shares_of(space, weights)
    del weights  # as large as the model
    progress = ctx.stage("stepping along the gradient, batch by batch")
    both = parts["gradient"], parts["shift"]
    batches = gradient_batches(model, space, *both, progress=progress, **by)
    return shares, whole.direction(), batches


def _search(ctx: Context) -> Float[Tensor, "L d"]:
    settings, parts = ctx.settings, ctx.parts
    found = perturbed_shifts(
        ctx.model,
        space_of(ctx.model, settings.space),
        parts["gradient"],
        parts["shift"],
        count=settings.n,
        best=settings.k,
        size=settings.size,
        seed=settings.seed,
        progress=ctx.stage("searching at random"),
        **ctx.at,
    )
    return winners_vector(found, settings.k)


def _null(
    ctx: Context, shares: Mapping[str, float], labels: Float[Tensor, "L d"]
) -> Float[np.ndarray, "m L"]:
    """Cosines with labels of random steps like the gradient step."""
    settings, shift = ctx.settings, ctx.parts["shift"]
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
