"""How far routes to a steering vector agree, layer by layer: cosines with intervals over prompts
and gradient batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from jaxtyping import Float
from scipy import stats
from torch import Tensor, nn

from loclin.geometry.gramian import norm
from loclin.parameters import ParameterSpace
from loclin.seeds import derived
from loclin.stats import CONFIDENCE, Estimate
from loclin.steering.averages import Averaged, loss_of, step_averaged
from loclin.steering.compare import cosines
from loclin.steering.estimands import Estimand
from loclin.steering.prompts import PromptSet, group_numbers, pieces
from loclin.tasks.batch import answer_loss

BATCHES = 8  # that the gradient part is cut into
DRAWS = 400  # of the bootstrap: enough for a standard error, which is all that is read from it
SMALL = 1e-3  # a step over ‖θ‖ whose shift is linear in it


def gradient_batches(
    model: nn.Module,
    space: ParameterSpace,
    stepped: PromptSet,
    read: PromptSet,
    *,
    estimand: Estimand,
    layers: Sequence[int],
    path: str | None,
    progress: Callable[[float], None],
) -> tuple[Averaged, ...]:
    """The shift of every batch of the gradient part: n_b‖g_b‖·J(−g_b/‖g_b‖), by small steps both
    ways; their sum goes along −Jg.

    Groups are dealt out to at most 8 batches, so that none is in two.
    """
    home, found = np.array(group_numbers(stepped.groups)), []
    step: Tensor | None = None
    for b in range(min(BATCHES, int(home.max()) + 1)):
        rows = stepped.rows(home % BATCHES == b)
        batch = rows.answered(rows.toward if loss_of(estimand) == "fixed" else rows.gold)
        chunks = (batch.rows(r.to(batch.labels.device)) for r in pieces(model, rows.batch))
        step = space.gradient(lambda each: answer_loss(model, each), chunks, into=step).neg_()
        moved = step_averaged(
            model, space, step, read, estimand=estimand, eta=SMALL, layers=layers, path=path
        )
        weight = len(rows) * norm(step)
        found.append(replace(moved, each=weight * moved.each))
        progress((b + 1) / BATCHES)
    return tuple(found)


def agreement(
    directions: Mapping[str, Float[Tensor, "L d"]],
    prompts: Mapping[str, Averaged],
    batches: Sequence[Averaged] = (),
    *,
    seed: int,
) -> dict[tuple[str, str], list[Estimate]]:
    """cos(a_L, b_L) of every pair of routes at every layer, with an interval where both can be
    drawn again: what other prompts and batches of these numbers would give, for this model.

    The interval is tanh(artanh cos ± t·s), s the standard deviation of artanh cos over bootstrap
    draws: whole groups of prompts, and gradient batches, are drawn with replacement, and t is
    Student's with one degree of freedom less than the smallest number of units that are drawn.
    Quantiles of the draws themselves would lie too low: noise that is drawn twice turns a direction
    further away.

    Args:
        directions: of every route.
        prompts: routes whose direction is an average over the prompts of the labels part.
        batches: the gradient step, in parts (`gradient_batches`): the direction is the sum over
            gradient batches of averages over the prompts of the shift part, each as long as its
            batch's gradient. Empty where no gradient step is compared.
        seed: of the draws.

    Returns:
        By pair, layer by layer; the interval is infinite where a route (a search) cannot be drawn
        again.
    """
    spread = _spread(prompts, batches, layers=len(next(iter(directions.values()))), seed=seed)
    found: dict[tuple[str, str], list[Estimate]] = {}
    for a, b in combinations(directions, 2):
        values = cosines(directions[a], directions[b]).double().tolist()
        known = [spread.get(frozenset((a, b, i)), (math.inf, 1)) for i in range(len(values))]
        found[a, b] = [_estimate(c, *each) for c, each in zip(values, known, strict=True)]
    return found


def _estimate(cosine: float, spread: float, units: int) -> Estimate:
    if not math.isfinite(spread) or units < 2:
        return Estimate(value=cosine, low=-math.inf, high=math.inf, n=units)
    z = math.atanh(min(max(cosine, -1 + 1e-12), 1 - 1e-12))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, units - 1)) * spread
    return Estimate(value=cosine, low=math.tanh(z - half), high=math.tanh(z + half), n=units)


def _spread(
    prompts: Mapping[str, Averaged], batches: Sequence[Averaged], *, layers: int, seed: int
) -> dict[frozenset[str | int], tuple[float, int]]:
    """For every pair of routes that can be drawn again, and every layer: s, and the smallest number
    of units.
    """
    rng, count = np.random.default_rng(derived(seed, "agreement")), len(batches)
    names = [*prompts, *(["gradient"] if count else [])]
    if len(names) < 2:
        return {}
    weights, units = _weights(next(iter(prompts.values())).groups, rng)
    if count:
        others, readers = _weights(batches[0].groups, rng)
        taken = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS)
    found: dict[frozenset[str | int], tuple[float, int]] = {}
    for layer in range(layers):
        drawn = {name: route.weighted(layer, weights) for name, route in prompts.items()}
        if count:
            each = zip(taken.T, batches, strict=True)
            parts = [w[:, None] * batch.weighted(layer, others) for w, batch in each]
            drawn["gradient"] = np.sum(parts, axis=0)
        for a, b in combinations(names, 2):
            least = min([units, readers, count] if "gradient" in (a, b) else [units])
            found[frozenset((a, b, layer))] = (_deviation(drawn[a], drawn[b]), least)
    return found


def _weights(
    groups: Sequence[str], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "r n"], int]:
    """How often each prompt is in every draw of whole groups, and how many groups there are."""
    home = np.array(group_numbers(groups))
    count = int(home.max()) + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS)
    return drawn[:, home].astype(float), count


def _deviation(a: Float[np.ndarray, "r d"], b: Float[np.ndarray, "r d"]) -> float:
    """Standard deviation of artanh cos over the draws in which it is defined; infinite where it
    hardly ever is.
    """
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    defined = np.isfinite(lengths) & (lengths > 0)
    if defined.sum() < DRAWS // 2:
        return math.inf
    cosine = (a[defined] * b[defined]).sum(1) / lengths[defined]
    return float(np.arctanh(np.clip(cosine, -1 + 1e-12, 1 - 1e-12)).std(ddof=1))
