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
from loclin.record import Row
from loclin.stats import permutation_p

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
    """Prefix and future-only capture at every k, each with its nulls as rows of their own.

    The null column of `prefix_capture` is white steps with the run's own norms; that of
    `future_capture` is the fitted stationary drift. Its p-value holds it against the run's own
    updates in shuffled order.
    """
    nulls = _null_curves(updates, ks, dimension)
    shuffled = [_shuffled(updates, np.random.default_rng([seed, i])) for i in range(shuffles)]
    shuffled_prefix = np.array([prefix_capture(g, ks) for g in shuffled])
    shuffled_future = np.array([future_capture(g, ks) for g in shuffled])
    nulls["prefix_capture", "shuffled order"] = shuffled_prefix.mean(0)
    nulls["future_capture", "shuffled order"] = shuffled_future.mean(0)
    measured = {
        "prefix_capture": (prefix_capture(updates, ks), "white, own norms", shuffled_prefix),
        "future_capture": (future_capture(updates, ks), "stationary drift", shuffled_future),
    }
    for quantity, (values, null, draws) in measured.items():
        for i, k in enumerate(ks):
            if np.isnan(values[i]):
                continue
            whole = k == len(updates)
            p = None if whole else permutation_p(values[i], draws[:, i])
            here = {**context, "k": k}
            yield Row(
                quantity=quantity, value=values[i], null=nulls[quantity, null][i], p=p, context=here
            )
    for (quantity, null), curve in nulls.items():
        for k, value in zip(ks, curve, strict=True):
            if not np.isnan(value):
                yield Row(
                    quantity=f"{quantity}_null",
                    value=value,
                    context={**context, "k": k, "null": null},
                )
    s = theory.fit_drift(updates)
    yield Row(quantity="drift_s", value=s if np.isfinite(s) else None, context=dict(context))


def _null_curves(
    updates: Gramian, ks: tuple[int, ...], dimension: int
) -> dict[tuple[str, str], np.ndarray]:
    steps, s = len(updates), theory.fit_drift(updates)
    return {
        ("prefix_capture", "white"): theory.white_capture(np.ones(steps), ks),
        ("prefix_capture", "white, own norms"): theory.white_capture(np.sqrt(np.diag(updates)), ks),
        ("prefix_capture", "heavy ball"): theory.heavy_ball_capture(steps, ADAM_MOMENTUM, ks),
        ("prefix_capture", "stationary drift"): theory.drift_capture(steps, ks, s),
        ("future_capture", "stationary drift"): np.where(
            np.asarray(ks) < steps, theory.drift_future_capture(steps, ks, s, dimension), np.nan
        ),
    }


def _shuffled(updates: Gramian, rng: np.random.Generator) -> Gramian:
    order = rng.permutation(len(updates))
    result: np.ndarray = updates[np.ix_(order, order)]
    return result


def family_rows(
    basis: Float[np.ndarray, "m m"],
    products: Float[np.ndarray, "m T"],
    updates: Gramian,
    ks: tuple[int, ...],
    dimension: int,
    context: Mapping[str, Any],
) -> Iterator[Row]:
    """Captures of d and of f_k by the first k directions of another family, for every k that the
    family has.

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
    for target in ("displacement", "future"):
        values = cross_capture(basis, products, updates, fitting, future=target == "future")
        for k, value in zip(fitting, values, strict=True):
            if not np.isnan(value):
                law = theory.random_capture(k, dimension)
                here = {**context, "k": k, "of": target}
                yield Row(
                    quantity="basis_capture",
                    value=value,
                    null=k / dimension,
                    p=float(law.sf(value)),
                    context=here,
                )
