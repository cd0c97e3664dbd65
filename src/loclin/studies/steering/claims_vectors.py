"""The vectors of one run, from labels, from the logits, from one gradient step and from a random
search; and the angles between them by layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from loclin.activations.capture import activations
from loclin.parameters import ParameterSpace
from loclin.run.rows import Row
from loclin.seeds import derived
from loclin.steering.averages import (
    Averaged,
    estimated_by,
    labels_averaged,
    loss_of,
    paired_differences,
)
from loclin.steering.compare import disattenuated, reliability, whitening, without, without_outliers
from loclin.steering.gradient import centred_shift, shift, shift_per_size, step_direction
from loclin.steering.prompts import PromptSet
from loclin.steering.readout import answer_gradient, logit_gradient
from loclin.steering.search import chance_vectors, perturbed_shifts, winners_vector
from loclin.studies.steering import names
from loclin.studies.steering.claims_context import ClaimsContext, Layered, cosine, halves

Loss = Literal["fixed", "gold"]
Steps = Mapping[Loss, Float[Tensor, " D"]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Vectors:
    """What is compared.

    Attributes:
        caa: from labels, in the class form where there are classes, else in the paired form.
        paired: from labels in the paired form.
        logits: g, the mean gradient of the logit difference.
        answers: mean gradients of log p(toward) and of log p(away), whose difference g is: the
            readout.
        read: activations of the labels part (class form) or differences of the answers there
            (paired form): their contrast is CAA.
        origin: activations of the shift part before any step.
        white: what whitens activations, of the prompts of both of these parts.
        steps, shifts: weight directions by loss; shifts by estimand, at the η that decides.
        search: mean shift of the best random steps, scored on the gradient part.
        chance: the same of as many steps drawn without regard to their scores.
        gains: mean log p(toward) of every random step, less that of the model as it is (nats).
    """

    caa: Layered
    paired: Layered
    logits: Layered
    answers: tuple[Layered, ...]
    read: Float[Tensor, "L n d"]
    origin: Float[Tensor, "L m d"]
    white: Float[Tensor, "L d d"]
    steps: Steps
    shifts: Mapping[str, Layered]
    search: Layered
    chance: Float[Tensor, "c L d"]
    gains: Float[np.ndarray, " N"]


def from_labels(ctx: ClaimsContext, prompts: PromptSet) -> Averaged:
    """What CAA, in the form of the data, is an average of."""
    return labels_averaged(ctx.model, prompts, form="auto", **ctx.at)


def make_vectors(ctx: ClaimsContext) -> Vectors:
    """All of them, none longer or shorter than it is found."""
    settings, model, parts = ctx.settings, ctx.model, ctx.parts
    labelled = parts["labels"]
    caa, paired = from_labels(ctx, labelled), paired_differences(model, labelled, **ctx.at)
    before = [activations(model, parts[p].batch, **ctx.at) for p in ("labels", "shift")]
    losses: tuple[Loss, ...] = ("fixed", "gold") if ctx.class_form else ("fixed",)
    steps = directions(ctx, ctx.space, parts["gradient"], losses)
    found = perturbed_shifts(
        model,
        ctx.space,
        parts["gradient"],
        parts["shift"],
        count=settings.candidates,
        size=settings.search_size,
        seed=derived(ctx.seed, "search"),
        progress=ctx.stage("searching at random"),
        **ctx.at,
    )
    seed, winners = derived(ctx.seed, "chance vectors"), settings.winners
    return Vectors(
        caa=caa.direction(),
        paired=paired.mean(1),
        logits=logit_gradient(model, labelled, **ctx.at),
        answers=tuple(
            answer_gradient(model, labelled, tokens=tokens, **ctx.at)
            for tokens in (labelled.toward, labelled.away)
        ),
        read=caa.each,
        origin=before[1],
        white=whitening(torch.cat(before, dim=1)).to(caa.each),
        steps=steps,
        shifts=shifts(ctx, steps, parts["shift"]),
        search=winners_vector(found, winners),
        chance=chance_vectors(found, winners, draws=settings.chance, seed=seed),
        gains=found.scores - found.before,
    )


def directions(
    ctx: ClaimsContext, space: ParameterSpace, prompts: PromptSet, losses: Iterable[Loss]
) -> Steps:
    """Of one gradient step, by loss."""
    return {loss: step_direction(ctx.model, space, prompts, loss=loss) for loss in losses}


def shifts(
    ctx: ClaimsContext,
    steps: Steps,
    prompts: PromptSet,
    *,
    size: float | None = None,
    space: ParameterSpace | None = None,
    origin: Float[Tensor, "L n d"] | None = None,
) -> dict[str, Layered]:
    """Every estimand's shift: half the difference of a step forward and back at the η that decides.

    With a size, that of one step; of size 0, the limit of shift over size.
    """
    model, batch, moved = ctx.model, prompts.batch, space or ctx.space
    found: dict[Loss, Tensor] = {}
    for loss, step in steps.items():
        if size is None:
            eta = ctx.settings.eta
            found[loss] = centred_shift(model, moved, step, batch, size=eta, **ctx.at)
        elif size == 0:
            found[loss] = shift_per_size(model, moved, step, batch, **ctx.at)
        else:
            found[loss] = shift(model, moved, step, batch, size=size, origin=origin, **ctx.at)
    return estimands(found, prompts)


def estimands(
    shifts: Mapping[Loss, Float[Tensor, "L n d"]], prompts: PromptSet
) -> dict[str, Layered]:
    """E1, E2 and E3 of the shifts by loss; without classes E1, which E2 is there."""
    found: dict[str, Layered] = {}
    for of in names.ESTIMANDS:
        moved = shifts.get(loss_of(of))
        if moved is not None and (of == "E1" or prompts.labels is not None):
            found[of] = estimated_by(moved, prompts, of).direction()
    return found


def whitened(vector: Float[Tensor, "*a L d"], v: Vectors) -> Float[Tensor, "*a L d"]:
    """In whitened activations."""
    return torch.einsum("lde,...le->...ld", v.white, vector.to(v.white))


def angle_rows(ctx: ClaimsContext, v: Vectors) -> Iterator[Row]:
    """Cosines with CAA, as they are and without what could make them; and with g."""
    common = v.origin.double().mean(1).to(v.caa)
    others = {
        **v.shifts,
        **({names.PAIRED: v.paired} if ctx.class_form else {}),
        names.LOGITS: v.logits,
    }
    count = min(ctx.settings.outliers, v.caa.shape[-1] - 1)
    for of, vector in others.items():
        pair = (vector, v.caa)
        pairs = {
            names.NOTHING: pair,
            names.COMMON: [without(x, common) for x in pair],
            names.OUTLIERS: [without_outliers(x, v.origin, count) for x in pair],
            names.WHITENED: [whitened(x, v) for x in pair],
        }
        if of != names.LOGITS:
            pairs[names.LOGITS] = [without(x, v.logits) for x in pair]
            pairs[names.READOUT] = [without(x, *v.answers) for x in pair]
            yield from ctx.both("cosine_with_logits", cosine(vector, v.logits), of=of)
        for removed, (x, caa) in pairs.items():
            yield from ctx.both("cosine", cosine(x, caa), of=of, removed=removed)


def search_rows(ctx: ClaimsContext, v: Vectors) -> Iterator[Row]:
    """Where the search vector lies, with its null, and how much better the winners answer."""
    yield from ctx.both("cosine", cosine(v.search, v.caa), of=names.SEARCH, removed=names.NOTHING)
    yield from ctx.both("cosine_with_step", cosine(v.search, v.shifts["E1"]), of=names.SEARCH)
    null = np.quantile(cosine(v.chance, v.caa).numpy(), 0.975, axis=0)
    yield from ctx.by_layer(
        "null_cosine", null, of=names.SEARCH, null=names.SCORES, statistic="97.5 %"
    )
    winners = float(np.sort(v.gains)[-ctx.settings.winners :].mean())
    yield ctx.row("search_gain", float(np.mean(v.gains)), among="all")
    yield ctx.row("search_gain", winners, among="winners")


def reliability_rows(ctx: ClaimsContext, v: Vectors) -> Iterator[Row]:
    """How well each vector agrees with itself from halves of the labels; of gradient AND shift."""
    of_halves = (from_labels(ctx, half).direction() for half in halves(ctx.parts["labels"]))
    labels = reliability(*of_halves)
    yield from ctx.both("reliability", labels, of=names.CAA)
    parts = zip(halves(ctx.parts["gradient"]), halves(ctx.parts["shift"]), strict=True)
    one, other = (
        shifts(ctx, directions(ctx, ctx.space, step, v.steps), read) for step, read in parts
    )
    for of, vector in v.shifts.items():
        own = reliability(one[of], other[of])
        yield from ctx.both("reliability", own, of=of)
        yield from ctx.both("ceiling", (own * labels).sqrt(), of=of)
        corrected = disattenuated(cosine(vector, v.caa).to(own), own, labels)
        yield from ctx.both("disattenuated", corrected, of=of)
        yield from ctx.at_places("unreliable", (own * labels == 0).double(), of=of)


def size_rows(ctx: ClaimsContext, v: Vectors) -> Iterator[Row]:
    """Over η: cosine of one step with CAA and with a step back, and distance from the limit."""
    read = ctx.parts["shift"]
    limit = shifts(ctx, v.steps, read, size=0.0)
    for of, vector in limit.items():
        yield from ctx.at_places("eta_cosine", cosine(vector, v.caa), of=of, eta=0.0)
    for eta in ctx.settings.etas:
        up, down = (shifts(ctx, v.steps, read, size=s * eta, origin=v.origin) for s in (1, -1))
        for of, exact in limit.items():
            both_ways, length = (up[of] - down[of]) / 2, exact.double().norm(dim=-1)
            for quantity, values in {
                "eta_cosine": cosine(up[of], v.caa),
                "mirror_cosine": cosine(up[of], -down[of]),
                "limit_error": (up[of] / eta - exact).double().norm(dim=-1) / length,
                "centred_error": (both_ways / eta - exact).double().norm(dim=-1) / length,
            }.items():
                yield from ctx.at_places(quantity, values, of=of, eta=eta)


def frozen_rows(ctx: ClaimsContext, v: Vectors) -> Iterator[Row]:
    """The same step without that of the input, output and position embeddings."""
    pattern = without_embeddings(ctx.model, ctx.space.names)
    if not pattern:
        return
    space = ParameterSpace(ctx.model, pattern)
    steps = directions(ctx, space, ctx.parts["gradient"], v.steps)
    for of, vector in shifts(ctx, steps, ctx.parts["shift"], space=space).items():
        yield from ctx.both(
            "cosine", cosine(vector, v.caa), of=names.frozen(of), removed=names.NOTHING
        )
    yield ctx.row("frozen_share", 1 - space.dimension / ctx.space.dimension)


def without_embeddings(model: nn.Module, names: Sequence[str]) -> str:
    """Those of some parameters that are in no `nn.Embedding` and not in the output layer, as a
    pattern; "" where none is left.
    """
    held = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel | PeftModel) else None
    held |= {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()
    own = dict(model.named_parameters())
    return ",".join(n for n in names if id(own[n]) not in held)
