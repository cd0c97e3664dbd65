"""What vectors do to answers when they are added at one layer, at equal length and at equal damage;
and the weight step itself: the conditions that effects are compared under.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.run.rows import Row
from loclin.seeds import derived
from loclin.steering.effect import (
    Change,
    Response,
    adding,
    anti_steerable,
    dose_response,
    layer_slopes,
    logit_differences,
    response,
    slopes,
)
from loclin.steering.gradient import shift
from loclin.steering.neutral import at_equal_damage, damage
from loclin.studies.steering import claims_names as names
from loclin.studies.steering.claims_context import Layered, SteeringContext
from loclin.studies.steering.claims_vectors import Vectors

BISECTIONS = 40  # of a step's size: a thousandth is reached long before


def choose_layer(ctx: SteeringContext, caa: Layered) -> tuple[int, list[Row]]:
    """The later layer at which CAA moves answers most, by examples that decide nothing else; and
    its slope at every layer.
    """
    by_prompt = layer_slopes(
        ctx.model,
        ctx.parts["choose"],
        dict(zip(ctx.layers, caa, strict=True)),
        path=ctx.settings.layers_path,
        progress=lambda share: ctx.progress("choosing the layer", share),
    )
    found = [float(by_prompt[layer].mean()) for layer in ctx.layers]
    late = ctx.layers[len(ctx.layers) // 2 :]
    return max(late, key=lambda n: found[n]), ctx.by_layer("choice_slope", np.array(found))


def stepping(ctx: SteeringContext, direction: Float[Tensor, " D"], size: float) -> Change:
    """Step the weights by a multiple of size·‖θ‖ along a direction, and back by copy."""
    length = float(ctx.space.read().double().norm()) * size / float(direction.double().norm())

    @contextmanager
    def step(strength: float) -> Iterator[None]:
        with ctx.space.restored():
            ctx.space.add(direction, strength * length)
            yield

    return step


def vectors_at_layer(ctx: SteeringContext, v: Vectors) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Every vector at the chosen layer, as long as CAA is there; and random ones.

    The parts of E1's shift along CAA and across it are those of the vector of that length: they add
    up to it.
    """
    caa = v.caa[ctx.chosen].double()
    length = caa.norm()
    paired = {names.PAIRED: v.paired} if ctx.class_form else {}
    every = {names.CAA: v.caa, **paired, **v.shifts, names.LOGITS: v.logits, names.SEARCH: v.search}
    found = {name: x[ctx.chosen].double() for name, x in every.items()}
    found = {name: x * (length / x.norm()) for name, x in found.items()}
    along = (found["E1"] @ caa) / length**2 * caa
    found |= {names.E1_ALONG: along, names.E1_ACROSS: found["E1"] - along}
    rng = np.random.default_rng(derived(ctx.settings.seed, "random vectors"))
    drawn = rng.standard_normal((ctx.settings.random_vectors, len(caa)))
    random = [torch.from_numpy(z / np.linalg.norm(z)) * length for z in drawn]
    kind = v.caa.dtype
    return {name: x.to(kind) for name, x in found.items()}, [x.to(kind) for x in random]


def size_of_step(ctx: SteeringContext, v: Vectors) -> float | None:
    """η at which E1's step shifts the chosen layer by as much as CAA is long, to a thousandth; None
    where none up to 1 does.
    """
    length, batch = float(v.caa[ctx.chosen].double().norm()), ctx.parts["shift"].batch
    at = {**ctx.read, "layers": [ctx.chosen], "origin": v.origin[[ctx.chosen]]}

    def moved(size: float) -> float:
        found = shift(ctx.model, ctx.space, v.steps["fixed"], batch, size=size, **at)
        return float(found[0].double().mean(0).norm())

    low, high = 0.0, ctx.settings.eta
    while moved(high) < length:
        high *= 2
        if high > 1:
            return None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if moved(middle) < length else (low, middle)
        if high - low < 1e-3 * high:
            break
    return (low + high) / 2


