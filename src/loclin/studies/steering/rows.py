"""What one `loclin steer` found, as rows of the record (docs/record.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from loclin.run.rows import Row, estimated, finite
from loclin.stats import Estimate, permutation_p
from loclin.steering.effect import Response, anti_steerable
from loclin.steering.generation import Generation
from loclin.steering.neutral import Damage
from loclin.studies.steering import names

TAILS = (0.025, 0.975)
#: The mean over examples with its interval.
Over = Callable[[np.ndarray], Estimate]


def layer_rows(
    slopes: Mapping[int, Float[np.ndarray, " n"]],
    lengths: Mapping[int, float],
    chosen: Sequence[int],
    over: Over,
) -> Iterator[Row]:
    """The slope on the choose part at every layer tried, how long strength 1 is there, and which
    layers were taken: what the command recommends.
    """
    for layer, found in slopes.items():
        yield estimated(names.LAYER_SLOPE, over(found), {"layer": layer})
    for layer, length in lengths.items():
        yield Row(quantity=names.LENGTH, value=length, context={"layer": layer})
    for layer in chosen:
        yield Row(quantity=names.CHOSEN_LAYER, value=float(layer), context={"layer": layer})


def response_rows(
    found: Mapping[str, Response], band: Sequence[Response], over: Over
) -> Iterator[Row]:
    """Dose response, slopes and anti-steerable share of every route, beside random directions of
    the same length.

    p is (b+1)/(m+1): b of the m random directions have a mean slope as large, of either sign.
    """
    chance = np.array([r.slopes.mean() for r in band])
    for route, response in found.items():
        here = {"route": route}
        for strength, changes in zip(response.strengths, response.changes, strict=True):
            yield estimated(names.CHANGE, over(changes), {**here, "strength": strength})
        slope = over(response.slopes)
        null, p = (
            float(np.quantile(np.abs(chance), 0.95)),
            permutation_p(slope.value, np.abs(chance)),
        )
        yield estimated(names.SLOPE, slope, here, null=null, p=p)
        yield estimated(names.ANTI_STEERABLE, over(response.slopes < 0), here)
        for i, value in enumerate(response.slopes.tolist()):
            yield Row(quantity=names.PROMPT_SLOPE, value=value, context={**here, "prompt": i})
    yield _quantiles(names.RANDOM_SLOPE, chance, {})
    for j, strength in enumerate(band[0].strengths):
        each = np.array([r.changes[j].mean() for r in band])
        yield _quantiles(names.RANDOM_CHANGE, each, {"strength": strength})
    shares = np.array([anti_steerable(r.slopes) for r in band])
    yield _quantiles(names.RANDOM_ANTI_STEERABLE, shares, {})


def _quantiles(quantity: str, draws: Float[np.ndarray, " m"], context: Mapping[str, object]) -> Row:
    """Mean and the middle 95 % of random directions: a band, not an interval of the mean."""
    low, high = map(float, np.quantile(draws, TAILS))
    value, n = float(draws.mean()), len(draws)
    return Row(quantity=quantity, value=value, low=low, high=high, n=n, context=context)


def cosine_rows(
    cosines: Mapping[tuple[str, str], Sequence[Estimate]],
    null: Float[np.ndarray, "m L"] | None,
    layers: Sequence[int],
) -> Iterator[Row]:
    """Every pair of routes at every layer; the gradient step beside labels with its null.

    The null of a row is the cosine that 5 % of the random steps exceed.
    """
    for (a, b), estimates in cosines.items():
        for i, (layer, estimate) in enumerate(zip(layers, estimates, strict=True)):
            beside: dict[str, float] = {}
            if null is not None and {a, b} == {"labels", "gradient"}:
                beside = {"null": float(np.quantile(null[:, i], 0.95))}
                beside["p"] = permutation_p(estimate.value, null[:, i])
            context = {"route": a, "with": b, "layer": layer}
            yield estimated(names.COSINE, estimate, context, **beside)
    if null is not None:
        for layer, draws in zip(layers, null.T, strict=True):
            yield _quantiles(names.RANDOM_COSINE, draws, {"layer": layer})


def damage_rows(route: str, found: Mapping[float, Damage], over: Over) -> Iterator[Row]:
    """KL and perplexity on neutral text, by strength."""
    for strength, done in found.items():
        context = {"route": route, "strength": strength}
        yield estimated(names.KL, over(done.kl), context)
        value, before = finite(done.perplexity), finite(done.perplexity_before)
        yield Row(quantity=names.PERPLEXITY, value=value, null=before, context=context)


def equal_damage_rows(
    found: Mapping[str, tuple[float, Float[np.ndarray, " n"]] | None], target: float, over: Over
) -> Iterator[Row]:
    """The strength at which the damage is the target, and what it adds to the logit difference
    there; no value where it never is.
    """
    for route, there in found.items():
        context = {"route": route, "kl": target}
        strength, changes = there or (None, None)
        yield Row(quantity=names.STRENGTH_AT_KL, value=strength, context=context)
        change = None if changes is None else over(changes)
        yield estimated(names.CHANGE_AT_KL, change, context)


def generation_rows(made: Sequence[Generation]) -> Iterator[Row]:
    """Steered texts: the value is the strength, the text stands in the context."""
    for g in made:
        context = {"prompt": g.prompt, "text": g.text}
        yield Row(quantity=names.GENERATION, value=g.strength, context=context)
