"""Captures by nested spans, read from the T×T Gramian G = U Uᵀ of the T×D updates U.

Projecting Uᵀa on span(u_1..u_k) has squared norm ‖L_k⁻¹ (G a)_{1..k}‖², L_k being the Cholesky
factor of G_{1..k,1..k}. T is hundreds where D is millions, so the vectors are read once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError

#: A vector adds no dimension when what is left of its squared norm, after projecting out the
#: earlier ones, is below this share of it. Updates are float32 (unit round-off 6e-8, squared
#: 4e-15); the margin covers sums over thousands of terms.
DEPENDENT = 1e-11
#: Coordinates in float64 at a time: no such copy of a whole vector ever exists. On an accelerator
#: more, for each of them is a call.
_CHUNK, _LARGE = 1 << 16, 1 << 24
_ROWS = 64  # rows of a symmetric Gramian computed at a time


def to_float64(values: Tensor) -> Tensor:
    """In float64; on the CPU where the device has none (Apple's)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision widened: differences of its numbers are exact in float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def inner(one: Float[Tensor, " D"], other: Float[Tensor, " D"]) -> float:
    """⟨one, other⟩, accumulated in float64.

    >>> inner(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    11.0
    """
    size = _LARGE if one.is_cuda else _CHUNK
    parts = zip(one.split(size), other.split(size), strict=True)
    return float(torch.stack([to_float64(x) @ to_float64(y) for x, y in parts]).sum())


def norm(vector: Float[Tensor, " D"]) -> float:
    """‖vector‖, accumulated in float64."""
    return math.sqrt(inner(vector, vector))


def gramian(
    rows: Float[Tensor, "n D"], others: Float[Tensor, "m D"] | None = None
) -> Float[np.ndarray, "n m"]:
    """Inner products ⟨row_i, other_j⟩, accumulated in float64; `others` defaults to `rows`.

    Raises `LoclinError` for anything but a tensor of rows.

    >>> gramian(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    array([[5., 2.],
           [2., 1.]])
    """
    if not isinstance(rows, Tensor) or rows.ndim != 2:
        found = (
            f"shape {tuple(rows.shape)}" if hasattr(rows, "shape") else f"a {type(rows).__name__}"
        )
        raise LoclinError(
            f"expected an n×D tensor, one vector a row, found {found}: give torch.stack(vectors)"
        )
    columns = len(rows if others is None else others)
    total = to_float64(torch.zeros(len(rows), columns, device=rows.device))
    for start in range(0, rows.shape[1], _CHUNK):
        left = to_float64(rows[:, start : start + _CHUNK])
        if others is not None:
            total.addmm_(left, to_float64(others[:, start : start + _CHUNK].to(rows.device)).T)
            continue
        for i in range(0, len(rows), _ROWS):  # on and above the diagonal
            total[i : i + _ROWS, i:].addmm_(left[i : i + _ROWS], left[i:].T)
    return mirrored(total) if others is None else total.cpu().numpy()


def summed_gramian(parts: Iterable[Sequence[Tensor]]) -> Float[np.ndarray, "n n"]:
    """The Gramian of n vectors that come in parts, each part of all of them at a time: no vector is
    ever end to end.

    >>> summed_gramian([[torch.ones(2), torch.eye(2)[0]], [torch.ones(1, 1), torch.ones(1, 1)]])
    array([[3., 2.],
           [2., 2.]])
    """
    sums, n = list[Tensor](), 0
    for vectors in parts:
        size, n = _LARGE if vectors[0].is_cuda else _CHUNK, len(vectors)
        for rows in zip(*(v.reshape(-1).split(size) for v in vectors), strict=True):
            wide = [to_float64(row) for row in rows]
            products = [x @ y for i, x in enumerate(wide) for y in wide[i:]]
            sums.append(torch.stack(products).to(sums[0].device if sums else wide[0].device))
    upper = torch.zeros(n, n, dtype=torch.float64)
    upper[tuple(torch.triu_indices(n, n))] = torch.stack(sums).sum(0).cpu()
    return mirrored(upper)


def mirrored(upper: Float[Tensor, "n n"]) -> Float[np.ndarray, "n n"]:
    """The symmetric matrix of which the upper triangle is known."""
    known = upper.cpu().numpy()
    return np.asarray(np.triu(known) + np.triu(known, 1).T)


def cosines(
    products: Float[np.ndarray, "n n"], undefined: float = math.nan
) -> Float[np.ndarray, "n n"]:
    """⟨v_i, v_j⟩/‖v_i‖‖v_j‖ from a Gramian; `undefined` where a vector is zero.

    >>> cosines(np.array([[4.0, 1.0], [1.0, 1.0]]))
    array([[1. , 0.5],
           [0.5, 1. ]])
    """
    lengths = np.sqrt(np.diag(products))
    moved = np.outer(lengths, lengths)
    result = np.full(products.shape, undefined)
    return np.asarray(np.divide(products, moved, out=result, where=moved > 0))


def spanned_energy(
    basis: Float[np.ndarray, "k k"], products: Float[np.ndarray, "k m"]
) -> Float[np.ndarray, "k m"]:
    """‖P_{1..i} target‖² in row i − 1: what the span of the first i vectors holds of m targets.

    By the Gramian of the vectors (`basis`) and their inner products with the targets. Vectors that
    add no dimension (`DEPENDENT`) add nothing.
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
    """capture(Q_k, d): share of ‖d‖², d = Σ_{t≤T} u_t, in the span of the first k updates (§2, §3).

    `updates` is their Gramian. Raises `LoclinError` for a matrix that is not square, a k not from 1
    to T, or updates that are all zero. Source: measures §2, §3; arXiv 2606.10929.

    >>> prefix_capture(np.eye(4), [1, 2, 4])
    array([0.25, 0.5 , 1.  ])
    """
    return cross_capture(updates, updates, updates, ks)


def future_capture(updates: Float[np.ndarray, "T T"], ks: Sequence[int]) -> Float[np.ndarray, " n"]:
    """capture(Q_k, f_k), f_k = Σ_{t>k} u_t: what the prefix holds of the way that is left.

    NaN at k = T. Arguments and errors as in `prefix_capture`. Source: measures §3.

    >>> future_capture(np.ones((4, 4)), [1, 4])
    array([ 1., nan])
    """
    return cross_capture(updates, updates, updates, ks, future=True)


def cross_capture(
    basis: Float[np.ndarray, "m m"],
    products: Float[np.ndarray, "m T"],
    updates: Float[np.ndarray, "T T"],
    ks: Sequence[int],
    *,
    future: bool = False,
) -> Float[np.ndarray, " n"]:
    """‖P_k d‖²/‖d‖² of a run's displacement d (or future f_k), P_k the projection on the span of
    the first k of m other vectors (measures §2, §3). Errors as in `prefix_capture`.

    Args:
        basis: Gramian of the other vectors, in order.
        products: their inner products with the run's updates.
        updates: Gramian of the run's updates.
        ks: each from 1 to the smaller of m and T.
        future: of f_k instead of d.

    >>> basis, products = np.eye(1), np.array([[1.0, 0.0]])  # along the first update
    >>> cross_capture(basis, products, np.eye(2), [1])
    array([0.5])
    """
    for own in (basis, updates):
        _check(own, ks)
    weights = np.ones((len(updates), len(ks)))  # column i sums what is held against ks[i]
    if future:
        weights = (np.arange(len(updates))[:, None] >= np.asarray(ks)[None, :]).astype(float)
    longest = max(ks)
    energy = spanned_energy(basis[:longest, :longest], products[:longest] @ weights)
    part = energy[np.asarray(ks) - 1, np.arange(len(ks))]
    whole = (weights * (updates @ weights)).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, np.minimum(part / whole, 1.0), np.nan)


def span_overlap(
    first: Float[np.ndarray, "k1 k1"],
    between: Float[np.ndarray, "k1 k2"],
    second: Float[np.ndarray, "k2 k2"],
) -> float:
    """overlap(Q₁, Q₂) = ‖Q₁ᵀQ₂‖_F² / min(k₁, k₂) of two spans of ranks k₁, k₂ (measures §5).

    Args:
        first, second: Gramian of the vectors of each span, not all zero.
        between: inner products of the first vectors with the second.

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


def _check(updates: np.ndarray, ks: Sequence[int]) -> None:
    if np.ndim(updates) != 2 or len(set(np.shape(updates))) != 1:
        raise LoclinError(
            f"expected a T×T Gramian, found shape {tuple(np.shape(updates))}: give "
            "gramian(updates) instead of the updates"
        )
    if isinstance(ks, int):
        raise LoclinError(f"expected a list of k, found {ks}: give [{ks}]")
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
