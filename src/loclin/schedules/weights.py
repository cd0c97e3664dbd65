"""Weights of K task gradients from their Gramian: raw sum, norm-balanced, PCGrad, equal decrease,
loss-balanced (measures §12).

Every function gives w with which the step goes along Σ w_i g_i. Where a method leaves the length of
w open, Σ w_i = K, as for the raw sum: two equal gradients then give the same step under all of
them. Those that take the Gramian raise a LoclinError where a gradient is zero or not finite.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

from loclin.errors import LoclinError

Weights = Float[np.ndarray, " K"]
Products = Float[np.ndarray, "K K"]


def raw_sum(gramian: Products) -> Weights:
    """w_i = 1 for K×K products: the gradient of the sum of the losses (measures §12).

    >>> raw_sum(np.eye(2))
    array([1., 1.])
    """
    return np.ones(len(gramian))


def norm_balanced(gramian: Products) -> Weights:
    """w_i ∝ 1/‖g_i‖, Σ w_i = K: every task pulls with the same strength (measures §12).

    `gramian` is K×K. Raises `LoclinError` for a gradient that is zero or not finite.

    >>> norm_balanced(np.diag([1.0, 9.0]))
    array([1.5, 0.5])
    """
    return _scaled(1 / np.sqrt(_positive(gramian)))


def pcgrad(gramian: Products, *, seed: int = 0) -> Weights:
    """PCGrad: every gradient gives up what points against another, then all are added (Yu et al.
    2020, arXiv 2001.06782, alg. 1).

    g_i ← g_i − (g_iᵀg_j / ‖g_j‖²) g_j for every j with g_iᵀg_j < 0, the others taken in an order
    drawn by the seed. Shapes and errors as in `norm_balanced`.

    >>> pcgrad(np.array([[1.0, -0.5], [-0.5, 1.0]]))
    array([1.5, 1.5])
    """
    lengths, rng = _positive(gramian), np.random.default_rng(seed)
    total = np.zeros(len(gramian))
    for i in range(len(gramian)):
        own = np.eye(len(gramian))[i]
        for j in rng.permutation(len(gramian)):
            against = gramian[j] @ own
            if j != i and against < 0:
                own[j] -= against / lengths[j]
        total += own
    return total


def equal_decrease(gramian: Products) -> Weights:
    """w ≥ 0 with G w ∝ 1, Σ w_i = K: to first order every loss falls by the same amount.

    G w ∝ 1 is the condition of the shortest vector in the convex hull of the gradients, argmin wᵀGw
    over w ≥ 0, Σ w_i = 1, which is what is solved for. Where no w ≥ 0 makes all decreases equal,
    those of the tasks that take part are, and the others fall faster; where no direction lowers all
    losses, it stands still. This is MGDA's direction (Désidéri 2012), exactly. Shapes and errors as
    in `norm_balanced`.

    >>> w = equal_decrease(np.array([[1.0, 0.5], [0.5, 4.0]]))
    >>> bool(np.isclose(*(np.array([[1.0, 0.5], [0.5, 4.0]]) @ w)))
    True
    """
    values, vectors = np.linalg.eigh(gramian / _positive(gramian).max())
    rows = vectors * np.sqrt(np.maximum(values, 0.0))  # vectors with these products
    # min ‖rowsᵀw‖² + (Σw − 1)² over w ≥ 0: whatever Σw is best, the direction is the shortest's
    system = np.vstack([rows.T, np.ones(len(gramian))])
    return _scaled(nnls(system, np.append(np.zeros(len(gramian)), 1.0))[0])


def loss_balanced(losses: Weights, first: Weights, *, alpha: float = 0.5) -> Weights:
    """w_i ∝ (L_i / L_i at the first step)^α, Σ w_i = K: what has fallen least counts most.

    After Loss-Balanced Task Weighting (Liu, Liang and Gitter, AAAI 2019), with their α = 0.5; they
    take the first step of every epoch anew, where here it is that of the training. The paper that
    this project follows does not say what its loss-balanced is. `losses` are K, of this step's
    batches, `first` of the first step's; `LoclinError` where one of these is not above zero.

    >>> loss_balanced(np.array([1.0, 0.25]), np.array([1.0, 1.0]))
    array([1.33333333, 0.66666667])
    """
    if not (first > 0).all():
        raise LoclinError(
            f"expected losses above zero at the first step, found {first.tolist()}: a task is "
            "known already; leave it out"
        )
    shares = (losses / first) ** alpha
    return _scaled(shares) if shares.any() else np.ones(len(losses))


def _scaled(weights: Weights) -> Weights:
    return np.asarray(len(weights) * weights / weights.sum())


def _positive(gramian: Products) -> Weights:
    """Squared lengths of the gradients."""
    lengths = np.diag(gramian)
    if not (np.isfinite(gramian).all() and (lengths > 0).all()):
        raise LoclinError(
            "expected finite gradients that are not zero, found squared lengths "
            f"{lengths.tolist()}: leave out tasks that have nothing to learn, or lower the "
            "learning rate"
        )
    return lengths
