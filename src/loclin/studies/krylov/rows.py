"""Rows of one recovery held against bases, and of the curvature at θ_D (measures §2, §8, §9)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.geometry.gramian import future_capture, prefix_capture, spanned_energy
from loclin.geometry.krylov import Krylov
from loclin.run.rows import Row, finite
from loclin.stats import over_runs
from loclin.studies.krylov.curved import Curved
from loclin.studies.krylov.names import EIGENVECTORS, KRYLOV
from loclin.studies.names import MINIBATCH, PREFIX
from loclin.theory import krylov_converged_bound, krylov_stopped_bound

Gramian = Float[np.ndarray, "T T"]
#: Of the largest eigenvalue: a Ritz value below zero by less than this is zero to float32.
ROUNDED = 1e-5


def prefix_capture_rows(
    updates: Gramian, ks: tuple[int, ...], context: Mapping[str, Any]
) -> Iterator[Row]:
    """Captures of d and of f_k by the first k updates. No null: a prefix is a part of d (measures
    §2).
    """
    for of, capture in (("displacement", prefix_capture), ("future", future_capture)):
        for k, value in zip(ks, capture(updates, ks), strict=True):
            if not np.isnan(value):
                here = {**context, "k": k, "of": of}
                yield Row(quantity="basis_capture", value=float(value), context=here)


def excess_rows(
    rows: Sequence[Row], k: int, context: Mapping[str, Any], space: str
) -> Iterator[Row]:
    """What the Krylov space holds of d less what as many dimensions of other bases hold."""
    where = {"k": k, "of": "displacement", "space": space}.items()
    of = [r for r in rows if r.quantity == "basis_capture" and where <= r.context.items()]
    held = {r.context["basis"]: r.value for r in of if r.value is not None}
    for name in (EIGENVECTORS, MINIBATCH, PREFIX):
        here = {**context, "space": space, "k": k, "over": name}
        yield Row(quantity="capture_excess", value=held[KRYLOV] - held[name], context=here)


def captures_until(
    basis: Float[np.ndarray, "k k"],
    products: Float[np.ndarray, "k T"],
    updates: Gramian,
    times: Sequence[int],
) -> Float[np.ndarray, " n"]:
    """capture of d_t = Σ_{s≤t} u_s by the span of k directions, for every t; NaN where d_t is zero.

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
        yield Row(quantity="capture_until", value=finite(value), context={**context, "t": t})


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
    """
    within = [t for t in times if t <= krylov.k]
    for t, model in zip(within, krylov.descent(rate, within) if within else (), strict=True):
        here, expected = {**context, "t": t}, float(np.linalg.norm(model))
        length, along = math.sqrt(updates[:t, :t].sum()), products[: krylov.k, :t].sum(1)
        both = length * expected
        cosine = float(model @ along) / both if both > 0 else None
        ratio = length / expected if expected else None
        yield Row(quantity="descent_cosine", value=cosine, context=here)
        yield Row(quantity="descent_length", value=ratio, null=1.0, context=here)


def bound_rows(
    krylov: Krylov,
    captured: Float[np.ndarray, " n"],
    updates: Gramian,
    rate: float,
    k: int,
    times: Sequence[int],
    context: Mapping[str, Any],
) -> Iterator[Row]:
    """What the first k dimensions leave of d_t, ‖(I−P)d_t‖/‖d_t‖, and the bound of measures §9 on
    it, which may lie above 1.

    Args: as of `descent_rows`; `captured` is what the k dimensions hold of every d_t.
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

    That bound needs H positive definite: with the lowest Ritz value for its smallest eigenvalue it
    is the least that it can be, and it is not defined where a Ritz value is negative. The intervals
    of trace and norm are over probes.
    """
    here = dict(context)
    values, bounds = found.krylov.ritz()
    largest, lowest = float(found.eigenvalues[0]), float(values[-1])
    yield Row(quantity="gradient_norm", value=found.krylov.norm, context=here)
    yield Row(quantity="krylov_dimension", value=float(found.krylov.k), context=here)
    for i, value in enumerate(found.eigenvalues[:k], 1):
        yield Row(quantity="eigenvalue", value=float(value), context={**here, "i": i})
    for i, (value, bound) in enumerate(zip(values, bounds, strict=True), 1):
        yield Row(quantity="ritz_value", value=float(value), context={**here, "i": i})
        yield Row(quantity="ritz_bound", value=float(bound), context={**here, "i": i})
    yield Row(quantity="lowest_ritz_value", value=lowest, context=here)
    converged = krylov_converged_bound(largest / lowest, k) if 0 < lowest <= largest else None
    yield Row(quantity="converged_bound", value=converged, context={**here, "k": k})
    e, square = over_runs(found.probes.forms), over_runs(found.probes.squares)
    yield Row(quantity="trace", value=e.value, low=e.low, high=e.high, context=here)
    low, middle, high = (math.sqrt(max(v, 0.0)) for v in (square.low, square.value, square.high))
    yield Row(quantity="frobenius_norm", value=middle, low=low, high=high, context=here)


def premise_row(found: Curved, rate: float, context: Mapping[str, Any]) -> Row:
    """1 where spec(H) lies within [0, 2/η] as far as is known, the premise of the bound, else 0.

    What is known are the largest eigenvalue and the Ritz values: of the spectrum, what the gradient
    sees of it.
    """
    largest, lowest = float(found.eigenvalues[0]), float(found.krylov.ritz()[0][-1])
    holds = lowest >= -ROUNDED * abs(largest) and largest <= 2 / rate
    return Row(quantity="bound_premise", value=float(holds), context=dict(context))
