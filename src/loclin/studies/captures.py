"""Rows of one recovery's captures: by its prefix, by other families, and under the nulls (measures
§2-4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin import theory
from loclin.geometry.gramian import cross_capture, future_capture, prefix_capture
from loclin.run.rows import Row, finite
from loclin.stats import permutation_p
from loclin.studies.names import DRIFT, FROM_REST, HEAVY_BALL, OWN_NORMS, SHUFFLED, WHITE

Gramian = Float[np.ndarray, "T T"]
#: torch's default β₁: the memory of AdamW's steps, and β of the heavy-ball null.
ADAM_MOMENTUM = 0.9
CAPTURES = {"prefix_capture": prefix_capture, "future_capture": future_capture}


def step_response(optimiser: str, steps: int) -> Float[np.ndarray, "T T"] | None:
    """What a study's optimiser puts of each gradient's noise into its steps; None for plain SGD."""
    return theory.impulse_response(range(steps + 1), ADAM_MOMENTUM) if optimiser != "sgd" else None


def prefix_rows(
    updates: Gramian,
    ks: tuple[int, ...],
    dimension: int,
    shuffles: int,
    context: Mapping[str, Any],
    *,
    seed: int,
    response: Float[np.ndarray, "T n"] | None = None,
) -> Iterator[Row]:
    """Prefix and future-only capture at every k, then every null as rows of its own.

    The null column holds white steps with the run's own norms for d, and the drift through the
    optimiser for the future. p is against the run's own updates in shuffled order.

    Args:
        updates: Gramian of the T updates.
        ks: prefix lengths, 1 to T.
        dimension: D.
        shuffles: orders drawn for that null.
        response: of the optimiser (`theory.impulse_response`); None where it has no memory, or
            where it is not known.
    """
    steps = len(updates)
    nulls = _null_curves(updates, ks, dimension, response)
    orders = [np.random.default_rng([seed, i]).permutation(steps) for i in range(shuffles)]
    shuffled = [updates[np.ix_(order, order)] for order in orders]
    for (quantity, capture), null in zip(CAPTURES.items(), (OWN_NORMS, DRIFT), strict=True):
        draws = np.array([capture(g, ks) for g in shuffled])
        nulls[quantity, SHUFFLED] = draws.mean(0)
        for i, (k, value) in enumerate(zip(ks, capture(updates, ks), strict=True)):
            if not np.isnan(value):
                p = None if k == steps else permutation_p(value, draws[:, i])
                expected, here = nulls[quantity, null][i], {**context, "k": k}
                yield Row(quantity=quantity, value=value, null=expected, p=p, context=here)
    for (quantity, null), curve in nulls.items():
        for k, value in zip(ks, curve, strict=True):
            if not np.isnan(value):
                here = {**context, "k": k, "null": null}
                yield Row(quantity=f"{quantity}_null", value=value, context=here)
    s = finite(theory.fit_drift(updates, response))
    yield Row(quantity="drift_s", value=s, context=dict(context))


def _null_curves(
    updates: Gramian, ks: tuple[int, ...], dimension: int, response: np.ndarray | None
) -> dict[tuple[str, str], np.ndarray]:
    steps = len(updates)
    curves = {
        ("prefix_capture", WHITE): theory.white_capture(np.ones(steps), ks),
        ("prefix_capture", OWN_NORMS): theory.white_capture(np.sqrt(np.diag(updates)), ks),
        ("prefix_capture", HEAVY_BALL): theory.heavy_ball_capture(steps, ADAM_MOMENTUM, ks),
    }
    for null in (DRIFT, FROM_REST)[: 1 if response is None else 2]:
        expected = theory.drift_gramian(updates, response, at_rest=null == FROM_REST)
        for quantity, capture in CAPTURES.items():
            held = capture(expected, ks)
            curves[quantity, null] = held + (1 - held) * np.asarray(ks) / dimension
    return curves


def family_rows(
    basis: Float[np.ndarray, "m m"],
    products: Float[np.ndarray, "m T"],
    updates: Gramian,
    ks: tuple[int, ...],
    dimension: int,
    context: Mapping[str, Any],
) -> Iterator[Row]:
    """Captures of d and of f_k by the first k directions of another family, for every k it has.

    The null column is k/D, the mean for a random k-subspace; p is the tail of its Beta law
    (measures §2).

    Args:
        basis: Gramian of the family's directions.
        products: inner products of the directions with the updates.
        updates: Gramian of the updates.
        dimension: D.
    """
    fitting = [k for k in ks if k <= len(basis)]
    for of in ("displacement", "future"):
        values = cross_capture(basis, products, updates, fitting, future=of == "future")
        for k, value in zip(fitting, values, strict=True):
            if not np.isnan(value):
                p = float(theory.random_capture(k, dimension).sf(value))
                here = {**context, "k": k, "of": of}
                chance = k / dimension
                yield Row(quantity="basis_capture", value=value, null=chance, p=p, context=here)
