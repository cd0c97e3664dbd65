"""Inner products of adapter updates in weight space, from the factors alone: ΔW is never formed.

An adapted weight is W + s·BA, with B out×r and A r×in. A step in the factors is no vector of its
own: the same weights are reached by (RA, BR⁻¹) for any invertible R, and cosines or captures of (A,
B) change with R. Those of ΔW do not: ⟨B₁A₁, B₂A₂⟩ = tr[(B₁ᵀB₂)(A₂A₁ᵀ)] (traps.md; Hu et al. 2021,
"LoRA", for the form of the update).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.gramian import exact

_COLUMNS = (
    1024  # factor columns held against each other at a time: two 8 MB blocks of products in float64
)


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRank:
    """n matrices of one adapted weight, matrix i being left_i @ right_i.

    Attributes:
        left: the factors to the left.
        right: the factors to the right.

    >>> pair = LowRank(left=torch.ones(2, 3, 1), right=torch.ones(2, 1, 5))
    >>> low_rank_gramian([pair])
    array([[15., 15.],
           [15., 15.]])
    """

    left: Float[Tensor, "n out q"]
    right: Float[Tensor, "n q inn"]


def secants(a: Float[Tensor, "t r inn"], b: Float[Tensor, "t out r"], *, scale: float) -> LowRank:
    """The t−1 steps s(B_jA_j − B_{j−1}A_{j−1}) of an adapted weight, exactly, as products of rank
    2r.

    B_jA_j − B_{j−1}A_{j−1} = δB·A_j + B_{j−1}·δA: the factors are subtracted, never the large
    products.

    Args:
        a, b: the factors at t points, in order.
        scale: s, as the adapter applies it (alpha/r, or alpha/√r with rank-stabilised LoRA).

    Raises:
        LoclinError: fewer than two points.
    """
    if len(a) < 2:
        raise LoclinError(
            f"expected factors at 2 points at least, found {len(a)}: record more steps"
        )
    a, b = _precise(a), _precise(b)
    left = torch.cat([b.diff(dim=0), b[:-1]], dim=2) * scale
    return LowRank(left=left, right=torch.cat([a[1:], a.diff(dim=0)], dim=1))


def tangents(
    a: Float[Tensor, "r inn"],
    b: Float[Tensor, "out r"],
    da: Float[Tensor, "n r inn"],
    db: Float[Tensor, "n out r"],
    *,
    scale: float,
) -> LowRank:
    """The differentials s(dB·A + B·dA) of an adapted weight at one point: what directions of the
    factors do to ΔW.

    Args:
        a, b: the factors at the point.
        da, db: n directions in the factors, such as gradients.
        scale: s, as the adapter applies it.
    """
    a, b, da, db = _precise(a), _precise(b), _precise(da), _precise(db)
    n = len(da)
    left = torch.cat([db, b.expand(n, -1, -1)], dim=2) * scale
    return LowRank(left=left, right=torch.cat([a.expand(n, -1, -1), da], dim=1))


def low_rank_gramian(
    first: Sequence[LowRank], second: Sequence[LowRank] | None = None
) -> Float[np.ndarray, "n m"]:
    """Inner products ⟨first_i, second_j⟩ of matrices summed over the adapted weights; `second`
    defaults to `first`.

    For one weight, ⟨LR, L′R′⟩ = Σ_{ab} ⟨l_a, l′_b⟩⟨r_a, r′_b⟩ over the q columns of the left and
    rows of the right factors: products of all columns with all columns, multiplied elementwise,
    summed over q×q blocks, in float64.

    Args:
        first: one entry per adapted weight, n matrices each.
        second: the same weights in the same order, m matrices each.

    Raises:
        LoclinError: no weights, or other weights on the two sides.
    """
    others = first if second is None else second
    sides = [[(w.left.shape[1], w.right.shape[2]) for w in side] for side in (first, others)]
    if not first or sides[0] != sides[1]:
        raise LoclinError(
            f"expected the same adapted weights on both sides, found shapes {sides[0]} and "
            f"{sides[1]}: "
            "give one entry per adapted weight, in one order"
        )
    total = np.zeros((len(first[0].left), len(others[0].left)))
    for x, y in zip(first, others, strict=True):
        total += _products(x, y, same=second is None)
    return total


def _products(x: LowRank, y: LowRank, *, same: bool) -> np.ndarray:
    """The Gramian of one weight, block by block; the upper triangle alone where both sides are the
    same.
    """
    n, m = len(x.left), len(y.left)
    rows, columns = (max(1, _COLUMNS // w.left.shape[2]) for w in (x, y))
    total = exact(torch.zeros(n, m, device=x.left.device))
    for i in range(0, n, rows):
        left, right = _flat(x, i, rows)
        for j in range(i if same else 0, m, columns):
            other_left, other_right = _flat(y, j, columns)
            products = (left @ other_left.T).mul_(right @ other_right.T)
            shape = (-1, x.left.shape[2], len(products[0]) // y.left.shape[2], y.left.shape[2])
            total[i : i + rows, j : j + columns] = products.view(shape).sum((1, 3))
    result: np.ndarray = total.cpu().numpy()
    return np.triu(result) + np.triu(result, 1).T if same else result


def _flat(w: LowRank, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Columns of the left and rows of the right factors of some matrices, one per row, in float64."""
    left = exact(w.left[start : start + count]).transpose(1, 2)
    return left.flatten(0, 1), exact(w.right[start : start + count]).flatten(0, 1)


def _precise(values: Tensor) -> Tensor:
    """At least float32: differences of bfloat16 factors are exact there."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
