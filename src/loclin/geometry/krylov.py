"""Krylov spaces K_k(H, g) = span(g, Hg, .., H^{k−1}g) of a symmetric H (measures §9).

Gradient descent on a quadratic moves inside them: after t steps of rate η, d_t = −η Σ_{j<t}
(I−ηH)^j g ∈ K_t(H, g).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.gramian import at_least_float32, inner, to_float64
from loclin.geometry.subspace import Subspace

#: v ↦ Hv, such as a `CurvatureOperator`.
Product = Callable[[Float[Tensor, " D"]], Float[Tensor, " D"]]

#: A space is invariant when what it leaves of a product is below this many units of round-off of
#: the largest product seen: that much is the product's own rounding.
INVARIANT = 100


@dataclass(frozen=True, eq=False, kw_only=True)
class Krylov:
    """An orthonormal basis of K_k(H, g) and the tridiagonal T = QHQᵀ (measures §9); of `lanczos`.

    Attributes:
        basis: Q; the first j rows span K_j(H, g), the first row is g/‖g‖.
        diagonal, off_diagonal: of T, in float64.
        norm: ‖g‖.
        residual: β_k, what the last product left outside the space.

    >>> space = lanczos(lambda v: v * torch.tensor([1.0, 2.0]), torch.ones(2), 2)
    >>> space.tridiagonal.round(4).tolist()
    [[1.5, 0.5], [0.5, 1.5]]
    """

    basis: Float[Tensor, "k D"]
    diagonal: Float[np.ndarray, " k"]
    off_diagonal: Float[np.ndarray, " m"]
    norm: float
    residual: float

    @property
    def k(self) -> int:
        """Number of dimensions: fewer than were asked for where the space is invariant before."""
        return len(self.basis)

    @property
    def tridiagonal(self) -> Float[np.ndarray, "k k"]:
        """T."""
        off = self.off_diagonal
        return np.asarray(np.diag(self.diagonal) + np.diag(off, 1) + np.diag(off, -1))

    def ritz(self) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Eigenvalues of T, largest first, and how far an eigenvalue of H is at most from each.

        The bound is β_k |s_k|, s_k being the last entry of T's eigenvector (Parlett, The Symmetric
        Eigenvalue Problem, §13.2).
        """
        values, vectors = eigh_tridiagonal(self.diagonal, self.off_diagonal)
        return values[::-1].copy(), self.residual * np.abs(vectors[-1, ::-1])

    def descent(self, rate: float, steps: Sequence[int]) -> Float[np.ndarray, "n k"]:
        """Row i: d_t, t = steps[i] ≥ 0, of gradient descent on the quadratic with g and H, in
        coordinates of the basis; the displacement itself is row @ basis.

        By d_t = d_{t−1} − η(g + Hd_{t−1}), η the rate, in T alone: exact while t ≤ k, and at every
        t where the space is invariant; else the descent of the quadratic restricted to the space.
        Raises `LoclinError` for no steps, or one below 0.

        >>> two = lanczos(lambda v: v * torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), 2)
        >>> torch.from_numpy(two.descent(0.5, [1])).float() @ two.basis
        tensor([[-1.5000, -2.0000]])
        """
        if not len(steps) or min(steps) < 0:
            raise LoclinError(f"expected steps from 0 on, found {list(steps)}: choose other steps")
        dense, here, path = self.tridiagonal, np.zeros(self.k), np.zeros((max(steps) + 1, self.k))
        gradient = np.zeros(self.k)
        gradient[0] = self.norm
        for t in range(1, max(steps) + 1):
            here = here - rate * (gradient + dense @ here)
            path[t] = here
        return np.asarray(path[np.asarray(steps)])


def lanczos(product: Product, start: Float[Tensor, " D"], k: int) -> Krylov:
    """An orthonormal `basis` Q (k×D) of K_k(H, g) = span(g, Hg, .., H^{k−1}g) and T = QHQᵀ, by
    Lanczos; one product for each basis vector (measures §9).

    Two passes of re-orthogonalisation at every step leave it orthonormal to round-off ("twice is
    enough", Giraud, Langou, Rozložník and van den Eshof 2005), which the three-term recurrence
    alone does not. Half precision is widened to float32.

    Args:
        product: v ↦ Hv, H symmetric.
        start: g.
        k: how many dimensions; fewer where the space is invariant under H before.

    Raises:
        LoclinError: k not from 1 to D, a zero start, a start or product that is not finite.

    >>> space = lanczos(lambda v: v * torch.tensor([1.0, 2.0, 4.0]), torch.ones(3), 3)
    >>> space.ritz()[0].round(4)
    array([4., 2., 1.])
    """
    if not 1 <= k <= len(start):
        raise LoclinError(f"expected k from 1 to D = {len(start)}, found {k}: choose another k")
    norm, wide = _norm(start), at_least_float32(start)
    if not np.isfinite(norm):
        raise LoclinError(
            "expected a finite start, found NaN or infinity: check the gradient it comes from"
        )
    if norm == 0:
        raise LoclinError(
            "expected a start that is not zero, found zeros: a Krylov space needs a gradient"
        )
    basis = torch.empty(k, len(wide), dtype=wide.dtype, device=wide.device)
    basis[0] = wide / norm
    diagonal, residuals, largest = np.zeros(k), np.zeros(k), 0.0
    for j in range(k):
        image = product(basis[j]).to(wide)
        length = _norm(image)
        if not np.isfinite(length):
            raise LoclinError(
                "expected finite Hessian-vector products, found NaN or infinity in product "
                f"{j + 1} of {k}: check the loss, or choose float32"
            )
        largest = max(largest, length)
        diagonal[j] = inner(basis[j], image)
        left = _cleaned(image, basis[: j + 1])
        residuals[j] = _norm(left)
        if residuals[j] <= INVARIANT * torch.finfo(wide.dtype).eps * largest:
            k = j + 1
            break
        if j + 1 < k:
            basis[j + 1] = left / residuals[j]
    return Krylov(
        basis=basis[:k],
        diagonal=diagonal[:k],
        off_diagonal=residuals[: k - 1],
        norm=norm,
        residual=float(residuals[k - 1]),
    )


def preconditioned_lanczos(
    product: Product, start: Float[Tensor, " D"], scale: Float[Tensor, " D"], k: int
) -> Subspace:
    """K_k(M⁻¹H, M⁻¹g), M diagonal: where gradient descent goes whose steps are scaled by M⁻¹ (§9).

    It is S K_k(SHS, Sg), S = M^{−1/2} = diag(scale): Lanczos on the symmetric SHS from Sg, mapped
    back by S and made orthonormal again, so that the first j rows of the basis span K_j. Raises
    `LoclinError` as `lanczos` does, and for a scale that is not positive and finite everywhere.
    """
    if not bool(torch.isfinite(scale).all() and (scale > 0).all()):
        raise LoclinError(
            "expected a positive finite scale in every coordinate, found others: add a small "
            "constant to M"
        )
    turned = lanczos(lambda v: scale * product(scale * v), scale * start, k).basis
    basis = torch.empty_like(turned)
    for j, row in enumerate(turned):
        left = _cleaned(row * scale, basis[:j])
        basis[j] = left / _norm(left)
    return Subspace(basis=basis)


def _cleaned(vector: Float[Tensor, " D"], basis: Float[Tensor, "j D"]) -> Float[Tensor, " D"]:
    """What a vector has outside a span, projected out twice."""
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    return vector


def _norm(vector: Tensor) -> float:
    return float(to_float64(vector).norm())
