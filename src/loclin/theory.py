"""Closed forms (measures §2 to §9): what a measure is worth when nothing special is there.

`tests/test_theory.py` holds every formula against the code that measures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from loclin.errors import LoclinError

Curve = Float[np.ndarray, " n"]


def random_capture(k: int, dimension: int) -> stats._distn_infrastructure.rv_frozen:
    """capture(Q, d) for a uniformly random k-subspace independent of d: Beta(k/2, (D−k)/2) (§2).

    >>> float(random_capture(10, 1000).mean())
    0.01
    """
    if not 1 <= k < dimension:
        raise LoclinError(
            f"expected k from 1 to D − 1 = {dimension - 1}, found {k}: choose another k"
        )
    return stats.beta(k / 2, (dimension - k) / 2)


def random_overlap(k1: int, k2: int, dimension: int) -> tuple[float, float]:
    """Mean and variance of overlap(Q₁, Q₂) of independent random subspaces, k₂ ≤ k₁ (§5).

    Mean k₁/D, variance 2k₁(D−k₁)(D−k₂) / [k₂D²(D−1)(D+2)].
    """
    k1, k2 = max(k1, k2), min(k1, k2)
    d = dimension
    return k1 / d, 2 * k1 * (d - k1) * (d - k2) / (k2 * d**2 * (d - 1) * (d + 2))


def white_capture(norms: Float[np.ndarray, " T"], ks: Sequence[int]) -> Curve:
    """Prefix capture of white steps with given norms: Σ_{t≤k}‖u_t‖² / Σ_{t≤T}‖u_t‖² (§3).

    >>> white_capture(np.ones(10), [1, 5])
    array([0.1, 0.5])
    """
    energy = np.cumsum(np.square(norms))
    return np.asarray(energy[np.asarray(ks) - 1] / energy[-1])


def heavy_ball_capture(steps: int, momentum: float, ks: Sequence[int]) -> Curve:
    """Prefix capture of heavy ball with momentum β driven by white noise: that of white steps with
    norms A_t = (1−β^{T−t+1})/(1−β), the weight of noise t in the displacement (§3).
    """
    t = np.arange(1, steps + 1)
    return white_capture((1 - momentum ** (steps - t + 1)) / (1 - momentum), ks)


def drift_capture(steps: int, ks: Sequence[int], s: float) -> Curve:
    """Prefix capture of a drift μ plus white noise ε, s = ‖μ‖²/E‖ε‖²: (k/T)(1+Ts)/(1+ks) (§3).

    >>> drift_capture(100, [10], 0.29).round(2)
    array([0.77])
    """
    k = np.asarray(ks, dtype=float)
    if np.isinf(s):
        return np.ones_like(k)
    return np.asarray(k / steps * (1 + steps * s) / (1 + k * s))


def drift_future_capture(
    steps: int, ks: Sequence[int], s: float, dimension: int | None = None
) -> Curve:
    """Future-only capture of the same: c = ks·(T−k)s / [(1+ks)(1+(T−k)s)], plus (1−c)k/D (§3).

    c is for D ≫ T. What it leaves outside the span is isotropic, so k of D dimensions hold their
    share of it by chance.

    >>> drift_future_capture(100, [10], 0.29).round(2)
    array([0.72])
    """
    k = np.asarray(ks, dtype=float)
    left = steps - k
    if np.isinf(s):
        return np.ones_like(k)
    held = k * s * left * s / ((1 + k * s) * (1 + left * s))
    by_chance = k / dimension if dimension else 0.0
    return np.asarray(held + (1 - held) * by_chance)


def fit_drift(updates: Float[np.ndarray, "T T"]) -> float:
    """s of the drift model from the Gramian of T ≥ 2 updates, by moments (§3).

    ‖μ‖² is the mean of ⟨u_i, u_j⟩, i ≠ j, or 0 where that is negative; E‖u‖² = ‖μ‖² + E‖ε‖². Pure
    drift gives infinity.
    """
    steps = len(updates)
    if steps < 2:
        raise LoclinError(
            f"expected at least 2 updates to fit a drift, found {steps}: record more steps"
        )
    energy = float(np.trace(updates)) / steps
    drift = max(float(updates.sum() - np.trace(updates)) / (steps * (steps - 1)), 0.0)
    return drift / (energy - drift) if energy > drift else float("inf")


def isotropic_participation(vectors: int, dimension: int) -> float:
    """Participation ratio of n isotropic vectors of equal norm: nD/(n+D+1) (§6)."""
    return vectors * dimension / (vectors + dimension + 1)


def isotropic_stable_rank(vectors: int, dimension: int) -> float:
    """Stable rank of n isotropic vectors of equal norm: n/(1+√(n/D))² (§6)."""
    return float(vectors / (1 + np.sqrt(vectors / dimension)) ** 2)


def sketched_product_sd(product: float, squared_norms: tuple[float, float], size: int) -> float:
    """Standard deviation of ⟨u, v⟩ read from m-number sketches: √((⟨u,v⟩² + ‖u‖²‖v‖²)/m) (§3).

    The mean is ⟨u, v⟩. An upper bound for a count sketch (Charikar, Chen and Farach-Colton 2002),
    close where no coordinate dominates.

    >>> round(sketched_product_sd(1.0, (1.0, 1.0), 200), 3)
    0.1
    """
    return float(np.sqrt((product**2 + squared_norms[0] * squared_norms[1]) / size))


def sketched_capture(capture: float, k: int, size: int) -> tuple[float, float]:
    """Bias and standard deviation of a capture c by a k-span read from m-number sketches (§2).

    Bias (1−c)(k − 2c)/m: the k-span catches k of m dimensions of what lies outside it, less the
    second-order term of the ratio. Standard deviation 2(1−c)√(c/m), by the delta method. For
    spread-out vectors and k ≪ m.

    >>> bias, sd = sketched_capture(0.5, 10, 1000)
    >>> round(bias, 4), round(sd, 4)
    (0.0045, 0.0224)
    """
    if not 1 <= k < size:
        raise LoclinError(
            f"expected k from 1 to m − 1 = {size - 1}, found {k}: choose a smaller k or a larger "
            "sketch"
        )
    sd = 2 * (1 - capture) * float(np.sqrt(capture / size))
    return (1 - capture) * (k - 2 * capture) / size, sd


def krylov_converged_bound(condition: float, k: int) -> float:
    """Most that K_k(H, g) misses of −H⁻¹g, H positive definite: 1 − c ≤ 4((√κ−1)/(√κ+1))^{2k} (§9).

    κ is the largest over the smallest eigenvalue. By a Chebyshev polynomial (Saad 2003, Theorem
    6.29). It says something where it is below 1.

    >>> round(krylov_converged_bound(9.0, 3), 4)
    0.0625
    """
    if condition < 1 or k < 1:
        raise LoclinError(
            f"expected κ and k of at least 1, found κ = {condition}, k = {k}: choose others"
        )
    root = float(np.sqrt(condition))
    return 4 * ((root - 1) / (root + 1)) ** (2 * k)


def krylov_stopped_bound(rate: float, steps: int, gradient_norm: float, k: int) -> float:
    """Most that K_k(H, g) leaves of t steps of rate η: ‖(I−P)d_t‖ ≤ 2ηt‖g‖e^{−(k−1)²/2t} (§9).

    Holds where the spectrum of H lies in [0, 2/η]; fails under negative curvature. On [−1, 1] x^j
    is within 2e^{−m²/2j} of a polynomial of degree m (Sachdeva and Vishnoi 2014, Theorem 3.3), here
    x is an eigenvalue of I − ηH, m = k − 1 and j < t.

    >>> round(krylov_stopped_bound(0.1, 50, 1.0, 31), 6)
    0.001234
    """
    if steps < 1 or k < 1:
        raise LoclinError(
            f"expected t and k of at least 1, found t = {steps}, k = {k}: choose others"
        )
    return 2 * rate * steps * gradient_norm * float(np.exp(-((k - 1) ** 2) / (2 * steps)))
