"""The Gaussian local-linear law (measures §10): what the best of N random steps gains, and what
that is worth in a subspace.

A candidate is δ = σz, z ~ N(0, I_D); g and H are gradient and Hessian of the loss in the space that
is searched. Losses and gains are in nats per answer token, σ and radii in the units of the weights.
Every function is a formula and says which; `tests/test_law.py` holds each against simulation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np
import torch
from scipy import special
from torch import Tensor

from loclin.errors import LoclinError

MOST_CANDIDATES = 1_000_000  # beyond this nobody searches: what a forecast looks through


def _checked(
    name: str, value: float | int, *, above: float = -math.inf, least: float = -math.inf
) -> float | int:
    """The value, where it is a finite number above one bound and at least another."""
    if not (math.isfinite(value) and value > above and value >= least):
        wanted = (
            f"above {above:g}"
            if above > -math.inf
            else f"of at least {least:g}"
            if least > -math.inf
            else "that is finite"
        )
        raise LoclinError(f"expected {name} {wanted}, found {value}: give another")
    return value


@functools.lru_cache(maxsize=4096)
def _maximum_moments(n: int) -> tuple[float, float]:
    """E[M] and E[M²] of the maximum of n standard normals: ∫ xᵖ n φ(x) Φ(x)ⁿ⁻¹ dx.

    The integrand is analytic and falls off on both sides, so the trapezium rule converges
    geometrically: 4,001 points leave nothing but round-off up to n of 10¹².
    """
    _checked("a number of candidates", n, least=1.0)
    x, step = np.linspace(-10.0, 14.0, 4001, retstep=True)
    density = np.exp(
        math.log(n) - x**2 / 2 - math.log(2 * math.pi) / 2 + (n - 1) * special.log_ndtr(x)
    )
    return float((x * density).sum() * step), float((x**2 * density).sum() * step)


def expected_maximum(n: int) -> float:
    """m_N = E[max of N independent standard normals], by quadrature; 0 for N = 1 (measures §10).

    Raises:
        LoclinError: fewer than one.

    >>> [round(expected_maximum(n), 4) for n in (1, 2, 100, 1_000_000)]
    [0.0, 0.5642, 2.5076, 4.8629]
    """
    return 0.0 if n == 1 else _maximum_moments(n)[0]


def expected_squared_maximum(n: int) -> float:
    """E[M²], M the maximum of N independent standard normals; 1 for N = 1 and N = 2.

    >>> round(expected_squared_maximum(3), 4)  # 1 + √3/2π
    1.2757
    """
    return 1.0 if n in (1, 2) else _maximum_moments(n)[1]


def _selected(n: int, signal: float, noise: float) -> tuple[float, float]:
    """E[u] and E[u²] of the alignment u ~ N(0, 1) of the candidate with the largest signal·u +
    noise·ε of N.

    With ρ² = signal²/(signal² + noise²): ρ m_N and 1 + ρ²(E[M²] − 1).
    """
    heard = signal / math.hypot(signal, noise) if signal else 0.0
    return heard * expected_maximum(n), 1 + heard**2 * (expected_squared_maximum(n) - 1)


def best_of_n_gain(
    *, gradient: float, trace: float, along: float, n: int, sigma: float, noise: float = 0.0
) -> float:
    """Expected decrease of the loss by the best of N: σ‖g‖m_N − (σ²/2)[tr H + (E[M²]−1) ĝᵀHĝ]
    (measures §10).

    With evaluation noise τ the selected candidate is less aligned than the best one: with ρ² =
    σ²‖g‖²/(σ²‖g‖²+τ²), m_N becomes ρ m_N, so that the first term is m_N σ²‖g‖²/√(σ²‖g‖²+τ²), and
    E[M²]−1 becomes ρ²(E[M²]−1). The decrease is the true one, as a second scoring on other data
    would find it; the winner's own score promises more. Independent of D when tr H is. Valid well
    below `valid_up_to`, and for m_N ≪ √(2r), r = (tr H)²/‖H‖_F²: what selection gains from the
    curvature's own fluctuation is left out.

    Args:
        gradient: ‖g‖ in the space that is searched.
        trace: tr H there.
        along: ĝᵀHĝ, the curvature along the gradient.
        n: N.
        sigma: σ.
        noise: τ, standard deviation of a candidate's score about its true one, independent between
            candidates.

    Raises:
        LoclinError: N below 1, σ not above 0, ‖g‖ or τ below 0, or a number that is not finite.

    >>> round(best_of_n_gain(gradient=1.0, trace=10.0, along=0.5, n=100, sigma=0.1), 4)
    0.1871
    """
    _checked("a gradient norm", gradient, least=0.0)
    _checked("a trace", trace)
    _checked("a curvature", along)
    _checked("σ", sigma, above=0.0)
    _checked("evaluation noise", noise, least=0.0)
    first, second = _selected(n, sigma * gradient, noise)
    return sigma * gradient * first - sigma**2 / 2 * (trace + (second - 1) * along)


def best_sigma(*, gradient: float, trace: float, n: int, along: float = 0.0) -> float | None:
    """σ* = ‖g‖m_N / [tr H + (E[M²]−1) ĝᵀHĝ], where the gain is largest; ≈ ‖g‖m_N/tr H without the
    last (measures §10).

    Without evaluation noise.

    Returns:
        None where the bracket is not positive: by the second order the gain grows with σ without
            end, and only the law's
        validity limits it.

    >>> round(best_sigma(gradient=1.0, trace=10.0, n=100), 4)
    0.2508
    """
    _checked("a gradient norm", gradient, least=0.0)
    _checked("a trace", trace)
    _checked("a curvature", along)
    bent = trace + (expected_squared_maximum(n) - 1) * along
    return gradient * expected_maximum(n) / bent if bent > 0 else None


def best_gain(*, gradient: float, trace: float, n: int, along: float = 0.0) -> float | None:
    """Gain at `best_sigma`: ‖g‖²m_N² / 2[tr H + (E[M²]−1) ĝᵀHĝ] ≈ ‖g‖²m_N²/(2 tr H); None where
    there is no σ* (§10).
    """
    sigma = best_sigma(gradient=gradient, trace=trace, n=n, along=along)
    return None if sigma is None else sigma * gradient * expected_maximum(n) / 2


def valid_up_to(*, gradient: float, frobenius: float) -> float:
    """σ at which the curvature's fluctuation σ²‖H‖_F/√2 is as large as σ‖g‖: √2‖g‖/‖H‖_F (measures
    §10).

    The law holds well below it; infinite for a loss without curvature.

    >>> round(valid_up_to(gradient=1.0, frobenius=2.0), 4)
    0.7071
    """
    _checked("a gradient norm", gradient, least=0.0)
    _checked("a Frobenius norm", frobenius, least=0.0)
    return math.sqrt(2) * gradient / frobenius if frobenius else math.inf


def alignment_correlation(
    *, gradient: float, frobenius: float, sigma: float, noise: float = 0.0
) -> float:
    """Correlation of gain and alignment −ĝᵀz over candidates: r² = σ²‖g‖²/(σ²‖g‖² + σ⁴‖H‖_F²/2 +
    τ²); this is r (§10).

    Exact on a quadratic. 0 where there is no gradient.

    Args:
        gradient: ‖g‖.
        frobenius: ‖H‖_F.
        sigma: σ.
        noise: τ, standard deviation of a candidate's score about its true one.

    >>> round(alignment_correlation(gradient=1.0, frobenius=2.0, sigma=0.1), 4)
    0.9901
    """
    _checked("a gradient norm", gradient, least=0.0)
    _checked("a Frobenius norm", frobenius, least=0.0)
    _checked("σ", sigma, above=0.0)
    _checked("evaluation noise", noise, least=0.0)
    signal = sigma * gradient
    return (
        signal / math.hypot(signal, sigma**2 * frobenius / math.sqrt(2), noise) if signal else 0.0
    )


def candidates_needed(
    wished: float,
    *,
    gradient: float,
    trace: float,
    along: float,
    sigma: float,
    noise: float = 0.0,
    most: int = MOST_CANDIDATES,
) -> int | None:
    """Smallest N whose `best_of_n_gain` reaches a wished gain at this σ.

    Where ĝᵀHĝ > 0 the gain rises with N to one peak and falls after it, because the best candidates
    go ever further along the gradient; the search is up to that peak.

    Args:
        wished: gain in nats per answer token.
        gradient: ‖g‖.
        trace: tr H.
        along: ĝᵀHĝ.
        sigma: σ.
        noise: τ.
        most: N to look up to.

    Returns:
        None where no N up to `most` reaches it.

    >>> candidates_needed(0.2, gradient=1.0, trace=10.0, along=0.0, sigma=0.1)
    98
    """
    _checked("a wished gain", wished)
    _checked("a number of candidates", most, least=1.0)

    def gain(n: int) -> float:
        return best_of_n_gain(
            gradient=gradient, trace=trace, along=along, n=n, sigma=sigma, noise=noise
        )

    peak = most
    if along > 0:
        low, high = 1, most
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if gain(middle + 1) > gain(middle) else (low, middle)
        peak = low
    if gain(peak) < wished:
        return None
    low, high = 1, peak
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if gain(middle) >= wished else (middle + 1, high)
    return low


def folded_gradient_norm(pieces: Mapping[str, Tensor]) -> float:
    """‖Σ_j (g_j, 0, …, 0)‖: what stands in the law for ‖g‖ when every tensor's noise starts the
    same stream (measures §10).

    Tensor j's noise is the first numel_j numbers of one stream s, so g·z = Σ_j g_j·s[:numel_j] =
    (folded g)·s. The law's tr H, ĝᵀHĝ and ‖H‖_F are those of the Hessian folded in the same way.

    Args:
        pieces: name of each tensor of the space and the gradient there, of any shape.

    Raises:
        LoclinError: no tensor.

    >>> folded_gradient_norm({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([-3.0])})
    4.0
    """
    if not pieces:
        raise LoclinError(
            "expected the gradient of at least one tensor, found none: choose a space"
        )
    folded = torch.zeros(max(piece.numel() for piece in pieces.values()), dtype=torch.float64)
    for piece in pieces.values():
        folded[: piece.numel()] += (
            piece.detach().flatten().cpu().double()
        )  # on the CPU: Apple's devices have no float64
    return float(folded.norm())


def signal_density(energy: float, k: int) -> float:
    """‖P_S g‖²/k: the gradient's energy in a subspace for each of its dimensions (measures §10).

    Args:
        energy: ‖P_S g‖².
        k: dimension of S.

    Raises:
        LoclinError: an energy below 0 or k below 1.

    >>> signal_density(2.0, 8)
    0.25
    """
    return _checked("an energy", energy, least=0.0) / _checked("a dimension", k, least=1.0)


def lift(capture: float, dimension: int, k: int) -> float:
    """Signal density over that of a random subspace: capture·D/k, capture = ‖P_S g‖²/‖g‖² (measures
    §10).

    >>> lift(0.5, 1000, 10)
    50.0
    """
    if not (0 <= capture <= 1 and 1 <= k <= dimension):
        raise LoclinError(
            f"expected a capture from 0 to 1 and k from 1 to D = {dimension}, found {capture} and "
            f"{k}: give others"
        )
    return capture * dimension / k


def subspace_linear_gain(*, radius: float, n: int, density: float) -> float:
    """Linear part of the gain in a subspace at RMS radius R = σ√k: R·m_N·√density (measures §10).

    >>> round(subspace_linear_gain(radius=2.0, n=100, density=0.25), 4)
    2.5076
    """
    _checked("a radius", radius, above=0.0)
    _checked("a density", density, least=0.0)
    return radius * expected_maximum(n) * math.sqrt(density)


def subspace_best_gain(*, energy: float, n: int, trace: float) -> float | None:
    """Gain at a subspace's own best σ: ‖P_S g‖²m_N²/(2 tr(P_S H)); None where that trace is not
    positive (measures §10).

    >>> round(subspace_best_gain(energy=1.0, n=100, trace=10.0), 4)
    0.3144
    """
    return best_gain(gradient=math.sqrt(_checked("an energy", energy, least=0.0)), trace=trace, n=n)
