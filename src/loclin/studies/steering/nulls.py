"""What cosines come about without what is claimed: random weight directions, permuted labels,
unrelated answer tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loclin.record import Row
from loclin.search.splits import askable
from loclin.seeds import derived
from loclin.stats import permutation_p
from loclin.steering.compare import random_directions, without
from loclin.steering.gradient import shift, step_direction
from loclin.studies.steering.claims import BY_TENSOR, LEFT, RELABELLED, TOKENS
from loclin.studies.steering.material import Layered, Material, angle, places
from loclin.studies.steering.vectors import LOSSES, Vectors, centred, estimands

WHOLE, CAA_RELABELLED = "weights as a whole", "permuted labels of CAA"
#: Nulls whose draws the claims need, and where.
KEPT = {
    ("E1", BY_TENSOR): ("chosen", "late", "highest"),
    ("E1", TOKENS): ("chosen", "late"),
    ("E1", LEFT): ("chosen", "late"),
    ("E2", BY_TENSOR): ("chosen",),
    ("E2", LEFT): ("chosen", "late"),
    ("E2", RELABELLED): ("chosen",),
    ("E3", BY_TENSOR): ("chosen",),
    ("E3", LEFT): ("chosen", "late"),
    ("E3", RELABELLED): ("chosen",),
}

Draws = Float[np.ndarray, "m L"]


def null_rows(material: Material, v: Vectors, chosen: int) -> Iterator[Row]:
    """Every null of every estimand: bands by layer, p-values, and the draws that claims are decided
    by.
    """
    observed = {of: angle(vector, v.caa).numpy() for of, vector in v.shifts.items()}
    rest = without(v.caa, *v.answers)
    left = {of: angle(without(vector, *v.answers), rest).numpy() for of, vector in v.shifts.items()}
    drawn: list[tuple[str, str, Draws]] = []
    material.progress("stepping at random", 0.0)
    whole = random_weights(material, v, "all", "fixed")
    drawn += [(of, WHOLE, draws) for (of, null), draws in whole.items() if null != LEFT]
    for loss in v.steps:
        matched = random_weights(material, v, "tensor", loss)
        drawn += [(of, null, draws) for (of, null), draws in matched.items() if LOSSES[of] == loss]
    material.progress("stepping to unrelated tokens", 0.0)
    drawn.append(("E1", TOKENS, unrelated_tokens(material, v)))
    if material.class_form:
        material.progress("permuting labels", 0.0)
        drawn += [(of, RELABELLED, draws) for of, draws in relabelled(material, v).items()]
    drawn += [(of, CAA_RELABELLED, draws) for of, draws in caa_relabelled(material, v).items()]
    for of, null, draws in drawn:
        yield from _rows(
            material, of, null, (left if null == LEFT else observed)[of], draws, chosen
        )
    yield material.row("isotropic_cosine", v.caa.shape[-1] ** -0.5)


def _rows(
    material: Material,
    of: str,
    null: str,
    observed: Float[np.ndarray, " L"],
    draws: Draws,
    chosen: int,
) -> Iterator[Row]:
    """The band by layer, p where claims are decided, and the draws themselves where they need them."""
    for statistic, values in (
        ("97.5 %", np.quantile(draws, 0.975, axis=0)),
        ("mean |cos|", np.abs(draws).mean(0)),
    ):
        yield from material.by_layer("null_cosine", values, of=of, null=null, statistic=statistic)
    at_draws, at_observed = places(draws, chosen), places(observed[None], chosen)
    for at in at_draws:
        yield material.row(
            "null_at", float(np.quantile(at_draws[at], 0.975)), of=of, null=null, at=at
        )
        yield material.row("null_median", float(np.median(at_draws[at])), of=of, null=null, at=at)
        p = permutation_p(float(at_observed[at][0]), at_draws[at])
        yield material.row("null_p", p, of=of, null=null, at=at)
        if at in KEPT.get((of, null), ()):
            for i, value in enumerate(at_draws[at]):
                yield material.row("null_draw", float(value), of=of, null=null, at=at, draw=i)


def random_weights(
    material: Material, v: Vectors, matched: Literal["all", "tensor"], loss: str
) -> dict[tuple[str, str], Draws]:
    """Cosines with CAA of the shift along random weight directions, by estimand and null, each both
    ways.

    Each as it is, and without the gradients of both answers' log-probabilities in either vector.

    A step back shifts activations the other way to first order (`mirror_cosine` says how nearly):
    the second half of the draws is minus the first. The directions are the same in every run;
    claims.py says why.

    Args:
        material: of the run.
        v: its vectors.
        matched: as `random_directions` takes it.
        loss: whose gradient's norms the tensors have.
    """
    config = material.config
    seed = derived(config.seed, "random weights", matched)
    found: dict[tuple[str, str], list[Tensor]] = {}
    rest = without(v.caa, *v.answers)
    directions = random_directions(
        material.space, config.directions, seed=seed, matched=matched, like=v.steps[loss]
    )
    for i, direction in enumerate(directions):
        for of, moved in _shifted(material, v, direction).items():
            found.setdefault((of, BY_TENSOR), []).append(angle(moved, v.caa))
            found.setdefault((of, LEFT), []).append(angle(without(moved, *v.answers), rest))
        material.progress("stepping at random", (i + 1) / config.directions)
    return {null: _both_ways(rows) for null, rows in found.items()}


def unrelated_tokens(material: Material, v: Vectors) -> Draws:
    """The same for E1's step towards, and away from, other tokens than the two of the answer; the
    same ones in every run.
    """
    asked, rows = material.parts["gradient"], []
    tokens = other_tokens(material)
    for i, token in enumerate(tokens):
        direction = step_direction(
            material.model, material.space, asked, loss=torch.full_like(asked.toward, token)
        )
        rows.append(angle(_shifted(material, v, direction)["E1"], v.caa))
        material.progress("stepping to unrelated tokens", (i + 1) / len(tokens))
    return _both_ways(rows)


def other_tokens(material: Material) -> list[int]:
    """At most so many tokens of the vocabulary, none of them special, none an answer to any example
    of any run.
    """
    tokenizer, examples = (
        material.problem.tokenizer,
        askable(material.problem.examples, task=None, without=()),
    )
    options = sorted({o for e in examples for o in (e.answer, *e.options)})
    answers = {t for ids in tokenizer(options, add_special_tokens=False)["input_ids"] for t in ids}
    allowed = [
        t
        for t in range(len(tokenizer))
        if t not in answers and t not in set(tokenizer.all_special_ids)
    ]
    seed = derived(material.config.seed, "unrelated tokens")
    return sorted(allowed, key=lambda t: derived(seed, t))[: material.config.tokens]


def relabelled(material: Material, v: Vectors) -> dict[str, Draws]:
    """The same for E2's and E3's step, its gold answers permuted among the prompts of the gradient
    batch.

    No chance: a step towards permuted answers un-learns the right ones, and its shift points away
    from CAA. The draws say what labels do, not what a direction without them would reach; their
    median is kept beside them.
    """
    asked, count = material.parts["gradient"], material.config.relabelings
    rng = np.random.default_rng(derived(material.seed, "permuted labels"))
    found: dict[str, list[Tensor]] = {"E2": [], "E3": []}
    for i in range(count):
        gold = asked.gold[torch.from_numpy(rng.permutation(len(asked))).to(asked.gold.device)]
        step = step_direction(material.model, material.space, asked, loss=gold)
        moved = centred(material, material.space, {"gold": step}, material.parts["shift"])
        for of, rows in found.items():
            rows.append(angle(moved[of], v.caa))
        material.progress("permuting labels", (i + 1) / count)
    return {of: torch.stack(rows).numpy() for of, rows in found.items()}


def caa_relabelled(material: Material, v: Vectors) -> dict[str, Draws]:
    """Cosines of the shifts with CAA of permuted labels; in the paired form, of differences that
    are turned at random.
    """
    labels, count = material.parts["labels"].labels, material.config.permutations
    rng = np.random.default_rng(derived(material.seed, "permuted labels of CAA"))
    weights = caa_weights(labels, v.read.shape[1], count, rng)
    drawn = torch.stack([torch.from_numpy(weights) @ h.double() for h in v.read], dim=1)
    return {of: angle(drawn, vector).numpy() for of, vector in v.shifts.items()}


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


def _shifted(
    material: Material, v: Vectors, direction: Float[Tensor, " D"]
) -> Mapping[str, Layered]:
    """The shift that one weight direction makes, by estimand: as a step on either loss would be
    read.
    """
    read, config = material.parts["shift"], material.config
    moved = shift(
        material.model,
        material.space,
        direction,
        read.batch,
        size=config.eta,
        layers=material.layers,
        path=config.layers_path,
        origin=v.origin,
    )
    return estimands({"fixed": moved, "gold": moved}, read.labels)


def _both_ways(rows: list[Tensor]) -> Draws:
    one: np.ndarray = torch.stack(rows).numpy()
    return np.concatenate([one, -one])
