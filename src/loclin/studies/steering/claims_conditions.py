"""What vectors do to answers when they are added at one layer, at equal length and at equal damage;
and the weight step itself: the conditions that effects are compared under.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from loclin.run.rows import Row
from loclin.seeds import derived
from loclin.steering.compare import random_vectors
from loclin.steering.effect import (
    Change,
    Response,
    adding,
    anti_steerable,
    differences,
    layer_slopes,
    responses,
    slopes,
)
from loclin.steering.gradient import shift
from loclin.steering.neutral import at_equal_damage, damages
from loclin.studies.steering import names
from loclin.studies.steering.claims_context import ClaimsContext, Layered, late, middle
from loclin.studies.steering.claims_vectors import Vectors

BISECTIONS = 40  # of a step's size: a thousandth is reached long before
#: Keys of the record: slope of every prompt, and its change at the strength of equal KL.
SLOPES, AT_KL = "slopes", "changes-at-kl"

Arrays = dict[str, np.ndarray]
#: Makes a row of one place from a quantity, a value and more context.
Here = Callable[..., Row]


def choose_layers(ctx: ClaimsContext, caa: Layered) -> tuple[dict[str, int], list[Row]]:
    """The blocks at which CAA moves answers most, in the median third and in the later half, by
    examples that decide nothing else; and its slope at every block.
    """
    by_prompt = layer_slopes(
        ctx.model,
        ctx.parts["choose"],
        dict(zip(ctx.layers, caa, strict=True)),
        path=ctx.settings.layers_path,
        progress=ctx.stage("choosing the layers"),
    )
    found = [float(by_prompt[layer].mean()) for layer in ctx.layers]
    among = {names.MIDDLE: middle(ctx.layers), names.CHOSEN: late(ctx.layers)}
    chosen = {place: max(layers, key=lambda n: found[n]) for place, layers in among.items()}
    rows = [ctx.row("layer", float(layer), at=place) for place, layer in chosen.items()]
    return chosen, [*rows, *ctx.by_layer("choice_slope", np.array(found))]


def stepping(ctx: ClaimsContext, direction: Float[Tensor, " D"], size: float) -> Change:
    """Step the weights by a multiple of size·‖θ‖ along a direction, and back by copy."""
    length = float(ctx.space.read().double().norm()) * size / float(direction.double().norm())

    @contextmanager
    def step(strength: float) -> Iterator[None]:
        with ctx.space.restored():
            ctx.space.add(direction, strength * length)
            yield

    return step


def vectors_at(ctx: ClaimsContext, v: Vectors, layer: int) -> dict[str, Tensor]:
    """Every vector at one block, as long as CAA is there.

    The parts of E1's shift along CAA and across it are those of the vector of that length: they add
    up to it.
    """
    caa = v.caa[layer].double()
    length = caa.norm()
    paired = {names.PAIRED: v.paired} if ctx.class_form else {}
    every = {names.CAA: v.caa, **paired, **v.shifts, names.LOGITS: v.logits, names.SEARCH: v.search}
    found = {name: x[layer].double() for name, x in every.items()}
    found = {name: x * (length / x.norm()) for name, x in found.items()}
    along = (found["E1"] @ caa) / length**2 * caa
    found |= {names.E1_ALONG: along, names.E1_ACROSS: found["E1"] - along}
    return {name: x.to(v.caa.dtype) for name, x in found.items()}


def size_of_step(ctx: ClaimsContext, v: Vectors, layer: int) -> float | None:
    """η at which E1's step shifts a block by as much as CAA is long, to a thousandth; None where
    none up to 1 does.
    """
    length, batch = float(v.caa[layer].double().norm()), ctx.parts["shift"].batch
    at = {**ctx.at, "layers": [layer], "origin": v.origin[[layer]]}

    def moved(size: float) -> float:
        found = shift(ctx.model, ctx.space, v.steps["fixed"], batch, size=size, **at)
        return float(found[0].double().mean(0).norm())

    low, high = 0.0, ctx.settings.eta
    while moved(high) < length:
        high *= 2
        if high > 1:
            return None
    for _ in range(BISECTIONS):
        between = (low + high) / 2
        low, high = (between, high) if moved(between) < length else (low, between)
        if high - low < 1e-3 * high:
            break
    return (low + high) / 2


def effects(ctx: ClaimsContext, v: Vectors) -> tuple[list[Row], Arrays]:
    """What every condition does at the middle block and at the late one, as rows; and by prompt
    (`SLOPES`, `AT_KL`).
    """
    middle, late = (_effects_at(ctx, v, place) for place in (names.MIDDLE, names.CHOSEN))
    return [*middle[0], *late[0]], {**middle[1], **late[1]}


def _effects_at(ctx: ClaimsContext, v: Vectors, place: str) -> tuple[list[Row], Arrays]:
    """Dose response, slopes, damage and equal damage under every condition; no ratio to CAA where
    CAA does not steer. What chance vectors do is seen at the middle block alone.
    """
    layer, settings = ctx.chosen[place], ctx.settings
    size, changes = size_of_step(ctx, v, layer), dict[str, Change]()
    for name, vector in vectors_at(ctx, v, layer).items():
        changes[name] = _adding(ctx, layer, vector)
    if size is not None:
        changes[names.STEP] = stepping(ctx, v.steps["fixed"], size)
    lengths, width = {layer: float(v.caa[layer].norm())}, v.caa.shape[-1]
    seed, count = derived(settings.seed, "random vectors"), settings.random_vectors
    drawn = random_vectors(lengths, width, count=count, seed=seed)
    random = {str(i): _adding(ctx, layer, each[layer]) for i, each in enumerate(drawn)}
    every, test = {**changes, **random}, ctx.parts["test"]
    found = responses(ctx.model, test, every, settings.strengths, progress=ctx.stage("steering"))
    own = found[names.CAA]
    unit, each = _slope(own), {name: found[name] for name in changes}

    def here(quantity: str, value: float | None, **context: Any) -> Row:
        return ctx.row(quantity, value, **context, at=place)

    rows = [here("step_size", size)]
    if size is None:
        rows.append(here("slope_ratio", None, condition=names.STEP))
    rows += _response_rows(here, each, unit)
    rows += _random_rows(here, [found[name] for name in random], unit)
    damaged, at_kl = _damage_rows(ctx, here, changes)
    rows += damaged
    if place == names.MIDDLE:
        before = own.differences[own.strengths.index(0.0)]  # of the model as it is
        rows.append(ctx.row("logit_difference", float(before.mean())))
        rows += _chance_rows(ctx, v, found[names.SEARCH], unit)
    arrays = {f"{SLOPES}/{place}/{name}": response.slopes for name, response in each.items()}
    return rows, {**arrays, **{f"{AT_KL}/{place}/{name}": x for name, x in at_kl.items()}}


def _adding(ctx: ClaimsContext, layer: int, vector: Float[Tensor, " d"]) -> Change:
    return adding(ctx.model, {layer: vector}, path=ctx.settings.layers_path)


def _slope(found: Response) -> float:
    return float(found.slopes.mean())


def _ratio(value: float | None, unit: float | None) -> float | None:
    return value / unit if value is not None and unit is not None and unit > 0 else None


def _response_rows(here: Here, found: Mapping[str, Response], unit: float) -> Iterator[Row]:
    """Of every condition; what the model says by itself is no effect."""
    for name, each in found.items():
        means = each.changes.mean(1)
        yield from _effect_rows(here, name, each.strengths, means, _slope(each), unit)
        yield here("anti_steerable", anti_steerable(each.slopes), condition=name)


def _random_rows(here: Here, found: Sequence[Response], unit: float) -> Iterator[Row]:
    """Quantiles of what random directions do."""
    means = np.stack([each.changes.mean(1) for each in found])
    slope = np.array([_slope(each) for each in found])
    for name, q in names.RANDOM.items():
        there, dose = float(np.quantile(slope, q)), np.quantile(means, q, axis=0)
        yield from _effect_rows(here, name, found[0].strengths, dose, there, unit)
    share = float(np.median([anti_steerable(each.slopes) for each in found]))
    yield here("anti_steerable", share, condition=names.MEDIAN)


def _effect_rows(
    here: Here,
    name: str,
    strengths: Sequence[float],
    means: Float[np.ndarray, " a"],
    slope: float,
    unit: float,
) -> Iterator[Row]:
    for strength, value in zip(strengths, means, strict=True):
        yield here("response", float(value), condition=name, strength=strength)
    yield here("slope", slope, condition=name)
    yield here("slope_ratio", _ratio(slope, unit), condition=name)


def _damage_rows(
    ctx: ClaimsContext, here: Here, changes: Mapping[str, Change]
) -> tuple[list[Row], Arrays]:
    """KL and perplexity on neutral text at strength 1; and the change of the answers at the
    strength > 0 of equal KL, of every prompt where there is one.
    """
    unit, test, rows = None, ctx.parts["test"], list[Row]()
    at_kl: Arrays = {}
    done_by = damages(ctx.model, ctx.neutral, [(change, 1.0) for change in changes.values()])
    for i, ((name, change), done) in enumerate(zip(changes.items(), done_by, strict=True)):
        ctx.progress("measuring damage", i / len(changes))
        rows.append(here("kl", float(done.kl.mean()), condition=name))
        rows.append(here("perplexity", done.perplexity, condition=name))
        if name == names.CAA:
            rows.append(here("perplexity", done.perplexity_before, condition=names.MODEL))
        there = at_equal_damage(ctx.model, test, ctx.neutral, change, ctx.settings.kl)
        if there:
            at_kl[name] = there[1]
        effect = float(at_kl[name].mean()) if there else None
        unit = effect if name == names.CAA else unit
        found = {"strength_at_kl": there and there[0], "effect_at_kl": effect}
        for quantity, value in {**found, "kl_ratio": _ratio(effect, unit)}.items():
            rows.append(here(quantity, value, condition=name))
    return rows, at_kl


def _chance_rows(ctx: ClaimsContext, v: Vectors, own: Response, unit: float) -> Iterator[Row]:
    """Slopes over CAA's, at the middle block, of as many random steps drawn without regard to their
    scores, as long as CAA, by strengths −1 and 1 alone; and the search vector's own, measured the
    same way.
    """
    ends, layer = (1.0, -1.0), ctx.chosen[names.MIDDLE]
    at_ends = own.differences[[own.strengths.index(strength) for strength in ends]]
    slope = float(slopes(at_ends, ends).mean())
    yield ctx.row("ends_ratio", _ratio(slope, unit), condition=names.SEARCH)
    length, drawn = float(v.caa[layer].norm()), v.chance[:, layer]
    changes = [_adding(ctx, layer, vector * (length / vector.norm())) for vector in drawn]
    found = differences(
        ctx.model,
        ctx.parts["test"],
        [(change, strength) for change in changes for strength in ends],
        progress=ctx.stage("steering by chance"),
    )[1:].mean(1)
    for i, (plus, minus) in enumerate(found.reshape(-1, 2)):
        yield ctx.row("chance_ratio", _ratio(float(plus - minus) / 2, unit), draw=i)
