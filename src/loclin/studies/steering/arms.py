"""What vectors do to answers when they are added at one layer, at equal length and at equal damage; and the weight step itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.activations.adding import added
from loclin.record import Row
from loclin.seeds import derived
from loclin.steering.asked import Asked
from loclin.steering.effect import anti_steerable, dose_response, logit_differences, slopes
from loclin.steering.gradient import shift
from loclin.steering.neutral import amount_at_kl, damage
from loclin.studies.steering.material import Layered, Material
from loclin.studies.steering.vectors import Vectors

STEP = "weight step E1"
BISECTIONS = 40  # of a step's size: a thousandth is reached long before

#: A context inside which the model is changed by so much.
Change = Callable[[float], AbstractContextManager[object]]


def choose_layer(material: Material, caa: Layered) -> tuple[int, list[Row]]:
    """The later layer at which CAA moves answers most, by examples that decide nothing else; and its slope at every layer."""
    found = []
    for layer in material.layers:
        differences = dose_response(
            material.model, material.parts["choose"], {layer: caa[layer]}, (-1.0, 1.0), path=material.config.layers_path
        )
        found.append(float(slopes(differences, (-1.0, 1.0)).mean()))
    chosen = max(material.late, key=lambda layer: found[layer])
    return chosen, material.by_layer("choice_slope", np.array(found))


@dataclass(frozen=True, eq=False, kw_only=True)
class Effect:
    """What one arm does to the answers.

    Attributes:
        differences: logit differences of every prompt at every strength.
        slope: of every prompt, over strengths up to 1 either way.
    """

    differences: Float[np.ndarray, "a n"]
    slope: Float[np.ndarray, " n"]


def adding(material: Material, layer: int, vector: Float[Tensor, " d"]) -> Change:
    """Add a multiple of a vector to the output of a block, at every token."""
    return lambda strength: added(material.model, {layer: strength * vector}, path=material.config.layers_path)


def stepping(material: Material, direction: Float[Tensor, " D"], size: float) -> Change:
    """Step the weights by a multiple of size·‖θ‖ along a direction, and back by copy."""
    length = float(material.space.read().double().norm()) * size / float(direction.double().norm())

    @contextmanager
    def step(strength: float) -> Iterator[None]:
        with material.space.restored():
            material.space.add(direction, strength * length)
            yield

    return step


def effect(material: Material, change: Change, asked: Asked, before: Float[np.ndarray, " n"]) -> Effect:
    """The answers at every strength; at 0 they are those of the model as it is."""
    strengths = material.config.strengths
    rows = []
    for strength in strengths:
        if strength == 0:
            rows.append(before)
            continue
        with change(strength):
            rows.append(logit_differences(material.model, asked))
    differences = np.stack(rows)
    near = [i for i, s in enumerate(strengths) if abs(s) <= 1]
    return Effect(differences=differences, slope=slopes(differences[near], [strengths[i] for i in near]))


def vectors_at(material: Material, v: Vectors, chosen: int, others: Mapping[str, Layered]) -> dict[str, Tensor]:
    """Every vector at the chosen layer, as long as CAA is there.

    The parts of E1's shift along CAA and across it are those of the vector of that length: they add up to it.

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
    found = {name: x[chosen].double() * (length / x[chosen].double().norm()) for name, x in given.items()}
    along = (found["E1"] @ caa) / length**2 * caa
    found |= {"E1 along CAA": along, "E1 across CAA": found["E1"] - along}
    rng = np.random.default_rng(derived(material.config.seed, "random vectors"))
    for i, z in enumerate(rng.standard_normal((material.config.random_vectors, len(caa)))):
        found[f"random {i}"] = torch.from_numpy(z / np.linalg.norm(z)) * length
    return {name: x.to(v.caa.dtype) for name, x in found.items()}


