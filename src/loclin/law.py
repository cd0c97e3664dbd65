"""The Gaussian local-linear law (measures §10): what the best of N random steps gains.

A candidate is δ = σz, z ~ N(0, I_D). In the space that is searched the loss has gradient g and
Hessian H, and every function takes them alike: `gradient` is ‖g‖, `trace` tr H, `along` ĝᵀHĝ,
`frobenius` ‖H‖_F, `cube` tr H³, `n` is N, `sigma` σ. `noise` is τ, the standard deviation of a
candidate's score about its true one, independent between candidates. Losses and gains are in nats
per answer token, σ and radii in the units of the weights. Where z_i = ±1, ‖H‖_F is that of H
without its diagonal: the curvature's variance is σ⁴Σ_{i≠j}H_ij²/2. A number that is not finite or
out of its range raises `LoclinError`. `tests/test_law.py` holds every formula against simulation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from scipy import special

from loclin.errors import LoclinError

MOST_CANDIDATES = 1_000_000  # beyond this nobody searches
_POSITIVE = math.ulp(0.0)  # the least number above 0
#: What a message calls an argument, how it states the range, and the least number in it.
_RANGES = {
    "gradient": ("a gradient norm", "of at least 0", 0.0),
    "trace": ("a trace", "that is finite", -math.inf),
    "along": ("a curvature", "that is finite", -math.inf),
    "frobenius": ("a Frobenius norm", "of at least 0", 0.0),
    "cube": ("tr H³", "that is finite", -math.inf),
    "sigma": ("σ", "above 0", _POSITIVE),
    "noise": ("evaluation noise", "of at least 0", 0.0),
    "n": ("a number of candidates", "of at least 1", 1.0),
    "target_gain": ("a target gain", "that is finite", -math.inf),
    "energy": ("an energy", "of at least 0", 0.0),
    "k": ("a dimension", "of at least 1", 1.0),
    "radius": ("a radius", "above 0", _POSITIVE),
    "density": ("a density", "of at least 0", 0.0),
}


def _check(**numbers: float | int) -> None:
    for argument, value in numbers.items():
        name, wanted, least = _RANGES[argument]
        if not math.isfinite(value) or value < least:
            raise LoclinError(f"expected {name} {wanted}, found {value}: give another")


@functools.lru_cache(maxsize=4096)
def _maximum_moments(n: int) -> tuple[float, float]:
    """E[M] and E[M²] of the maximum of n standard normals: ∫ xᵖ n φ(x) Φ(x)ⁿ⁻¹ dx.

    The integrand is analytic and falls off on both sides, so the trapezium rule converges
    geometrically: 4,001 points leave nothing but round-off up to n of 10¹².
    """
    _check(n=n)
    x, step = np.linspace(-10.0, 14.0, 4001, retstep=True)
    density = np.exp(
        math.log(n) - x**2 / 2 - math.log(2 * math.pi) / 2 + (n - 1) * special.log_ndtr(x)
    )
    return float((x * density).sum() * step), float((x**2 * density).sum() * step)


def expected_maximum(n: int) -> float:
    """m_N = E[max of N independent standard normals], by quadrature (measures §10).

    >>> [round(expected_maximum(n), 4) for n in (1, 2, 100, 1_000_000)]
    [0.0, 0.5642, 2.5076, 4.8629]
    """
    return 0.0 if n == 1 else _maximum_moments(n)[0]


def expected_squared_maximum(n: int) -> float:
    """E[M²], M the maximum of N independent standard normals (§10).

    >>> round(expected_squared_maximum(3), 4)  # 1 + √3/2π
    1.2757
    """
    return 1.0 if n in (1, 2) else _maximum_moments(n)[1]


def best_of_n_gain(
    *, gradient: float, trace: float, along: float, n: int, sigma: float, noise: float = 0.0
) -> float:
    """Expected decrease of the loss by the best of N: σ‖g‖m_N − (σ²/2)[tr H + (E[M²]−1) ĝᵀHĝ].

    With evaluation noise the selected candidate is less aligned than the best one: with ρ² =
    σ²‖g‖²/(σ²‖g‖²+τ²), m_N becomes ρ m_N and E[M²]−1 becomes ρ²(E[M²]−1). The decrease is the true
    one, as a second scoring on other data would find it; the winner's own score promises more. It
    is independent of D when tr H is. Valid well below `valid_up_to`, and for m_N ≪ √(2r), r = (tr
    H)²/‖H‖_F²: what selection gains from the curvature's own fluctuation is left out.

    >>> round(best_of_n_gain(gradient=1.0, trace=10.0, along=0.5, n=100, sigma=0.1), 4)
    0.1871
    """
    _check(gradient=gradient, trace=trace, along=along, sigma=sigma, noise=noise)
    signal = sigma * gradient
    heard = signal / math.hypot(signal, noise) if signal else 0.0  # ρ
    second = 1 + heard**2 * (expected_squared_maximum(n) - 1)
    linear = sigma * gradient * (heard * expected_maximum(n))
    return linear - sigma**2 / 2 * (trace + (second - 1) * along)


def second_order_gain(
    *,
    gradient: float,
    trace: float,
    along: float,
    frobenius: float,
    cube: float,
    n: int,
    sigma: float,
) -> float:
    """The same with selection on the curvature's own fluctuation, which `best_of_n_gain` leaves
    out: s m_N − σ² tr H/2 − (E[M²]−1)[σ⁴gᵀHg/2 + σ⁶ tr H³/6]/s², s² = σ²‖g‖² + σ⁴‖H‖_F²/2.

    Mean, variance and third moment of a candidate's gain on a quadratic are exact; their maximum is
    that of the normal, bent by the skewness (Cornish and Fisher 1938). Within 5 % up to
    `valid_up_to`, where the first form is 20 to 60 % off; it fails where a few eigenvalues carry
    ‖H‖_F, at large N.

    >>> known = {"gradient": 1.0, "trace": 0.0, "along": 0.0, "cube": 0.0, "n": 10, "sigma": 1.0}
    >>> round(second_order_gain(frobenius=math.sqrt(2), **known), 4)  # √2 m_N
    2.1761
    """
    _check(gradient=gradient, trace=trace, along=along, frobenius=frobenius, cube=cube, sigma=sigma)
    spread = math.hypot(sigma * gradient, sigma**2 * frobenius / math.sqrt(2))  # s
    if not spread:
        return -(sigma**2) / 2 * trace
    skew = sigma**4 * along * gradient**2 / 2 + sigma**6 * cube / 6
    bent = (expected_squared_maximum(n) - 1) * skew / spread**2
    return spread * expected_maximum(n) - sigma**2 / 2 * trace - bent


def best_sigma(*, gradient: float, trace: float, n: int, along: float = 0.0) -> float | None:
    """σ* = ‖g‖m_N / [tr H + (E[M²]−1) ĝᵀHĝ], where the gain without evaluation noise is largest.

    None where the bracket is not positive: to second order the gain grows with σ without end, and
    only the law's validity limits it.

    >>> round(best_sigma(gradient=1.0, trace=10.0, n=100), 4)
    0.2508
    """
    _check(gradient=gradient, trace=trace, along=along)
    bent = trace + (expected_squared_maximum(n) - 1) * along
    return gradient * expected_maximum(n) / bent if bent > 0 else None


def best_gain(*, gradient: float, trace: float, n: int, along: float = 0.0) -> float | None:
    """Gain at σ*: ‖g‖²m_N² / 2[tr H + (E[M²]−1) ĝᵀHĝ]; None where there is no σ*.

    >>> round(best_gain(gradient=1.0, trace=2.0, n=100), 3)
    1.572
    """
    sigma = best_sigma(gradient=gradient, trace=trace, n=n, along=along)
    return None if sigma is None else sigma * gradient * expected_maximum(n) / 2


def valid_up_to(*, gradient: float, frobenius: float) -> float:
    """√2‖g‖/‖H‖_F: the σ at which the curvature's fluctuation σ²‖H‖_F/√2 is as large as σ‖g‖.

    The law holds well below it; infinite for a loss without curvature.

    >>> round(valid_up_to(gradient=1.0, frobenius=2.0), 4)
    0.7071
    """
    _check(gradient=gradient, frobenius=frobenius)
    return math.sqrt(2) * gradient / frobenius if frobenius else math.inf


def alignment_correlation(
    *, gradient: float, frobenius: float, sigma: float, noise: float = 0.0
) -> float:
    """Correlation r of gain and alignment −ĝᵀz over candidates, exact on a quadratic.

    r² = σ²‖g‖²/(σ²‖g‖² + σ⁴‖H‖_F²/2 + τ²); 0 where there is no gradient.

    >>> round(alignment_correlation(gradient=1.0, frobenius=2.0, sigma=0.1), 4)
    0.9901
    """
    _check(gradient=gradient, frobenius=frobenius, sigma=sigma, noise=noise)
    signal, bent = sigma * gradient, sigma**2 * frobenius / math.sqrt(2)
    return signal / math.hypot(signal, bent, noise) if signal else 0.0


def candidates_needed(
    target_gain: float,
    *,
    gradient: float,
    trace: float,
    along: float,
    sigma: float,
    noise: float = 0.0,
    most: int = MOST_CANDIDATES,
) -> int | None:
    """Smallest N up to `most` whose `best_of_n_gain` reaches a gain (nats) at this σ, or None.

    Where ĝᵀHĝ > 0 the gain rises with N to one peak and falls after it, because the best candidates
    go ever further along the gradient; the search is up to that peak.

    >>> candidates_needed(0.2, gradient=1.0, trace=10.0, along=0.0, sigma=0.1)
    98
    """
    _check(target_gain=target_gain, n=most)
    known = {"gradient": gradient, "trace": trace, "along": along, "sigma": sigma, "noise": noise}

    def gain(n: int) -> float:
        return best_of_n_gain(n=n, **known)

    peak = _first(most, lambda n: gain(n + 1) <= gain(n)) if along > 0 else most
    reached = gain(peak) >= target_gain
    return _first(peak, lambda n: gain(n) >= target_gain) if reached else None


def _first(most: int, holds: Callable[[int], bool]) -> int:
    """The smallest n from 1 from which on something holds, or `most`, by bisection."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def signal_density(energy: float, k: int) -> float:
    """‖P_S g‖²/k: the gradient's energy in a subspace for each of its k dimensions (§10).

    >>> signal_density(2.0, 8)
    0.25
    """
    _check(energy=energy, k=k)
    return energy / k


def lift(capture: float, dimension: int, k: int) -> float:
    """Signal density over that of a random subspace: capture·D/k, capture = ‖P_S g‖²/‖g‖².

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
    """Linear part of the gain in a subspace at RMS radius R = σ√k: R·m_N·√density.

    >>> round(subspace_linear_gain(radius=2.0, n=100, density=0.25), 4)
    2.5076
    """
    _check(radius=radius, density=density)
    return radius * expected_maximum(n) * math.sqrt(density)


def subspace_best_gain(*, energy: float, n: int, trace: float) -> float | None:
    """Gain at a subspace's own σ*: ‖P_S g‖²m_N²/(2 tr(P_S H)); None where that trace is ≤ 0.

    >>> round(subspace_best_gain(energy=1.0, n=100, trace=10.0), 4)
    0.3144
    """
    _check(energy=energy)
    return best_gain(gradient=math.sqrt(energy), trace=trace, n=n)