def condition_rows(ctx: SteeringContext, v: Vectors) -> Iterator[Row]:
    """Dose response, slopes, damage and equal damage under every condition; no ratio to CAA where
    CAA does not steer.
    """
    test, size = ctx.parts["test"], size_of_step(ctx, v)
    vectors, random = vectors_at_layer(ctx, v)
    changes = {name: _adding(ctx, x) for name, x in vectors.items()}
    if size is not None:
        changes[names.STEP] = stepping(ctx, v.steps["fixed"], size)
    yield ctx.row("step_size", size)
    before = logit_differences(ctx.model, test)
    yield ctx.row("logit_difference", float(before.mean()))
    found: list[Response] = []
    for change in (every := [*changes.values(), *(_adding(ctx, x) for x in random)]):
        ctx.progress("steering", len(found) / len(every))
        found.append(response(ctx.model, test, change, ctx.settings.strengths, before=before))
    # what the model says by itself is no effect
    means = np.stack([each.changes.mean(1) for each in found])
    slope = np.array([each.slopes.mean() for each in found])
    share = [anti_steerable(each.slopes) for each in found]
    named, unit, count = dict(zip(changes, found, strict=False)), float(slope[0]), len(changes)
    for i, name in enumerate(changes):
        yield from _effect_rows(ctx, name, means[i], float(slope[i]), unit)
        yield ctx.row("anti_steerable", share[i], condition=name)
    if size is None:
        yield ctx.row("slope_ratio", None, condition=names.STEP)
    for name, q in names.RANDOM.items():
        at, there = np.quantile(means[count:], q, axis=0), float(np.quantile(slope[count:], q))
        yield from _effect_rows(ctx, name, at, there, unit)
    yield ctx.row("anti_steerable", float(np.median(share[count:])), condition=names.MEDIAN)
    yield from _damage_rows(ctx, changes, float(before.mean()))
    yield from _chance_rows(ctx, v, named[names.SEARCH], unit)


def _adding(ctx: SteeringContext, vector: Float[Tensor, " d"]) -> Change:
    return adding(ctx.model, {ctx.chosen: vector}, path=ctx.settings.layers_path)


def _ratio(value: float | None, unit: float | None) -> float | None:
    return value / unit if value is not None and unit is not None and unit > 0 else None


def _effect_rows(
    ctx: SteeringContext, name: str, means: Float[np.ndarray, " a"], slope: float, unit: float
) -> Iterator[Row]:
    for strength, value in zip(sorted(ctx.settings.strengths), means, strict=True):
        yield ctx.row("response", float(value), condition=name, strength=strength)
    yield from ctx.rows({"slope": slope, "slope_ratio": _ratio(slope, unit)}, condition=name)


def _damage_rows(
    ctx: SteeringContext, changes: Mapping[str, Change], before: float
) -> Iterator[Row]:
    """KL and perplexity on neutral text at strength 1; and the change of the answers at the
    strength > 0 of equal KL.
    """
    unit, test = None, ctx.parts["test"]
    for i, (name, change) in enumerate(changes.items()):
        ctx.progress("measuring damage", i / len(changes))
        done = damage(ctx.model, ctx.neutral, partial(change, 1.0))
        seen = {"kl": float(done.kl.mean()), "perplexity": done.perplexity}
        yield from ctx.rows(seen, condition=name)
        if name == names.CAA:
            yield ctx.row("perplexity", done.perplexity_before, condition=names.MODEL)
        there = at_equal_damage(ctx.model, test, ctx.neutral, change, ctx.settings.kl)
        effect = float(there[1].mean()) - before if there else None
        unit = effect if name == names.CAA else unit
        at_kl = {"strength_at_kl": there and there[0], "effect_at_kl": effect}
        yield from ctx.rows({**at_kl, "kl_ratio": _ratio(effect, unit)}, condition=name)


def _chance_rows(ctx: SteeringContext, v: Vectors, own: Response, unit: float) -> Iterator[Row]:
    """Slopes over CAA's of as many random steps drawn without regard to their scores, as long as
    CAA, by strengths −1 and 1 alone; and the search vector's own, measured the same way.
    """
    ends = (1.0, -1.0)
    rows = own.differences[[own.strengths.index(strength) for strength in ends]]
    slope = float(slopes(rows, ends).mean())
    yield ctx.row("ends_ratio", _ratio(slope, unit), condition=names.SEARCH)
    length, drawn = float(v.caa[ctx.chosen].norm()), v.chance[:, ctx.chosen]
    for i, vector in enumerate(drawn):
        ctx.progress("steering by chance", i / len(drawn))
        change = _adding(ctx, vector * (length / vector.norm()))
        plus, minus = dose_response(ctx.model, ctx.parts["test"], change, ends).mean(1)
        yield ctx.row("chance_ratio", _ratio(float(plus - minus) / 2, unit), draw=i)