def size_of_step(material: Material, v: Vectors, chosen: int) -> float | None:
    """η at which E1's step shifts the chosen layer by as much as CAA is long, to a thousandth; None where none up to 1 does."""
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
    """Dose response, slopes, damage and equal damage of every arm; no ratio to CAA where CAA does not steer.

    Args:
        material: of the run.
        v: its vectors.
        chosen: the layer.
        others: vectors of further arms by layer, such as "search".
        chance: at the chosen layer, null vectors of an arm.
    """
    changes = {n: adding(material, chosen, x) for n, x in vectors_at(material, v, chosen, others).items()}
    size = size_of_step(material, v, chosen)
    if size is not None:
        changes[STEP] = stepping(material, v.direction("E1"), size)
    yield material.row("step_size", size)
    asked = material.parts["test"]
    before = logit_differences(material.model, asked)
    found = {}
    for i, (arm, change) in enumerate(changes.items()):
        material.progress("steering", i / len(changes))
        found[arm] = effect(material, change, asked, before)
    unit = float(found["CAA"].slope.mean())
    named = {arm: e for arm, e in found.items() if not arm.startswith("random ")}
    yield material.row("logit_difference", float(before.mean()))
    for arm, e in named.items():
        yield from _effect_rows(material, arm, e, before, unit)
    if size is None:
        yield material.row("slope_ratio", None, arm=STEP)
    yield from _random_rows(material, [e for arm, e in found.items() if arm not in named], before, unit)
    yield from _damage_rows(material, {arm: changes[arm] for arm in named}, asked, float(before.mean()))
    yield from _chance_rows(material, chosen, float(v.caa[chosen].norm()), named, unit, chance)


def _effect_rows(
    material: Material, arm: str, e: Effect, before: Float[np.ndarray, " n"], unit: float
) -> Iterator[Row]:
    """Responses are changes of the mean logit difference: what the model says by itself is no effect."""
    slope = float(e.slope.mean())
    for strength, row in zip(material.config.strengths, e.differences, strict=True):
        yield material.row("response", float((row - before).mean()), arm=arm, strength=strength)
    yield material.row("slope", slope, arm=arm)
    yield material.row("slope_ratio", slope / unit if unit > 0 else None, arm=arm)
    yield material.row("anti_steerable", anti_steerable(e.slope), arm=arm)


def _random_rows(
    material: Material, drawn: Sequence[Effect], before: Float[np.ndarray, " n"], unit: float
) -> Iterator[Row]:
    """Random directions of activations: the middle 95 % of their mean responses and slopes."""
    responses = np.stack([(e.differences - before).mean(1) for e in drawn])
    slope = np.array([e.slope.mean() for e in drawn])
    for quantile, name in ((0.025, "random, 2.5 %"), (0.5, "random, median"), (0.975, "random, 97.5 %")):
        for strength, value in zip(material.config.strengths, np.quantile(responses, quantile, axis=0), strict=True):
            yield material.row("response", float(value), arm=name, strength=strength)
        yield material.row("slope", float(np.quantile(slope, quantile)), arm=name)
        yield material.row("slope_ratio", float(np.quantile(slope, quantile)) / unit if unit > 0 else None, arm=name)
    shares = [anti_steerable(e.slope) for e in drawn]
    yield material.row("anti_steerable", float(np.median(shares)), arm="random, median")


def _damage_rows(material: Material, changes: Mapping[str, Change], asked: Asked, before: float) -> Iterator[Row]:
    """KL and perplexity on neutral text at strength 1; and the change of the answers at the strength > 0 of equal KL."""
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
            "kl_ratio", effects / unit if effects is not None and unit is not None and unit > 0 else None, arm=arm
        )


def _both_ways(material: Material, change: Change, amount: float, asked: Asked) -> float:
    return (_changed(material, change, amount, asked) - _changed(material, change, -amount, asked)) / 2


def _changed(material: Material, change: Change, amount: float, asked: Asked) -> float:
    """Mean logit difference under a change."""
    with change(amount):
        return float(logit_differences(material.model, asked).mean())


def _chance_rows(
    material: Material,
    chosen: int,
    length: float,
    named: Mapping[str, Effect],
    unit: float,
    chance: Mapping[str, Float[Tensor, "m d"]],
) -> Iterator[Row]:
    """Slopes over CAA's of null vectors of the same length, by strengths −1 and 1 alone; the arm's own measured the same way."""
    strengths = material.config.strengths
    ends = [strengths.index(-1.0), strengths.index(1.0)]
    for arm, vectors in chance.items():
        own = float(slopes(named[arm].differences[ends], (-1.0, 1.0)).mean())
        yield material.row("ends_ratio", own / unit if unit > 0 else None, arm=arm)
        for i, vector in enumerate(vectors):
            material.progress("steering by chance", i / len(vectors))
            change = adding(material, chosen, vector * (length / vector.norm()))
            slope = _both_ways(material, change, 1.0, material.parts["test"])
            yield material.row("chance_ratio", slope / unit if unit > 0 else None, draw=i)
