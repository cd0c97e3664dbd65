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
from loclin.run.rows import Row
from loclin.stats import permutation_p
from loclin.studies.names import DRIFT, HEAVY_BALL, OWN_NORMS, SHUFFLED, WHITE

Gramian = Float[np.ndarray, "T T"]
ADAM_MOMENTUM = 0.9  # torch's default β₁, the β of the heavy-ball null


def prefix_rows(
    updates: Gramian,
    ks: tuple[int, ...],
    dimension: int,
    shuffles: int,
    context: Mapping[str, Any],
    *,
    seed: int,
) -> Iterator[Row]:
    """Prefix and future-only capture at every k, then every null as rows of its own.

    The null column holds white steps with the run's own norms for d, and the fitted stationary
    drift for the future. p is against the run's own updates in shuffled order.

    Args:
        updates: Gramian of the T updates.
        ks: prefix lengths, 1 to T.
        dimension: D.
        shuffles: orders drawn for that null.
        context: of the rows.
        seed: of the orders.
    """
    steps, s = len(updates), theory.fit_drift(updates)
    nulls = _null_curves(updates, ks, dimension, s)
    orders = [np.random.default_rng([seed, i]).permutation(steps) for i in range(shuffles)]
    shuffled = [updates[np.ix_(order, order)] for order in orders]
    for quantity, capture, null in (
        ("prefix_capture", prefix_capture, OWN_NORMS),
        ("future_capture", future_capture, DRIFT),
    ):
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
    yield Row(quantity="drift_s", value=s if np.isfinite(s) else None, context=dict(context))


def _null_curves(
    updates: Gramian, ks: tuple[int, ...], dimension: int, s: float
) -> dict[tuple[str, str], np.ndarray]:
    steps, future = len(updates), np.asarray(ks) < len(updates)
    drift = theory.drift_future_capture(steps, ks, s, dimension)
    return {
        ("prefix_capture", WHITE): theory.white_capture(np.ones(steps), ks),
        ("prefix_capture", OWN_NORMS): theory.white_capture(np.sqrt(np.diag(updates)), ks),
        ("prefix_capture", HEAVY_BALL): theory.heavy_ball_capture(steps, ADAM_MOMENTUM, ks),
        ("prefix_capture", DRIFT): theory.drift_capture(steps, ks, s),
        ("future_capture", DRIFT): np.where(future, drift, np.nan),
    }


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
        ks: sizes to report.
        dimension: D.
        context: of the rows; it names the basis.
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
