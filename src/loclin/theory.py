"""Closed forms (measures §2 to §9): what a measure is worth when nothing special is there.

`tests/test_theory.py` holds every formula against the code that measures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

from loclin.errors import LoclinError
from loclin.geometry.gramian import cosines

Curve = Float[np.ndarray, " n"]
#: Correlation of two steps' noise below which they share no memory (§3).
NO_MEMORY = 0.01


def random_capture(k: int, dimension: int) -> stats._distn_infrastructure.rv_frozen:
    """capture(Q, d) for a uniformly random k-subspace independent of d: Beta(k/2, (D−k)/2) (§2).
    `LoclinError` for k not from 1 to D − 1.

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

    >>> random_overlap(10, 20, 1000)[0]
    0.02
    """
    k1, k2 = max(k1, k2), min(k1, k2)
    d = dimension
    return k1 / d, 2 * k1 * (d - k1) * (d - k2) / (k2 * d**2 * (d - 1) * (d + 2))


def white_capture(norms: Float[np.ndarray, " T"], ks: Sequence[int]) -> Curve:
    """Prefix capture of white steps by their norms: Σ_{t≤k}‖u_t‖² / Σ_{t≤T}‖u_t‖², 1 ≤ k ≤ T (§3).

    >>> white_capture(np.ones(10), [1, 5])
    array([0.1, 0.5])
    """
    energy = np.cumsum(np.square(norms))
    return np.asarray(energy[np.asarray(ks) - 1] / energy[-1])


def heavy_ball_capture(steps: int, momentum: float, ks: Sequence[int]) -> Curve:
    """Prefix capture of heavy ball with momentum β driven by white noise: that of white steps with
    norms A_t = (1−β^{T−t+1})/(1−β), β < 1, the weight of noise t in the displacement (§3).

    >>> heavy_ball_capture(10, 0.5, [1, 5]).round(2)
    array([0.12, 0.59])
    """
    t = np.arange(1, steps + 1)
    return white_capture((1 - momentum ** (steps - t + 1)) / (1 - momentum), ks)


def impulse_response(points: Sequence[int], momentum: float = 0.0) -> Float[np.ndarray, "T n"]:
    """F: what noise of unit size in every gradient puts into each segment of a run (§3).

    Heavy ball: a step holds β^j of the gradient j steps before. Adam's bias-corrected moving
    average is the same but for the size of each step, which `drift_gramian` takes from the run. A
    segment is the sum of its steps; β = 0 is plain SGD, whose segments share no gradient.

    Args:
        points: optimiser steps at which the run was seen, T + 1 of them; its state was new at the
            first.
        momentum: β, or Adam's β₁; below 1.

    >>> impulse_response([0, 1, 3], 0.5)
    array([[1.  , 0.  , 0.  ],
           [0.75, 1.5 , 1.  ]])
    """
    ends = np.asarray(points, dtype=float)
    noise = np.arange(ends[0] + 1, ends[-1] + 1)
    first, last = (np.maximum(e[:, None] - noise, -1.0) for e in (ends[:-1], ends[1:]))
    response: np.ndarray = (momentum ** (first + 1) - momentum ** (last + 1)) / (1 - momentum)
    return response


def fit_drift(
    updates: Float[np.ndarray, "T T"],
    response: Float[np.ndarray, "T n"] | None = None,
    *,
    at_rest: bool = False,
) -> float:
    """s = ‖μ‖²/E‖ε̃‖² of a drift from the Gramian of T ≥ 2 updates: s/(1+s) = c̄ (§3).

    c̄ is the mean cosine of two updates, less what memory gives there, or 0 where that is negative,
    over all pairs whose noise the optimiser's memory correlates by less than 0.01 (in a run too
    short for such pairs: over the least correlated ones). Pure drift gives infinity. Raises
    `LoclinError` for fewer than 2 updates.

    Args:
        updates: their Gramian.
        response: as of `impulse_response`; the identity by default.
        at_rest: s is that of the last update of `drift_gramian(at_rest=True)`.

    >>> fit_drift(np.eye(3)), round(fit_drift(np.eye(3) + 1.0), 6), fit_drift(np.ones((3, 3)))
    (0.0, 1.0, inf)
    """
    steps = len(updates)
    if steps < 2:
        raise LoclinError(
            f"expected at least 2 updates to fit a drift, found {steps}: record more steps"
        )
    response = np.eye(steps) if response is None else response
    noise, moved = cosines(response @ response.T, 0.0), np.diag(updates) > 0
    pairs = np.outer(moved, moved) & ~np.eye(steps, dtype=bool)
    if not pairs.any():
        return 0.0
    pairs &= noise <= max(NO_MEMORY, float(noise[pairs].min()))
    total = float(cosines(updates, 0.0)[pairs].sum())
    known = float(noise[pairs].sum())
    shared = (total - known) / (float(pairs.sum()) - known)
    if shared < 1e-9:
        return 0.0
    if not at_rest:
        return shared / (1 - shared) if shared < 1 else float("inf")
    weights = pairs * noise

    def more(log_s: float) -> float:
        share = _drift_share(float(np.exp(log_s)), response, at_rest=True)
        drift, rest = np.sqrt(share), np.sqrt(1 - share)
        return float(drift @ pairs @ drift + rest @ weights @ rest) - total

    low, high = -30.0, 30.0
    return float(np.exp(optimize.brentq(more, low, high))) if more(high) > 0 else float("inf")


def drift_gramian(
    updates: Float[np.ndarray, "T T"],
    response: Float[np.ndarray, "T n"] | None = None,
    *,
    at_rest: bool = False,
) -> Float[np.ndarray, "T T"]:
    """Expected Gramian of a constant drift and white noise through a run's own optimiser (§3).

    G⁰ = diag(n)·[(s 11ᵀ + corr(FFᵀ))/(1+s)]·diag(n): a step has the run's own norm n_t and the
    direction √s μ̂ + ε̃_t, with s fitted to the run (`fit_drift`). The captures of G⁰, plus the
    (1−c)k/D that is there by chance, are the null of the run's captures.

    A preconditioner that stands still (Adam's, frozen) turns μ and colours the noise: G⁰ is the
    same, and D becomes (tr P²)²/tr P⁴. One that changes along the way is not in it. Errors as in
    `fit_drift`.

    Args:
        updates: Gramian of the run.
        response: as of `impulse_response`; the identity by default.
        at_rest: whether the drift goes through the filter as well. An optimiser that begins with
            empty moments has averaged the noise of its first steps less than that of later ones,
            so that they hold less of the drift: s_t = s (F1)²_t/(FFᵀ)_tt, s that of the last step.
            The same where F is the identity.

    >>> drift_gramian(np.array([[4.0, 1.0, 0.0], [1.0, 1.0, 0.5], [0.0, 0.5, 1.0]])).round(2)
    array([[4.  , 0.67, 0.67],
           [0.67, 1.  , 0.33],
           [0.67, 0.33, 1.  ]])
    """
    response = np.eye(len(updates)) if response is None else response
    s = fit_drift(updates, response, at_rest=at_rest)
    share = _drift_share(s, response, at_rest=at_rest)
    noise, norms = np.sqrt(1 - share), np.sqrt(np.diag(updates))
    products = np.sqrt(np.outer(share, share))
    products = products + np.outer(noise, noise) * cosines(response @ response.T, 0.0)
    return np.asarray(np.outer(norms, norms) * products)


def _drift_share(s: float, response: np.ndarray, *, at_rest: bool) -> np.ndarray:
    """s_t/(1 + s_t): the drift's share of every step's squared length."""
    growth = np.ones(len(response))
    if at_rest:
        growth = response.sum(1) ** 2 / (response**2).sum(1)
        growth /= growth[-1]
    return np.asarray(1 - 1 / (1 + s * growth))


def sketched_capture(capture: float, k: int, size: int) -> tuple[float, float]:
    """Bias and standard deviation of a capture c by a k-span read from m-number sketches (§2).

    Bias (1−c)(k − 2c)/m: the k-span catches k of m dimensions of what lies outside it, less the
    second-order term of the ratio. Standard deviation 2(1−c)√(c/m), by the delta method. For
    spread-out vectors and k ≪ m. `LoclinError` for k not from 1 to m − 1.

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
    6.29). It says something where it is below 1. `LoclinError` for κ or k below 1.

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
    x is an eigenvalue of I − ηH, m = k − 1 and j < t. `LoclinError` for t or k below 1.

    >>> round(krylov_stopped_bound(0.1, 50, 1.0, 31), 6)
    0.001234
    """
    if steps < 1 or k < 1:
        raise LoclinError(
            f"expected t and k of at least 1, found t = {steps}, k = {k}: choose others"
        )
    return 2 * rate * steps * gradient_norm * float(np.exp(-((k - 1) ** 2) / (2 * steps)))
