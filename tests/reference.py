"""Slow, dense, obvious twins of the fast paths."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import mpmath
import numpy as np
import torch
from torch import Tensor, nn

from loclin.parameters import ParameterSpace, SummedLoss

T = TypeVar("T")


def dense_capture(vectors: np.ndarray, target: np.ndarray) -> float:
    """Share of ‖target‖² in the row span of `vectors`, by the SVD of the whole matrix."""
    _, s, vt = np.linalg.svd(vectors.astype(np.float64), full_matrices=False)
    basis = vt[s > 1e-5 * s[0]]
    return float(np.sum((basis @ target) ** 2) / np.sum(target.astype(np.float64) ** 2))


def dense_ranks(vectors: np.ndarray) -> tuple[float, float, float]:
    """Stable, participation and entropy rank from the singular values of the whole matrix."""
    p = np.linalg.svd(vectors.astype(np.float64), compute_uv=False) ** 2
    p /= p.sum()
    return 1 / p.max(), 1 / np.sum(p**2), float(np.exp(-np.sum(p[p > 0] * np.log(p[p > 0]))))


def dense_hessian(module: nn.Module, loss: Tensor) -> Tensor:
    """The whole D×D Hessian, one row of second derivatives at a time."""
    parameters = list(module.parameters())
    first = torch.autograd.grad(loss, parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in first])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in flat]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


def slope_product(
    space: ParameterSpace, loss: SummedLoss[T], batches: Sequence[T], vector: Tensor
) -> Tensor:
    """Hv of the mean loss by differentiating the number gᵀv, batch by batch."""
    total, count = torch.zeros_like(vector), 0
    for batch in batches:
        value, items = loss(batch)
        first = torch.autograd.grad(value, space.parameters, create_graph=True)
        pieces = space.by_tensor(vector).values()
        slope = torch.stack([(g * v).sum() for g, v in zip(first, pieces, strict=True)]).sum()
        total += space.flat(torch.autograd.grad(slope, space.parameters))
        count += items
    return total / count


def dense_krylov(hessian: np.ndarray, start: np.ndarray, k: int) -> np.ndarray:
    """Orthonormal rows that span g, Hg, .., H^{k−1}g, by QR of those vectors themselves in 60-digit
    arithmetic.
    """
    with mpmath.workdps(60):
        matrix, column, rows = mpmath.matrix(hessian.tolist()), mpmath.matrix(start.tolist()), []
        for _ in range(k):
            left = column.copy()
            for row in rows:
                left -= row * mpmath.fdot(row, left)
            rows.append(left / mpmath.norm(left))
            column = matrix * column
        return np.array([[float(x) for x in row] for row in rows])


def drift_capture(steps: int, ks: Sequence[int], s: float) -> np.ndarray:
    """Prefix capture of a drift μ plus white noise ε, s = ‖μ‖²/E‖ε‖²: (k/T)(1+Ts)/(1+ks) (§3)."""
    k = np.asarray(ks, dtype=float)
    return np.asarray(k / steps * (1 + steps * s) / (1 + k * s))


def drift_future_capture(steps: int, ks: Sequence[int], s: float) -> np.ndarray:
    """Future-only capture of the same for D ≫ T: ks·(T−k)s / [(1+ks)(1+(T−k)s)] (§3)."""
    k = np.asarray(ks, dtype=float)
    left = steps - k
    return np.asarray(k * s * left * s / ((1 + k * s) * (1 + left * s)))


def isotropic_participation(vectors: int, dimension: int) -> float:
    """Participation ratio of n isotropic vectors of equal norm: nD/(n+D+1) (§6)."""
    return vectors * dimension / (vectors + dimension + 1)


def isotropic_stable_rank(vectors: int, dimension: int) -> float:
    """Stable rank of n isotropic vectors of equal norm: n/(1+√(n/D))² (§6)."""
    return float(vectors / (1 + np.sqrt(vectors / dimension)) ** 2)


def folded_gradient_norm(pieces: Mapping[str, Tensor]) -> float:
    """‖Σ_j (g_j, 0, …, 0)‖: the law's ‖g‖ when every tensor's noise starts the same stream (§10).

    Tensor j's noise is the first numel_j numbers of one stream s, so g·z = Σ_j g_j·s[:numel_j] =
    (folded g)·s.
    """
    folded = torch.zeros(max(piece.numel() for piece in pieces.values()), dtype=torch.float64)
    for piece in pieces.values():
        folded[: piece.numel()] += piece.flatten().double()
    return float(folded.norm())
