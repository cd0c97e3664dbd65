"""What cosines come about without what is claimed: random weight directions, permuted labels,
unrelated answer tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loclin.run.rows import Row
from loclin.search.splits import askable
from loclin.seeds import derived
from loclin.stats import permutation_p
from loclin.steering.compare import both_ways, random_directions, shares_of, without
from loclin.steering.gradient import shift, step_direction
from loclin.studies.steering import names
from loclin.studies.steering.claims_context import ClaimsContext, Layered, cosine, places
from loclin.studies.steering.claims_vectors import Loss, Vectors, estimands, shifts, whitened
from loclin.tasks.batch import vocabulary_size
from loclin.tasks.tokens import continuations

#: Nulls whose draws the claims need, and where.
KEPT = {
    **{(of, names.BY_TENSOR): (names.MIDDLE, names.CHOSEN) for of in ("E2", "E3")},
    **{(of, names.CAA_RELABELLED): (names.MIDDLE, names.CHOSEN) for of in ("E2", "E3")},
    **{(of, names.IN_WHITENED): (names.MIDDLE,) for of in ("E1", "E2", "E3")},
    **{(of, names.BEYOND): (names.MIDDLE,) for of in ("E2", "E3")},
    ("E1", names.BEYOND): (names.MIDDLE, names.LATE),
    ("E1", names.BY_TENSOR): (names.MIDDLE, names.CHOSEN, names.LATE, names.HIGHEST),
    ("E1", names.TOKENS): (names.MIDDLE, names.CHOSEN, names.LATE),
    ("E1", names.CAA_RELABELLED): (names.MIDDLE, names.CHOSEN, names.LATE),
}

Draws = Float[np.ndarray, "m L"]
#: Cosines with CAA, by null.
Angles = Mapping[str, Float[Tensor, " L"]]


def null_draws(ctx: ClaimsContext, v: Vectors) -> dict[tuple[str, str], Draws]:
    """Cosines under every null, by estimand and null."""
    drawn = random_weights(ctx, v)
    for loss in v.steps:
        drawn |= random_weights(ctx, v, loss)
    drawn["E1", names.TOKENS] = unrelated_tokens(ctx, v)
    if ctx.class_form:
        drawn |= {(of, names.RELABELLED): draws for of, draws in relabelled(ctx, v).items()}
    drawn |= {(of, names.CAA_RELABELLED): draws for of, draws in caa_relabelled(ctx, v).items()}
    return drawn


def null_rows(
    ctx: ClaimsContext, v: Vectors, drawn: Mapping[tuple[str, str], Draws]
) -> Iterator[Row]:
    """Every null of every estimand: bands, p-values, and the draws that claims are decided by."""
    observed = {of: _angles(vector, v) for of, vector in v.shifts.items()}
    for (of, null), draws in drawn.items():
        real = observed[of].get(null, observed[of][names.BY_TENSOR]).numpy()
        yield from _rows(ctx, of, null, real, draws)
    yield ctx.row("isotropic_cosine", v.caa.shape[-1] ** -0.5)


def _angles(moved: Layered, v: Vectors) -> Angles:
    """A shift and CAA as they are, without the readout, and in whitened activations."""
    pairs = {
        names.BY_TENSOR: (moved, v.caa),
        names.BEYOND: [without(x, *v.answers) for x in (moved, v.caa)],
        names.IN_WHITENED: [whitened(x, v) for x in (moved, v.caa)],
    }
    return {null: cosine(*pair) for null, pair in pairs.items()}


def _rows(
    ctx: ClaimsContext, of: str, null: str, observed: Float[np.ndarray, " L"], draws: Draws
) -> Iterator[Row]:
    """The band by layer, p where claims are decided, and the draws that they need."""
    bands = {"97.5 %": np.quantile(draws, 0.975, axis=0), "mean |cos|": np.abs(draws).mean(0)}
    for statistic, values in bands.items():
        yield from ctx.by_layer("null_cosine", values, of=of, null=null, statistic=statistic)
    real = places(observed[None], ctx.chosen)
    for at, values in places(draws, ctx.chosen).items():
        here = {"of": of, "null": null, "at": at}
        for quantity, value in {
            "null_at": np.quantile(values, 0.975),
            "null_median": np.median(values),
            "null_p": permutation_p(float(real[at][0]), values),
        }.items():
            yield ctx.row(quantity, float(value), **here)
        one_way = null in names.BOTH_WAYS and at != names.HIGHEST
        kept = values[: len(values) // 2] if one_way else values
        for i, value in enumerate(kept if at in KEPT.get((of, null), ()) else ()):
            yield ctx.row("null_draw", float(value), **here, draw=i)


def random_weights(
    ctx: ClaimsContext, v: Vectors, loss: Loss | None = None
) -> dict[tuple[str, str], Draws]:
    """Cosines with CAA of the shift along random weight directions, by estimand and null, each both
    ways.

    With a loss, of its estimands alone, the tensors with the norms of its gradient, and each cosine
    also without the readout and in whitened activations. The directions are the same in all runs on
    one model, and others on another; claims.py says why.
    """
    shares = shares_of(ctx.space, v.steps[loss]) if loss else None
    kind = "tensor" if loss else "all"
    seed, count = derived(ctx.model_seed, "random weights", kind), ctx.settings.directions
    found = defaultdict[tuple[str, str], list[Tensor]](list)
    for i, direction in enumerate(random_directions(ctx.space, count, seed=seed, shares=shares)):
        for of, moved in _moved(ctx, v, direction, loss).items():
            angles = _angles(moved, v) if loss else {names.WHOLE: cosine(moved, v.caa)}
            for null, values in angles.items():
                found[of, null].append(values)
        ctx.progress("stepping at random", (i + 1) / count)
    return {key: both_ways(cosines) for key, cosines in found.items()}


def unrelated_tokens(ctx: ClaimsContext, v: Vectors) -> Draws:
    """The same for E1's step towards, and away from, other tokens than the two of the answer; the
    same ones in all runs on one model.
    """
    prompts, rows, tokens = ctx.parts["gradient"], [], other_tokens(ctx)
    for token in tokens:
        every = torch.full_like(prompts.toward, token)
        direction = step_direction(ctx.model, ctx.space, prompts, loss=every)
        rows.append(cosine(_moved(ctx, v, direction, "fixed")["E1"], v.caa))
        ctx.progress("stepping to unrelated tokens", len(rows) / len(tokens))
    return both_ways(rows)


def other_tokens(ctx: ClaimsContext) -> list[int]:
    """Some of the vocabulary, none of them special, none in an answer to any example of any run."""
    tokenizer = ctx.problem.tokenizer
    examples = list(dict.fromkeys(askable(ctx.problem.examples, task=None, without=())))
    after = [rows for _, rows in continuations(examples, tokenizer)]
    answers = {token for rows in after for row in rows.values() for token in row}
    allowed = {*range(vocabulary_size(ctx.model))} & {*tokenizer.get_vocab().values()}
    allowed -= answers | {*tokenizer.all_special_ids}
    seed = derived(ctx.model_seed, "unrelated tokens")
    return sorted(allowed, key=lambda t: derived(seed, t))[: ctx.settings.tokens]


def relabelled(ctx: ClaimsContext, v: Vectors) -> dict[str, Draws]:
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


def caa_relabelled(ctx: ClaimsContext, v: Vectors) -> dict[str, Draws]:
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


def _moved(
    ctx: ClaimsContext, v: Vectors, direction: Float[Tensor, " D"], loss: Loss | None
) -> dict[str, Layered]:
    """The shift by one weight direction, read as a step on a loss would be, or on either."""
    read, size = ctx.parts["shift"], ctx.settings.eta
    found = shift(ctx.model, ctx.space, direction, read.batch, size=size, origin=v.origin, **ctx.at)
    losses: tuple[Loss, ...] = (loss,) if loss else ("fixed", "gold")
    return estimands(dict.fromkeys(losses, found), read)
