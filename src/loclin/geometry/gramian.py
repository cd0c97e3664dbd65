"""Captures by nested spans, read from the T×T Gramian of the vectors instead of the vectors
themselves.

With U the T×D matrix of updates, every capture of a sum of updates by a span of updates depends on
G = U Uᵀ alone: projecting Uᵀa on span(u_1..u_k) has squared norm ‖L_k⁻¹ (G a)_{1..k}‖², L_k being
the Cholesky factor of G_{1..k,1..k}. T is hundreds where D is millions, so the vectors are read
once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError

#: A vector adds no dimension when what is left of its squared norm, after projecting out the
#: earlier ones, is below this share of it. Updates are float32 (unit round-off 6e-8, squared
#: 4e-15); the margin covers sums over thousands of terms.
DEPENDENT = 1e-11

_CHUNK = (
    1 << 16
)  # coordinates converted to float64 at a time, so that no double-precision copy of U ever exists


_ROWS = 64  # rows of a symmetric Gramian computed at a time


def exact(values: Tensor) -> Tensor:
    """In float64; on the CPU where the device has none (Apple's)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def inner(one: Float[Tensor, " D"], other: Float[Tensor, " D"]) -> float:
    """⟨one, other⟩, accumulated in float64.

    >>> inner(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    11.0
    """
    return float(exact(one) @ exact(other))


def gramian(
    rows: Float[Tensor, "n D"], others: Float[Tensor, "m D"] | None = None
) -> Float[np.ndarray, "n m"]:
    """Inner products ⟨row_i, other_j⟩, accumulated in float64 over blocks of coordinates; `others`
    defaults to `rows`.
    """
    same = others is None
    others = rows if others is None else others
    total = exact(torch.zeros(len(rows), len(others), device=rows.device))
    for start in range(0, rows.shape[1], _CHUNK):
        left = exact(rows[:, start : start + _CHUNK])
        if not same:
            total.addmm_(left, exact(others[:, start : start + _CHUNK].to(rows.device)).T)
            continue
        for i in range(
            0, len(rows), _ROWS
        ):  # on and above the diagonal; the rest is the same again
            total[i : i + _ROWS, i:].addmm_(left[i : i + _ROWS], left[i:].T)
    result: np.ndarray = total.cpu().numpy()
    return np.triu(result) + np.triu(result, 1).T if same else result


def spanned_energy(
    basis: Float[np.ndarray, "k k"], products: Float[np.ndarray, "k m"]
) -> Float[np.ndarray, "k m"]:
    """Squared norm of the projection of m targets on each of the nested spans of the first 1..k
    vectors.

    Args:
        basis: Gramian of the k vectors that span.
        products: inner products of those vectors with the m targets.

    Returns:
        Row i: ‖P_{1..i+1} target‖² for each target. Vectors that add no dimension (`DEPENDENT`) add
            nothing.
    """
    left, targets = basis.copy(), products.copy()
    solved = np.zeros(products.shape)
    for i in range(len(basis)):  # right-looking Cholesky that leaves out dependent vectors
        if left[i, i] > DEPENDENT * basis[i, i]:
            root = np.sqrt(left[i, i])
            column, solved[i] = left[i] / root, targets[i] / root
            left -= np.outer(column, column)
            targets -= np.outer(column, solved[i])
    energy: np.ndarray = np.cumsum(solved**2, axis=0)
    return energy


def prefix_capture(updates: Float[np.ndarray, "T T"], ks: Sequence[int]) -> Float[np.ndarray, " n"]:
    """capture(Q_k, d): share of ‖d‖², d = Σ_{t≤T} u_t, inside the span of the first k updates
    (measures §2, §3).

    Args:
        updates: Gramian of the T updates.
        ks: prefix lengths, each from 1 to T.

    Raises:
        LoclinError: a k above T or below 1, or a displacement of zero length.

    >>> prefix_capture(np.eye(4), [1, 2, 4])
    array([0.25, 0.5 , 1.  ])
    """
    _check(updates, ks)
    return _shares(updates, np.ones((len(updates), len(ks))), ks)


def future_capture(updates: Float[np.ndarray, "T T"], ks: Sequence[int]) -> Float[np.ndarray, " n"]:
    """capture(Q_k, f_k), f_k = Σ_{t>k} u_t: what the prefix says about the part of the way it did
    not take itself.

    NaN at k = T, where no future is left. Arguments and errors as in `prefix_capture`.

    >>> future_capture(np.ones((4, 4)), [1, 4])
    array([ 1., nan])
    """
    _check(updates, ks)
    later = np.arange(len(updates))[:, None] >= np.asarray(ks)[None, :]
    return _shares(updates, later.astype(float), ks)


def cross_capture(
    basis: Float[np.ndarray, "m m"],
    products: Float[np.ndarray, "m T"],
    updates: Float[np.ndarray, "T T"],
    ks: Sequence[int],
    *,
    future: bool = False,
) -> Float[np.ndarray, " n"]:
    """capture of a run's displacement (or of its future after k) by the first k vectors of another
    family.

    Args:
        basis: Gramian of the m other vectors, in order.
        products: their inner products with the run's updates.
        updates: Gramian of the run's updates.
        ks: how many of the other vectors span.
        future: hold the span against f_k instead of d.

    Raises:
        LoclinError: a k above m or T.
    """
    _check(updates, ks)
    _check(basis, ks)
    steps = np.arange(len(updates))[:, None]
    weights = (
        (steps >= np.asarray(ks)[None, :]).astype(float)
        if future
        else np.ones((len(updates), len(ks)))
    )
    energy = spanned_energy(basis[: max(ks), : max(ks)], products[: max(ks)] @ weights)
    return _ratio(
        energy[np.asarray(ks) - 1, np.arange(len(ks))], (weights * (updates @ weights)).sum(0)
    )


def span_overlap(
    first: Float[np.ndarray, "k1 k1"],
    between: Float[np.ndarray, "k1 k2"],
    second: Float[np.ndarray, "k2 k2"],
) -> float:
    """overlap(Q₁, Q₂) = ‖Q₁ᵀQ₂‖_F² / min(k₁, k₂) of two spans given by their vectors' inner
    products (measures §5).

    An orthonormal basis of the second span, in coefficients of its vectors, is V Λ^{-1/2} from the
    eigenvalues of its Gramian (`DEPENDENT` ones left out); what the first span holds of each basis
    vector is `spanned_energy`. k₁, k₂ are the ranks.

    Args:
        first, second: Gramian of the vectors of each span.
        between: inner products of the first vectors with the second.

    Raises:
        LoclinError: vectors that are all zero.

    >>> span_overlap(np.eye(2), np.array([[1.0], [0.0]]), np.eye(1))
    1.0
    """
    ranks, coefficients = [], np.empty(0)
    for products in (first, second):
        lengths = np.sqrt(np.diag(products))
        scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        energy, vectors = np.linalg.eigh(products * np.outer(scale, scale))
        kept = energy > DEPENDENT * max(energy[-1], 0.0)
        coefficients = scale[:, None] * vectors[:, kept] / np.sqrt(energy[kept])
        ranks.append(int(kept.sum()))
    if not min(ranks):
        raise LoclinError("expected vectors that are not all zero, found zeros: they span nothing")
    return min(float(spanned_energy(first, between @ coefficients)[-1].sum()) / min(ranks), 1.0)


def _shares(updates: np.ndarray, weights: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """capture of Σ_t weights[t, i] u_t by the first ks[i] updates, for each i."""
    longest = max(ks)
    energy = spanned_energy(updates[:longest, :longest], updates[:longest] @ weights)
    return _ratio(
        energy[np.asarray(ks) - 1, np.arange(len(ks))], (weights * (updates @ weights)).sum(0)
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, np.minimum(part / whole, 1.0), np.nan)


def _check(updates: np.ndarray, ks: Sequence[int]) -> None:
    if np.ndim(updates) != 2 or len(set(np.shape(updates))) != 1:
        raise LoclinError(
            f"expected a T×T Gramian, found shape {tuple(np.shape(updates))}: give "
            "gramian(updates) instead of the updates"
        )
    if not ks or min(ks) < 1 or max(ks) > len(updates):
        raise LoclinError(
            f"expected k from 1 to T = {len(updates)}, found {list(ks)}: choose smaller k or "
            "record more steps"
        )
    if not updates.any():
        raise LoclinError(
            "expected updates that move, found a displacement of zero length: raise the learning "
            "rate"
        )
