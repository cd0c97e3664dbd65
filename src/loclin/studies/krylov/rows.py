"""Rows of one recovery held against bases, and of the curvature at θ_D (measures §2, §8, §9)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.geometry.gramian import future_capture, prefix_capture, spanned_energy
from loclin.geometry.krylov import Krylov
from loclin.record import Row
from loclin.stats import over_runs
from loclin.studies.krylov.curved import Curved
from loclin.theory import krylov_converged_bound, krylov_stopped_bound

Gramian = Float[np.ndarray, "T T"]
# of the largest eigenvalue: a Ritz value below nought by less than this is nought to float32
ROUNDED = 1e-5


def prefix_rows(updates: Gramian, ks: tuple[int, ...], context: Mapping[str, Any]) -> Iterator[Row]:
    """Captures of d and of f_k by the first k updates. No null: a prefix is a part of d (measures
    §2).
    """
    for of, values in (
        ("displacement", prefix_capture(updates, ks)),
        ("future", future_capture(updates, ks)),
    ):
        for k, value in zip(ks, values, strict=True):
            if not np.isnan(value):
                yield Row(
                    quantity="basis_capture",
                    value=float(value),
                    context={**context, "k": k, "of": of},
                )


def captures_until(
    basis: Float[np.ndarray, "k k"],
    products: Float[np.ndarray, "k T"],
    updates: Gramian,
    times: Sequence[int],
) -> Float[np.ndarray, " n"]:
    """capture of d_t = Σ_{s≤t} u_s by the span of k directions, for every t; NaN where the way has
    no length.

    >>> captures_until(np.eye(1), np.array([[1.0, 0.0]]), np.eye(2), [1, 2])
    array([1. , 0.5])
    """
    taken = (np.arange(len(updates))[:, None] < np.asarray(times)[None, :]).astype(float)
    inside, whole = spanned_energy(basis, products @ taken)[-1], (taken * (updates @ taken)).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, np.minimum(inside / whole, 1.0), np.nan)


def time_rows(
    basis: Float[np.ndarray, "k k"],
    products: Float[np.ndarray, "k T"],
    updates: Gramian,
    times: Sequence[int],
    context: Mapping[str, Any],
) -> Iterator[Row]:
    """`captures_until` as rows."""
    for t, value in zip(times, captures_until(basis, products, updates, times), strict=True):
        yield Row(
            quantity="capture_until",
            value=None if np.isnan(value) else float(value),
            context={**context, "t": t},
        )


def descent_rows(
    krylov: Krylov,
    products: Float[np.ndarray, "k T"],
    updates: Gramian,
    rate: float,
    times: Sequence[int],
    context: Mapping[str, Any],
) -> Iterator[Row]:
    """Cosine of d_t with the d_t of gradient descent on the quadratic model, and ‖d_t‖ over that
    one's, while t ≤ k.

    Args:
        krylov: of θ_D, its basis orthonormal.
        products: inner products of its basis with the updates, in the trained coordinates.
        updates: Gramian of the updates, there too.
        rate: η.
        times: every t; those beyond the space are left out.
        context: of the rows.
    """
    within = [t for t in times if t <= krylov.k]
    if not within:
        return
    for t, model in zip(within, krylov.descent(rate, within), strict=True):
        length, expected = math.sqrt(updates[:t, :t].sum()), float(np.linalg.norm(model))
        cosine = (
            float(model @ products[: krylov.k, :t].sum(1)) / (length * expected)
            if length * expected > 0
            else None
        )
        yield Row(quantity="descent_cosine", value=cosine, context={**context, "t": t})
        yield Row(
            quantity="descent_length",
            value=length / expected if expected else None,
            null=1.0,
            context={**context, "t": t},
        )


def bound_rows(
    krylov: Krylov,
    captured: Float[np.ndarray, " n"],
    updates: Gramian,
    rate: float,
    k: int,
    times: Sequence[int],
    context: Mapping[str, Any],
) -> Iterator[Row]:
    """What the Krylov space leaves of d_t, ‖(I−P)d_t‖/‖d_t‖, and the bound of measures §9 on it,
    which may lie above 1.

    Args:
        krylov: of θ_D.
        captured: capture of d_t by its first k dimensions, in the trained coordinates.
        updates: Gramian of the updates, there too.
        rate: η.
        k: of the space.
        times: every t.
        context: of the rows.
    """
    for t, capture in zip(times, captured, strict=True):
        here, length = {**context, "k": k, "t": t}, math.sqrt(max(updates[:t, :t].sum(), 0.0))
        left = None if np.isnan(capture) else math.sqrt(max(1 - capture, 0.0))
        bound = krylov_stopped_bound(rate, t, krylov.norm, k) / length if length else None
        yield Row(quantity="left_over", value=left, context=here)
        yield Row(quantity="left_over_bound", value=bound, context=here)


def curvature_rows(found: Curved, k: int, context: Mapping[str, Any]) -> Iterator[Row]:
    """Largest eigenvalues, Ritz values with their residual bounds, trace and Frobenius norm; the
    bound for converged descent.

    That bound needs H positive definite; with the lowest Ritz value for its smallest eigenvalue it
    is the least that it can be, and it is not defined where a Ritz value is negative.

    The intervals of trace and norm are over probes; no other row of a single run has one.
    """
    values, bounds = found.krylov.ritz()
    yield Row(quantity="gradient_norm", value=found.krylov.norm, context=dict(context))
    yield Row(quantity="krylov_dimension", value=float(found.krylov.k), context=dict(context))
    for i, value in enumerate(found.eigenvalues[:k], 1):
        yield Row(quantity="eigenvalue", value=float(value), context={**context, "i": i})
    for i, (value, bound) in enumerate(zip(values, bounds, strict=True), 1):
        yield Row(quantity="ritz_value", value=float(value), context={**context, "i": i})
        yield Row(quantity="ritz_bound", value=float(bound), context={**context, "i": i})
    yield Row(quantity="lowest_ritz_value", value=float(values[-1]), context=dict(context))
    largest, lowest = float(found.eigenvalues[0]), float(values[-1])
    converged = krylov_converged_bound(largest / lowest, k) if 0 < lowest <= largest else None
    yield Row(quantity="converged_bound", value=converged, context={**context, "k": k})
    trace, square = over_runs(found.probes.forms), over_runs(found.probes.squares)
    yield Row(
        quantity="trace", value=trace.value, low=trace.low, high=trace.high, context=dict(context)
    )
    low, middle, high = (math.sqrt(max(v, 0.0)) for v in (square.low, square.value, square.high))
    yield Row(quantity="frobenius_norm", value=middle, low=low, high=high, context=dict(context))


def premise_row(found: Curved, rate: float, context: Mapping[str, Any]) -> Row:
    """1 where the premise of the bound holds as far as is known, 0 where it is known to fail:
    spec(H) within [0, 2/η].

    What is known are the largest eigenvalue and the Ritz values: of the spectrum, what the gradient
    sees of it.
    """
    largest, lowest = float(found.eigenvalues[0]), float(found.krylov.ritz()[0][-1])
    holds = lowest >= -ROUNDED * abs(largest) and largest <= 2 / rate
    return Row(quantity="bound_premise", value=float(holds), context=dict(context))
