"""Inner products of adapter updates ΔW = s·BA from the factors B out×r and A r×in alone.

The same ΔW is reached by (RA, BR⁻¹) for any invertible R, so cosines and captures of the factors
say nothing of their own. Those of ΔW do: ⟨B₁A₁, B₂A₂⟩ = tr[(B₁ᵀB₂)(A₂A₁ᵀ)] (Hu et al. 2021, arXiv
2106.09685, for the form of the update). ΔW is never formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.gramian import at_least_float32, mirrored, to_float64

_COLUMNS = 1024  # factor columns at a time: two 8 MB blocks of products in float64


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRank:
    """n matrices of one adapted weight, matrix i being left_i @ right_i.

    >>> pair = LowRank(left=torch.ones(2, 3, 1), right=torch.ones(2, 1, 5))
    >>> low_rank_gramian([pair])
    array([[15., 15.],
           [15., 15.]])
    """

    left: Float[Tensor, "n out q"]
    right: Float[Tensor, "n q inn"]


def secants(a: Float[Tensor, "t r inn"], b: Float[Tensor, "t out r"], *, scale: float) -> LowRank:
    """The t−1 steps s(B_jA_j − B_{j−1}A_{j−1}) of an adapted weight, as products of rank 2r.

    They are s(δB·A_j + B_{j−1}·δA): the factors are subtracted, never the large products. `scale`
    is s as the adapter applies it: alpha/r, or alpha/√r with rank-stabilised LoRA.
    """
    if len(a) < 2:
        raise LoclinError(
            f"expected factors at 2 points at least, found {len(a)}: record more steps"
        )
    a, b = at_least_float32(a), at_least_float32(b)
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
    """s(dB·A + B·dA): what n directions of the factors do to ΔW at one point, to first order."""
    a, b, da, db = map(at_least_float32, (a, b, da, db))
    n = len(da)
    left = torch.cat([db, b.expand(n, -1, -1)], dim=2) * scale
    return LowRank(left=left, right=torch.cat([a.expand(n, -1, -1), da], dim=1))


def low_rank_gramian(
    first: Sequence[LowRank], second: Sequence[LowRank] | None = None
) -> Float[np.ndarray, "n m"]:
    """Inner products ⟨first_i, second_j⟩ summed over the adapted weights, in float64.

    For one weight, ⟨LR, L′R′⟩ = Σ_{ab} ⟨l_a, l′_b⟩⟨r_a, r′_b⟩ over the q columns of the left and
    rows of the right factors. Each side has one entry per adapted weight, in one order, or
    `LoclinError` is raised; `second` defaults to `first`.
    """
    others = first if second is None else second
    sides = [[(w.left.shape[1], w.right.shape[2]) for w in side] for side in (first, others)]
    if not first or sides[0] != sides[1]:
        raise LoclinError(
            f"expected the same adapted weights on both sides, found shapes {sides[0]} and "
            f"{sides[1]}: give one entry per adapted weight, in one order"
        )
    total = np.zeros((len(first[0].left), len(others[0].left)))
    for x, y in zip(first, others, strict=True):
        total += _products(x, y, same=second is None)
    return total


def _products(x: LowRank, y: LowRank, *, same: bool) -> np.ndarray:
    """The Gramian of one weight, block by block; of the same sides, the upper triangle alone."""
    n, m = len(x.left), len(y.left)
    rows, columns = (max(1, _COLUMNS // w.left.shape[2]) for w in (x, y))
    total = to_float64(torch.zeros(n, m, device=x.left.device))
    for i in range(0, n, rows):
        left, right = _flat(x, i, rows)
        for j in range(i if same else 0, m, columns):
            other_left, other_right = _flat(y, j, columns)
            products = (left @ other_left.T).mul_(right @ other_right.T)
            shape = (-1, x.left.shape[2], len(products[0]) // y.left.shape[2], y.left.shape[2])
            total[i : i + rows, j : j + columns] = products.view(shape).sum((1, 3))
    return mirrored(total) if same else total.cpu().numpy()


def _flat(w: LowRank, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Columns of the left and rows of the right factors of some matrices, one per row."""
    left = to_float64(w.left[start : start + count]).transpose(1, 2)
    return left.flatten(0, 1), to_float64(w.right[start : start + count]).flatten(0, 1)
