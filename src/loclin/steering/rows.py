"""What one `loclin steer` found, as rows of the record (docs/record.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from loclin.record import Row, estimated, finite
from loclin.stats import Estimate, over_examples, permutation_p
from loclin.steering.apply import Generation
from loclin.steering.effect import anti_steerable
from loclin.steering.tested import Harm, Response

TAILS = (0.025, 0.975)


def layer_rows(
    slopes: Mapping[int, Float[np.ndarray, " n"]],
    lengths: Mapping[int, float],
    chosen: Sequence[int],
    *,
    groups: Sequence[str],
    seed: int,
) -> Iterator[Row]:
    """The slope on the choose part at every layer tried, how long strength 1 is there, and which
    layers were taken.
    """
    for layer, found in slopes.items():
        yield estimated(
            "layer_slope", over_examples(found, groups=groups, seed=seed), {"layer": layer}
        )
    for layer, length in lengths.items():
        yield Row(quantity="length", value=length, context={"layer": layer})
    for layer in chosen:
        yield Row(quantity="chosen_layer", value=float(layer), context={"layer": layer})


def response_rows(
    found: Mapping[str, Response], band: Sequence[Response], *, groups: Sequence[str], seed: int
) -> Iterator[Row]:
    """Dose response, slopes and anti-steerable share of every route, beside random directions of
    the same length.

    p is (b+1)/(m+1): b of the m random directions have a mean slope as large, of either sign.
    """
    chance = np.array([r.slopes.mean() for r in band])
    for route, response in found.items():
        here = {"route": route}
        for strength, changes in zip(response.strengths, response.changes, strict=True):
            estimate = over_examples(changes, groups=groups, seed=seed)
            yield estimated("change", estimate, {**here, "strength": strength})
        slope = over_examples(response.slopes, groups=groups, seed=seed)
        p = permutation_p(slope.value, np.abs(chance))
        yield estimated("slope", slope, here, null=float(np.quantile(np.abs(chance), 0.95)), p=p)
        share = over_examples(response.slopes < 0, groups=groups, seed=seed)
        yield estimated("anti_steerable", share, here)
        for i, value in enumerate(response.slopes.tolist()):
            yield Row(quantity="prompt_slope", value=value, context={**here, "prompt": i})
    yield _quantiles("random_slope", chance, {})
    for j, strength in enumerate(band[0].strengths):
        each = np.array([r.changes[j].mean() for r in band])
        yield _quantiles("random_change", each, {"strength": strength})
    shares = np.array([anti_steerable(r.slopes) for r in band])
    yield _quantiles("random_anti_steerable", shares, {})


def _quantiles(quantity: str, draws: Float[np.ndarray, " m"], context: Mapping[str, object]) -> Row:
    """Mean and the middle 95 % of random directions: a band, not an interval of the mean."""
    low, high = np.quantile(draws, TAILS)
    return Row(
        quantity=quantity,
        value=float(draws.mean()),
        low=float(low),
        high=float(high),
        n=len(draws),
        context=context,
    )


def cosine_rows(
    cosines: Mapping[tuple[str, str], Sequence[Estimate]],
    null: Float[np.ndarray, "m L"] | None,
    layers: Sequence[int],
) -> Iterator[Row]:
    """Every pair of routes at every layer; the gradient step beside labels with its null.

    The null of a row is the cosine that 5 % of the random steps exceed.
    """
    for (a, b), estimates in cosines.items():
        tested = null if {a, b} == {"labels", "gradient"} else None
        for i, (layer, estimate) in enumerate(zip(layers, estimates, strict=True)):
            context = {"route": a, "with": b, "layer": layer}
            draws = None if tested is None else tested[:, i]
            yield estimated(
                "cosine",
                estimate,
                context,
                null=None if draws is None else float(np.quantile(draws, 0.95)),
                p=None if draws is None else permutation_p(estimate.value, draws),
            )
    for i, layer in enumerate(layers if null is not None else ()):
        assert null is not None
        yield _quantiles("random_cosine", null[:, i], {"layer": layer})


def harm_rows(found: Mapping[str, Sequence[Harm]], *, seed: int) -> Iterator[Row]:
    """KL and perplexity on neutral text, by route and strength."""
    for route, harms in found.items():
        for harm in harms:
            context = {"route": route, "strength": harm.strength}
            yield estimated("kl", over_examples(harm.kl, seed=seed), context)
            yield Row(
                quantity="perplexity",
                value=finite(harm.perplexity),
                null=finite(harm.before),
                context=context,
            )


def equal_damage_rows(
    found: Mapping[str, tuple[float, Float[np.ndarray, " n"]] | None],
    *,
    target: float,
    groups: Sequence[str],
    seed: int,
) -> Iterator[Row]:
    """The strength at which the damage is the target, and what it adds to the logit difference
    there; no value where it never is.
    """
    for route, there in found.items():
        context = {"route": route, "kl": target}
        yield Row(
            quantity="strength_at_kl", value=None if there is None else there[0], context=context
        )
        estimate = None if there is None else over_examples(there[1], groups=groups, seed=seed)
        yield estimated("change_at_kl", estimate, context)


def generation_rows(made: Sequence[Generation]) -> Iterator[Row]:
    """Steered texts: the value is the strength, the text stands in the context."""
    for g in made:
        yield Row(
            quantity="generation", value=g.strength, context={"prompt": g.prompt, "text": g.text}
        )
