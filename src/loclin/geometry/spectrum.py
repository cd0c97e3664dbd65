"""Spectra of a set of vectors through their Gramian, and the random control they are held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.gramian import gramian
from loclin.geometry.subspace import Subspace


@dataclass(frozen=True, kw_only=True)
class EffectiveRanks:
    """Sizes of a spectrum p_i = σ_i²/Σσ²: 1/p₁ ≤ 1/Σp² ≤ exp(−Σ p ln p) (measures §6)."""

    stable: float
    participation: float
    entropy: float


def centred(products: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Gramian of the same vectors with their mean taken out: C G C, C = I − 11ᵀ/n."""
    mean = products.mean(0)
    return np.asarray(products - mean[None, :] - mean[:, None] + mean.mean())


def effective_ranks(products: Float[np.ndarray, "n n"]) -> EffectiveRanks:
    """`stable` 1/p₁, `participation` 1/Σp² and `entropy` exp(−Σ p ln p), p_i = σ_i²/Σσ², of the
    vectors with this Gramian (measures §6); `LoclinError` for one not square, zero or not finite.

    >>> effective_ranks(np.eye(3)).participation
    3.0
    """
    if products.ndim != 2 or len(set(products.shape)) > 1:
        raise LoclinError(
            f"expected an n×n Gramian, found shape {products.shape}: give gramian(vectors)"
        )
    if not np.isfinite(products).all() or np.trace(products) <= 0:
        raise LoclinError(
            "expected a finite Gramian that is not zero: the vectors vanish or hold NaN"
        )
    energy = np.clip(np.linalg.eigvalsh(products), 0, None)
    p = energy / energy.sum()
    entropy = float(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()))
    return EffectiveRanks(
        stable=float(1 / p.max()), participation=float(1 / (p**2).sum()), entropy=entropy
    )


def principal_coefficients(products: Float[np.ndarray, "n n"], k: int) -> Float[np.ndarray, "n k"]:
    """Top-k right singular directions in coefficients of the n vectors, not centred.

    Column i is w_i/σ_i, where w_i and σ_i² are eigenvectors and eigenvalues of their Gramian.
    Errors as in `principal_directions`.
    """
    if not 1 <= k <= len(products):
        raise LoclinError(
            f"expected k from 1 to n = {len(products)} vectors, found {k}: take more vectors or a "
            "smaller k"
        )
    energy, weights = np.linalg.eigh(products)
    top = energy[::-1][:k]
    if top[-1] <= 1e-12 * top[0]:
        rank = int((energy > 1e-12 * top[0]).sum())
        raise LoclinError(
            f"expected vectors of rank {k} at least, found rank {rank}: take a smaller k"
        )
    return np.asarray(weights[:, ::-1][:, :k] / np.sqrt(top))


def principal_directions(rows: Float[Tensor, "n D"], k: int) -> Subspace:
    """Span of the top-k right singular directions of n vectors, not centred (measures §4);
    `LoclinError` for k not from 1 to their number or above their rank.

    >>> rows = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> principal_directions(rows, 1).capture(torch.tensor([1.0, 0.0]))
    1.0
    """
    coefficients = principal_coefficients(gramian(rows), k)
    return Subspace.spanned_by(torch.from_numpy(coefficients.T.copy()).to(rows) @ rows)


def random_sketch(
    norms: Float[Tensor, "n tensors"], sizes: Sequence[int], *, seed: int
) -> Float[np.ndarray, "n n"]:
    """Gramian of n random vectors, isotropic within each tensor, with these norms there (§6).

    A spectrum counts as low rank only well below that of vectors that share nothing but their
    norms. With one tensor of size D this is the isotropic control; with the network's own tensors
    it is stricter, since unequal norms per tensor lower the rank by themselves. The Gramian is
    drawn from its own law, at a cost of tensors·n³ whatever the sizes.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros((len(norms), len(norms)))
    for column, size in zip(norms.T.double().cpu().numpy(), sizes, strict=True):
        drawn = _isotropic(len(column), size, rng)
        scaled = drawn * (column / np.linalg.norm(drawn, axis=1))[:, None]
        total += scaled @ scaled.T
    return total


def _isotropic(n: int, size: int, rng: np.random.Generator) -> Float[np.ndarray, "n m"]:
    """n independent vectors N(0, I_size), up to a rotation of them all.

    In the span of the first basis vectors they are the Cholesky factor of a Wishart matrix: N(0, 1)
    below the diagonal and χ with size, size − 1, ... degrees of freedom on it (Bartlett 1933, "On
    the theory of statistical regression").
    """
    if size < n:
        return rng.standard_normal((n, size))
    factor = np.tril(rng.standard_normal((n, n)), -1)
    factor[np.diag_indices(n)] = np.sqrt(rng.chisquare(size - np.arange(n)))
    return factor
