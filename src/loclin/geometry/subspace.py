"""A linear subspace of R^D: how much of a vector it holds, how near another one is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import subspace_angles
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.gramian import to_float64


@dataclass(frozen=True, eq=False, kw_only=True)
class Subspace:
    """The span of the orthonormal rows of Q, the `basis`; P = QᵀQ projects on it (measures §2).

    >>> plane = Subspace.spanned_by(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))
    >>> round(plane.capture(torch.tensor([1.0, 1.0, 1.0])), 4)
    0.6667
    """

    basis: Float[Tensor, "k D"]

    def __repr__(self) -> str:
        return f"Subspace({self.k} of {self.basis.shape[1]} dimensions)"

    @staticmethod
    def spanned_by(vectors: Float[Tensor, "n D"]) -> Subspace:
        """The span of some vectors, scaled to equal length first.

        The first j rows of the basis span the first j vectors; where one depends on the others (to
        a relative 1e-5), the basis is that of the singular value decomposition instead. Raises
        `LoclinError` for no vectors, values that are not finite, or all vectors zero.
        """
        if vectors.ndim != 2 or not len(vectors):
            raise LoclinError(
                f"expected n×D vectors with n ≥ 1, found shape {tuple(vectors.shape)}: give at "
                "least one"
            )
        if not torch.isfinite(vectors).all():
            raise LoclinError(
                "expected finite vectors, found NaN or infinity: check the run they come from"
            )
        norms = vectors.norm(dim=1)
        kept = vectors[norms > 0] / norms[norms > 0, None]
        if not len(kept):
            raise LoclinError("expected a vector that is not zero, found only zeros: nothing spans")
        q, r = torch.linalg.qr(kept.T)
        if len(kept) > kept.shape[1] or float(r.diagonal().abs().min()) < 1e-5:
            u, s, _ = torch.linalg.svd(r)
            q = q @ u[:, : len(s)][:, s > 1e-5 * s[0]]
        return Subspace(basis=q.T.contiguous())

    @property
    def k(self) -> int:
        """Number of dimensions."""
        return len(self.basis)

    def project(self, vector: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        """Pv; `LoclinError` for a vector of another length."""
        self._check(len(vector))
        return self.basis.T @ (self.basis @ vector)

    def capture(self, vector: Float[Tensor, " D"]) -> float:
        """‖Qv‖²/‖v‖², from 0 to 1 (measures §2); `LoclinError` where v is zero or not of R^D."""
        self._check(len(vector))
        whole = float(to_float64(vector).square().sum())
        if whole == 0:
            raise LoclinError(
                "expected a vector that is not zero, found zeros: its capture is not defined"
            )
        return min(float(to_float64(self.basis @ vector).square().sum()) / whole, 1.0)

    def overlap(self, other: Subspace) -> float:
        """‖Q₁Q₂ᵀ‖_F² / min(k₁, k₂): mean squared cosine of the principal angles (measures §5)."""
        self._check(other.basis.shape[1])
        products = self.basis @ other.basis.T
        return min(float(to_float64(products).square().sum()) / min(self.k, other.k), 1.0)

    def angles(self, other: Subspace) -> Float[np.ndarray, " m"]:
        """Principal angles in radians, largest first, by the sine formula where they are small."""
        self._check(other.basis.shape[1])
        one, two = (to_float64(s.basis).T.cpu().numpy() for s in (self, other))
        return np.asarray(subspace_angles(one, two))

    def _check(self, length: int) -> None:
        if length != self.basis.shape[1]:
            raise LoclinError(
                f"expected a vector of {self.basis.shape[1]} coordinates, found {length}: take "
                "both from one space"
            )


def random_subspace(k: int, dimension: int, *, seed: int) -> Subspace:
    """A uniformly random k-subspace of R^D, the span of k vectors z ~ N(0, I_D): the null of
    measures §2. `LoclinError` where k is not from 1 to D.

    >>> random_subspace(2, 10, seed=0).k
    2
    """
    if not 1 <= k <= dimension:
        raise LoclinError(f"expected k from 1 to D = {dimension}, found {k}: choose another k")
    generator = torch.Generator().manual_seed(seed)
    return Subspace.spanned_by(torch.randn(k, dimension, generator=generator))
