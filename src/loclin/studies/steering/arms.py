"""What vectors do to answers when they are added at one layer, at equal length and at equal damage;
and the weight step itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.record import Row
from loclin.seeds import derived
from loclin.steering.asked import Asked
from loclin.steering.effect import anti_steerable, logit_differences, slopes
from loclin.steering.gradient import shift
from loclin.steering.neutral import amount_at_kl, damage
from loclin.steering.tested import Change, Response, adding, layer_slopes, response
from loclin.studies.steering.material import Layered, Material
from loclin.studies.steering.vectors import Vectors

STEP = "weight step E1"
BISECTIONS = 40  # of a step's size: a thousandth is reached long before


def choose_layer(material: Material, caa: Layered) -> tuple[int, list[Row]]:
    """The later layer at which CAA moves answers most, by examples that decide nothing else; and
    its slope at every layer.
    """
    by_prompt = layer_slopes(
        material.model,
        material.parts["choose"],
        dict(zip(material.layers, caa, strict=True)),
        path=material.config.layers_path,
        told=lambda share: material.progress("choosing the layer", share),
    )
    found = [float(by_prompt[layer].mean()) for layer in material.layers]
    chosen = max(material.late, key=lambda layer: found[layer])
    return chosen, material.by_layer("choice_slope", np.array(found))


def stepping(material: Material, direction: Float[Tensor, " D"], size: float) -> Change:
    """Step the weights by a multiple of size·‖θ‖ along a direction, and back by copy."""
    length = float(material.space.read().double().norm()) * size / float(direction.double().norm())

    @contextmanager
    def step(strength: float) -> Iterator[None]:
        with material.space.restored():
            material.space.add(direction, strength * length)
            yield

    return step


def vectors_at(
    material: Material, v: Vectors, chosen: int, others: Mapping[str, Layered]
) -> dict[str, Tensor]:
    """Every vector at the chosen layer, as long as CAA is there.

    The parts of E1's shift along CAA and across it are those of the vector of that length: they add
    up to it.

    Args:
        material: of the run.
        v: its vectors.
        chosen: the layer.
        others: further vectors.
    """
    caa = v.caa[chosen].double()
    length = caa.norm()
    given = {"CAA": v.caa, "paired CAA": v.paired, **v.shifts, "logit gradient": v.logits, **others}
    if not material.class_form:
        del given["paired CAA"]
    found = {
        name: x[chosen].double() * (length / x[chosen].double().norm()) for name, x in given.items()
    }
    along = (found["E1"] @ caa) / length**2 * caa
    found |= {"E1 along CAA": along, "E1 across CAA": found["E1"] - along}
    rng = np.random.default_rng(derived(material.config.seed, "random vectors"))
    for i, z in enumerate(rng.standard_normal((material.config.random_vectors, len(caa)))):
        found[f"random {i}"] = torch.from_numpy(z / np.linalg.norm(z)) * length
    return {name: x.to(v.caa.dtype) for name, x in found.items()}


def size_of_step(material: Material, v: Vectors, chosen: int) -> float | None:
    """η at which E1's step shifts the chosen layer by as much as CAA is long, to a thousandth; None
    where none up to 1 does.
    """
    length = float(v.caa[chosen].double().norm())

    def moved(size: float) -> float:
        found = shift(
            material.model,
            material.space,
            v.direction("E1"),
            material.parts["shift"].batch,
            size=size,
            layers=[chosen],
            path=material.config.layers_path,
            origin=v.origin[[chosen]],
        )
        return float(found[0].double().mean(0).norm())

    high = material.config.eta
    while moved(high) < length:
        high *= 2
        if high > 1:
            return None
    low = 0.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if moved(middle) < length else (low, middle)
        if high - low < 1e-3 * high:
            break
    return (low + high) / 2


def arm_rows(
    material: Material,
    v: Vectors,
    chosen: int,
    others: Mapping[str, Layered],
    chance: Mapping[str, Float[Tensor, "m d"]],
) -> Iterator[Row]:
    """Dose response, slopes, damage and equal damage of every arm; no ratio to CAA where CAA does
    not steer.

    Args:
        material: of the run.
        v: its vectors.
        chosen: the layer.
        others: vectors of further arms by layer, such as "search".
        chance: at the chosen layer, null vectors of an arm.
    """
    path = material.config.layers_path
    given = vectors_at(material, v, chosen, others)
    changes = {n: adding(material.model, {chosen: x}, path=path) for n, x in given.items()}
    size = size_of_step(material, v, chosen)
    if size is not None:
        changes[STEP] = stepping(material, v.direction("E1"), size)
    yield material.row("step_size", size)
    asked = material.parts["test"]
    before = logit_differences(material.model, asked)
    found = {}
    for i, (arm, change) in enumerate(changes.items()):
        material.progress("steering", i / len(changes))
        found[arm] = response(
            material.model, asked, change, material.config.strengths, before=before
        )
    unit = float(found["CAA"].slopes.mean())
    named = {arm: e for arm, e in found.items() if not arm.startswith("random ")}
    yield material.row("logit_difference", float(before.mean()))
    for arm, e in named.items():
        yield from _effect_rows(material, arm, e, unit)
    if size is None:
        yield material.row("slope_ratio", None, arm=STEP)
    yield from _random_rows(material, [e for arm, e in found.items() if arm not in named], unit)
    yield from _damage_rows(
        material, {arm: changes[arm] for arm in named}, asked, float(before.mean())
    )
    yield from _chance_rows(material, chosen, float(v.caa[chosen].norm()), named, unit, chance)


def _effect_rows(material: Material, arm: str, e: Response, unit: float) -> Iterator[Row]:
    """Responses are changes of the mean logit difference: what the model says by itself is no
    effect.
    """
    slope = float(e.slopes.mean())
    for strength, row in zip(e.strengths, e.changes, strict=True):
        yield material.row("response", float(row.mean()), arm=arm, strength=strength)
    yield material.row("slope", slope, arm=arm)
    yield material.row("slope_ratio", slope / unit if unit > 0 else None, arm=arm)
    yield material.row("anti_steerable", anti_steerable(e.slopes), arm=arm)


def _random_rows(material: Material, drawn: Sequence[Response], unit: float) -> Iterator[Row]:
    """Random directions of activations: the middle 95 % of their mean responses and slopes."""
    responses = np.stack([e.changes.mean(1) for e in drawn])
    slope = np.array([e.slopes.mean() for e in drawn])
    for quantile, name in (
        (0.025, "random, 2.5 %"),
        (0.5, "random, median"),
        (0.975, "random, 97.5 %"),
    ):
        for strength, value in zip(
            material.config.strengths, np.quantile(responses, quantile, axis=0), strict=True
        ):
            yield material.row("response", float(value), arm=name, strength=strength)
        yield material.row("slope", float(np.quantile(slope, quantile)), arm=name)
        yield material.row(
            "slope_ratio",
            float(np.quantile(slope, quantile)) / unit if unit > 0 else None,
            arm=name,
        )
    shares = [anti_steerable(e.slopes) for e in drawn]
    yield material.row("anti_steerable", float(np.median(shares)), arm="random, median")


def _damage_rows(
    material: Material, changes: Mapping[str, Change], asked: Asked, before: float
) -> Iterator[Row]:
    """KL and perplexity on neutral text at strength 1; and the change of the answers at the
    strength > 0 of equal KL.
    """
    unit = None
    for i, (arm, change) in enumerate(changes.items()):
        material.progress("measuring damage", i / len(changes))
        done = damage(material.model, material.neutral, partial(change, 1.0))
        yield material.row("kl", float(done.kl.mean()), arm=arm)
        yield material.row("perplexity", done.perplexity, arm=arm)
        if arm == "CAA":
            yield material.row("perplexity", done.perplexity_before, arm="the model")
        amount = amount_at_kl(material.model, material.neutral, change, material.config.kl)
        yield material.row("strength_at_kl", amount, arm=arm)
        effects = None if amount is None else _changed(material, change, amount, asked) - before
        unit = effects if arm == "CAA" else unit
        yield material.row("effect_at_kl", effects, arm=arm)
        yield material.row(
            "kl_ratio",
            effects / unit if effects is not None and unit is not None and unit > 0 else None,
            arm=arm,
        )


def _both_ways(material: Material, change: Change, amount: float, asked: Asked) -> float:
    return (
        _changed(material, change, amount, asked) - _changed(material, change, -amount, asked)
    ) / 2


def _changed(material: Material, change: Change, amount: float, asked: Asked) -> float:
    """Mean logit difference under a change."""
    with change(amount):
        return float(logit_differences(material.model, asked).mean())


def _chance_rows(
    material: Material,
    chosen: int,
    length: float,
    named: Mapping[str, Response],
    unit: float,
    chance: Mapping[str, Float[Tensor, "m d"]],
) -> Iterator[Row]:
    """Slopes over CAA's of null vectors of the same length, by strengths −1 and 1 alone; the arm's
    own measured the same way.
    """
    strengths = material.config.strengths
    ends = [strengths.index(-1.0), strengths.index(1.0)]
    for arm, vectors in chance.items():
        own = float(slopes(named[arm].differences[ends], (-1.0, 1.0)).mean())
        yield material.row("ends_ratio", own / unit if unit > 0 else None, arm=arm)
        for i, vector in enumerate(vectors):
            material.progress("steering by chance", i / len(vectors))
            scaled = {chosen: vector * (length / vector.norm())}
            change = adding(material.model, scaled, path=material.config.layers_path)
            slope = _both_ways(material, change, 1.0, material.parts["test"])
            yield material.row("chance_ratio", slope / unit if unit > 0 else None, draw=i)
