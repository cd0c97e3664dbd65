"""What cosines come about without what is claimed: random weight directions, permuted labels,
unrelated answer tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loclin.run.rows import Row
from loclin.search.splits import askable
from loclin.seeds import derived
from loclin.stats import permutation_p
from loclin.steering.averages import loss_of
from loclin.steering.compare import both_ways, random_directions, without
from loclin.steering.gradient import shift, step_direction
from loclin.studies.steering import claims_names as names
from loclin.studies.steering.claims_context import Layered, SteeringContext, cosine, places
from loclin.studies.steering.claims_vectors import Vectors, estimands, shifts

#: Nulls whose draws the claims need, and where.
KEPT = {
    ("E1", names.BY_TENSOR): ("chosen", "late", "highest"),
    ("E1", names.TOKENS): ("chosen", "late"),
    ("E2", names.BY_TENSOR): ("chosen",),
    ("E3", names.BY_TENSOR): ("chosen",),
    ("E2", names.RELABELLED): ("chosen",),
    ("E3", names.RELABELLED): ("chosen",),
    **{(of, names.BEYOND): ("chosen", "late") for of in ("E1", "E2", "E3")},
}

Draws = Float[np.ndarray, "m L"]


def null_rows(ctx: SteeringContext, v: Vectors) -> Iterator[Row]:
    """Every null of every estimand: bands, p-values, and the draws that claims are decided by."""
    observed = {of: cosine(vector, v.caa) for of, vector in v.shifts.items()}
    rest = without(v.caa, *v.answers)
    beyond = {of: cosine(without(x, *v.answers), rest) for of, x in v.shifts.items()}
    drawn = random_weights(ctx, v)
    for loss in v.steps:
        drawn |= random_weights(ctx, v, loss)
    drawn["E1", names.TOKENS] = unrelated_tokens(ctx, v)
    if ctx.class_form:
        drawn |= {(of, names.RELABELLED): draws for of, draws in relabelled(ctx, v).items()}
    drawn |= {(of, names.CAA_RELABELLED): draws for of, draws in caa_relabelled(ctx, v).items()}
    for (of, null), draws in drawn.items():
        real = (beyond if null == names.BEYOND else observed)[of].numpy()
        yield from _rows(ctx, of, null, real, draws)
    yield ctx.row("isotropic_cosine", v.caa.shape[-1] ** -0.5)


def _rows(
    ctx: SteeringContext, of: str, null: str, observed: Float[np.ndarray, " L"], draws: Draws
) -> Iterator[Row]:
    """The band by layer, p where claims are decided, and the draws that they need."""
    bands = {"97.5 %": np.quantile(draws, 0.975, axis=0), "mean |cos|": np.abs(draws).mean(0)}
    for statistic, values in bands.items():
        yield from ctx.by_layer("null_cosine", values, of=of, null=null, statistic=statistic)
    real = places(observed[None], ctx.chosen)
    for at, values in places(draws, ctx.chosen).items():
        here = {"of": of, "null": null, "at": at}
        level, middle = float(np.quantile(values, 0.975)), float(np.median(values))
        p = permutation_p(float(real[at][0]), values)
        yield from ctx.rows({"null_at": level, "null_median": middle, "null_p": p}, **here)
        for i, value in enumerate(values if at in KEPT.get((of, null), ()) else ()):
            yield ctx.row("null_draw", float(value), **here, draw=i)


def random_weights(
    ctx: SteeringContext, v: Vectors, loss: str | None = None
) -> dict[tuple[str, str], Draws]:
    """Cosines with CAA of the shift along random weight directions, by estimand and null, each both
    ways.

    With a loss, of its estimands alone, the tensors with the norms of its gradient, and each cosine
    also without the readout. `mirror_cosine` says how nearly a step back is the mirror image. The
    directions are the same in every run; claims.py says why.
    """
    like, kind = (v.steps[loss], "tensor") if loss else (None, "all")
    seed, count = derived(ctx.settings.seed, "random weights", kind), ctx.settings.directions
    rest, found = without(v.caa, *v.answers), defaultdict[tuple[str, str], list[Tensor]](list)
    for i, direction in enumerate(random_directions(ctx.space, count, seed=seed, like=like)):
        for of, moved in _moved(ctx, v, direction).items():
            if loss not in (None, loss_of(of)):  # type: ignore[arg-type]
                continue
            found[of, names.BY_TENSOR if loss else names.WHOLE].append(cosine(moved, v.caa))
            if loss:
                found[of, names.BEYOND].append(cosine(without(moved, *v.answers), rest))
        ctx.progress("stepping at random", (i + 1) / count)
    return {key: both_ways(cosines) for key, cosines in found.items()}


def unrelated_tokens(ctx: SteeringContext, v: Vectors) -> Draws:
    """The same for E1's step towards, and away from, other tokens than the two of the answer; the
    same ones in every run.
    """
    prompts, rows, tokens = ctx.parts["gradient"], [], other_tokens(ctx)
    for token in tokens:
        every = torch.full_like(prompts.toward, token)
        direction = step_direction(ctx.model, ctx.space, prompts, loss=every)
        rows.append(cosine(_moved(ctx, v, direction)["E1"], v.caa))
        ctx.progress("stepping to unrelated tokens", len(rows) / len(tokens))
    return both_ways(rows)


def other_tokens(ctx: SteeringContext) -> list[int]:
    """Some of the vocabulary, none of them special, none in an answer to any example of any run."""
    tokenizer = ctx.problem.tokenizer
    examples = askable(ctx.problem.examples, task=None, without=())
    options = sorted({o for e in examples for o in (e.answer, *e.options)})
    answers = {t for ids in tokenizer(options, add_special_tokens=False)["input_ids"] for t in ids}
    allowed = {*range(len(tokenizer))} - answers - {*tokenizer.all_special_ids}
    seed = derived(ctx.settings.seed, "unrelated tokens")
    return sorted(allowed, key=lambda t: derived(seed, t))[: ctx.settings.tokens]


def relabelled(ctx: SteeringContext, v: Vectors) -> dict[str, Draws]:
    """The same for E2's and E3's step, its gold answers permuted among the prompts.

    No chance: a step towards permuted answers un-learns the right ones, and its shift points away
    from CAA. The draws say what labels do, not what a direction without them would reach; their
    median is kept beside them.
    """
    prompts, count = ctx.parts["gradient"], ctx.settings.relabelings
    rng = np.random.default_rng(derived(ctx.seed, "permuted labels"))
    found: dict[str, list[Tensor]] = {"E2": [], "E3": []}
    for i in range(count):
        order = torch.from_numpy(rng.permutation(len(prompts))).to(prompts.gold.device)
        step = step_direction(ctx.model, ctx.space, prompts, loss=prompts.gold[order])
        for of, moved in shifts(ctx, {"gold": step}, ctx.parts["shift"]).items():
            found[of].append(cosine(moved, v.caa))
        ctx.progress("permuting labels", (i + 1) / count)
    return {of: torch.stack(cosines).numpy() for of, cosines in found.items()}


def caa_relabelled(ctx: SteeringContext, v: Vectors) -> dict[str, Draws]:
    """Cosines of the shifts with CAA of permuted labels, or of differences turned at random."""
    rng = np.random.default_rng(derived(ctx.seed, "permuted labels of CAA"))
    labels, count = ctx.parts["labels"].labels, ctx.settings.permutations
    weights = torch.from_numpy(caa_weights(labels, v.read.shape[1], count, rng))
    drawn = torch.stack([weights @ h.double() for h in v.read], dim=1)
    return {of: cosine(drawn, vector).numpy() for of, vector in v.shifts.items()}


def caa_weights(
    labels: Bool[np.ndarray, " n"] | None, n: int, count: int, rng: np.random.Generator
) -> Float[np.ndarray, "m n"]:
    """What each prompt counts for in CAA of permuted labels (1/n₊ or −1/n₋), or of differences with
    random signs (±1/n).
    """
    if labels is None:
        return rng.choice([-1.0, 1.0], size=(count, n)) / n
    drawn = rng.permuted(np.tile(labels, (count, 1)), axis=1)
    return np.asarray(drawn / labels.sum() - ~drawn / (~labels).sum())


def _moved(ctx: SteeringContext, v: Vectors, direction: Float[Tensor, " D"]) -> dict[str, Layered]:
    """The shift by one weight direction, read as a step on either loss would be."""
    read, size = ctx.parts["shift"], ctx.settings.eta
    found = shift(
        ctx.model, ctx.space, direction, read.batch, size=size, origin=v.origin, **ctx.read
    )
    return estimands({"fixed": found, "gold": found}, read.labels)
