import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loclin import law
from loclin.errors import LoclinError
from tests.properties import assert_within_error
from tests.reference import folded_gradient_norm

QUADRATIC = {"gradient": 1.0, "trace": 10.0, "along": 0.5}


def candidates(
    spectrum: np.ndarray, gradient: np.ndarray, *, n: int, trials: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of trials × N candidates: −g·z and zᵀHz/2, whatever σ; H diagonal."""
    rng = np.random.default_rng(seed)
    slope, bend = np.empty((trials, n)), np.empty((trials, n))
    for t in range(trials):
        z = rng.standard_normal((n, len(spectrum)), dtype=np.float32)
        slope[t], bend[t] = (
            -z @ gradient.astype(np.float32),
            np.square(z) @ spectrum.astype(np.float32) / 2,
        )
    return slope, bend


def best(
    slope: np.ndarray, bend: np.ndarray, sigma: float, noise: np.ndarray | float = 0.0
) -> np.ndarray:
    """True gain, in each trial, of the candidate whose noisy gain is largest."""
    gains = sigma * slope - sigma**2 * bend
    return np.take_along_axis(gains, (gains + noise).argmax(1)[:, None], 1)[:, 0]


def facts(spectrum: np.ndarray, gradient: np.ndarray) -> dict[str, float]:
    norm = float(np.linalg.norm(gradient))
    return {
        "gradient": norm,
        "trace": float(spectrum.sum()),
        "along": float(spectrum @ gradient**2 / norm**2),
    }


def flat_start(dimension: int, seed: int = 1) -> np.ndarray:
    g = np.random.default_rng(seed).standard_normal(dimension)
    return g / np.linalg.norm(g)


SPECTRA = {
    "isotropic": np.full(300, 0.03),
    "decaying": 1.0 / np.arange(1, 301) ** 0.5,
    "of both signs": np.linspace(-0.04, 0.08, 300),
    "downwards": np.full(300, -0.03),
    "of trace zero": np.linspace(-0.06, 0.06, 300),
}


# the maximum


@pytest.mark.parametrize(
    ("n", "mean", "square"),
    [
        (1, 0.0, 1.0),
        (2, 1 / math.sqrt(math.pi), 1.0),
        (3, 1.5 / math.sqrt(math.pi), 1 + math.sqrt(3) / (2 * math.pi)),
        (4, 6 / math.pi**1.5 * math.atan(math.sqrt(2)), 1 + math.sqrt(3) / math.pi),
        (
            5,
            5 / (4 * math.sqrt(math.pi)) + 15 / (2 * math.pi**1.5) * math.asin(1 / 3),
            1
            + 5 * math.sqrt(3) / (4 * math.pi)
            + 5 * math.sqrt(3) / (2 * math.pi**2) * math.asin(0.25),
        ),
    ],
)
def test_the_maximum_of_a_few_has_closed_forms(n: int, mean: float, square: float) -> None:
    assert math.isclose(law.expected_maximum(n), mean, rel_tol=1e-12, abs_tol=1e-14)
    assert math.isclose(law.expected_squared_maximum(n), square, rel_tol=1e-12)


@pytest.mark.parametrize("n", [7, 1000, 1_000_000])
def test_the_maximum_equals_an_integral_in_thirty_digits(n: int) -> None:
    with mpmath.workdps(30):
        for power, found in ((1, law.expected_maximum(n)), (2, law.expected_squared_maximum(n))):
            exact = mpmath.quad(
                lambda x, p=power: x**p * n * mpmath.npdf(x) * mpmath.ncdf(x) ** (n - 1),
                [-8, 0, 2, 4, 5, 6, 8, 12],
            )
            assert math.isclose(found, float(exact), rel_tol=1e-13)


@pytest.mark.parametrize("n", [2, 10, 100])
def test_the_maximum_agrees_with_simulation_and_with_bounds(n: int) -> None:
    draws = np.random.default_rng(n).standard_normal((20_000, n)).max(1)
    assert_within_error(draws, law.expected_maximum(n))
    assert_within_error(draws**2, law.expected_squared_maximum(n))
    assert law.expected_maximum(n) <= math.sqrt(2 * math.log(n))
    blom = math.sqrt(2) * float(mpmath.erfinv(2 * (n - 0.375) / (n + 0.25) - 1))
    assert math.isclose(law.expected_maximum(n), blom, rel_tol=0.05)


def test_a_maximum_of_none_is_refused() -> None:
    with pytest.raises(
        LoclinError, match=r"expected a number of candidates of at least 1, found 0: give another"
    ):
        law.expected_maximum(0)
    with pytest.raises(LoclinError, match="candidates"):
        law.expected_squared_maximum(-3)


# the gain


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("n", [1, 8, 64])
def test_best_of_n_on_quadratics(name: str, n: int) -> None:
    spectrum, g = SPECTRA[name], flat_start(300)
    slope, bend = candidates(spectrum, g, n=n, trials=600, seed=n)
    known = facts(spectrum, g)
    reach = law.valid_up_to(gradient=1.0, frobenius=float(np.linalg.norm(spectrum)))
    for share in (
        0.02,
        0.1,
    ):  # the law's domain: the curvature's fluctuation is 2 % and 10 % of the gradient's
        sigma = share * reach
        # selection on that fluctuation, which the law leaves out, adds share²/2 of the first term
        gains = best(slope, bend, sigma) - share**2 / 2 * sigma * law.expected_maximum(n)
        assert_within_error(gains, law.best_of_n_gain(**known, n=n, sigma=sigma))


def test_the_curvature_along_the_gradient_counts_beyond_its_share_of_the_trace() -> None:
    """All curvature in one direction: the gradient's own or another one, at the same trace."""
    spectrum = np.zeros(100)
    spectrum[0] = 1.0
    for g in (np.eye(100)[0], np.eye(100)[1]):
        slope, bend = candidates(spectrum, g, n=32, trials=2000, seed=3)
        predicted = law.best_of_n_gain(**facts(spectrum, g), n=32, sigma=0.05)
        assert_within_error(best(slope, bend, 0.05), predicted)
    along, across = (
        law.best_of_n_gain(gradient=1.0, trace=1.0, along=a, n=32, sigma=0.05, noise=0.0)
        for a in (1.0, 0.0)
    )
    assert math.isclose(across - along, 0.05**2 / 2 * (law.expected_squared_maximum(32) - 1))


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.5])
def test_evaluation_noise_lowers_what_the_selected_one_gains(noise: float) -> None:
    """Curvature along the gradient alone is exact to second order, so the noise's share in both
    terms shows.
    """
    spectrum, g = np.zeros(50), np.eye(50)[0]
    spectrum[0] = 2.0
    slope, bend = candidates(spectrum, g, n=32, trials=6000, seed=4)
    heard = noise * np.random.default_rng(5).standard_normal(slope.shape)
    # selection hears −σg·z and the noise, as the law has it
    chosen = (0.05 * slope + heard).argmax(1)[:, None]
    gains = np.take_along_axis(0.05 * slope - 0.05**2 * bend, chosen, 1)[:, 0]
    predicted = law.best_of_n_gain(**facts(spectrum, g), n=32, sigma=0.05, noise=noise)
    assert_within_error(gains, predicted)
    # the second term by itself, which the first hides: u² of the chosen one, as tr H = ĝᵀHĝ = 2
    straight = law.best_of_n_gain(gradient=1.0, trace=0.0, along=0.0, n=32, sigma=0.05, noise=noise)
    assert_within_error(np.take_along_axis(bend, chosen, 1)[:, 0], (straight - predicted) / 0.05**2)
    first = law.expected_maximum(32) * 0.05**2 / math.hypot(0.05, noise)
    assert math.isclose(
        law.best_of_n_gain(gradient=1.0, trace=0.0, along=0.0, n=32, sigma=0.05, noise=noise),
        first,
        rel_tol=1e-12,
    )


def test_the_winners_own_score_promises_more_than_it_gains() -> None:
    """Why winners are scored again: the selecting score is m_N √(σ²‖g‖²+τ²) above zero, the gain a
    part of that.
    """
    slope, bend = candidates(np.zeros(20), np.eye(20)[0], n=64, trials=3000, seed=6)
    seen = 0.1 * slope + 0.2 * np.random.default_rng(7).standard_normal(slope.shape)
    assert_within_error(seen.max(1), law.expected_maximum(64) * math.hypot(0.1, 0.2))
    truth = law.best_of_n_gain(gradient=1.0, trace=0.0, along=0.0, n=64, sigma=0.1, noise=0.2)
    assert_within_error(np.take_along_axis(0.1 * slope, seen.argmax(1)[:, None], 1)[:, 0], truth)
    assert np.allclose(bend, 0)


@pytest.mark.parametrize("dimension", [200, 10_000, 1_000_000])
def test_the_gain_does_not_depend_on_the_dimension_where_the_trace_is_fixed(dimension: int) -> None:
    """Isotropic curvature h = tr H/D; the D − 1 directions beside the gradient enter by a χ² alone,
    drawn as such.
    """
    rng, n, trials, trace, sigma = np.random.default_rng(dimension), 64, 4000, 2.0, 0.2
    u = rng.standard_normal((trials, n))
    bend = trace / dimension / 2 * (u**2 + rng.chisquare(dimension - 1, (trials, n)))
    share = sigma * trace / math.sqrt(2 * dimension)  # σ‖H‖_F/(√2‖g‖)
    gains = best(u, bend, sigma) - share**2 / 2 * sigma * law.expected_maximum(n)
    without = law.expected_maximum(n) * sigma - sigma**2 / 2 * trace  # no D in it
    assert_within_error(
        gains,
        law.best_of_n_gain(gradient=1.0, trace=trace, along=trace / dimension, n=n, sigma=sigma),
    )
    assert math.isclose(gains.mean(), without, rel_tol=0.02)


@given(
    gradient=st.floats(0.01, 100),
    trace=st.floats(-100, 100),
    along=st.floats(-10, 10),
    n=st.integers(1, 10_000),
    sigma=st.floats(1e-4, 1),
    noise=st.floats(0, 10),
    scale=st.floats(0.01, 100),
)
@settings(deadline=None, max_examples=60)
def test_units_cancel(
    gradient: float, trace: float, along: float, n: int, sigma: float, noise: float, scale: float
) -> None:
    """Weights in other units (σ → sσ, g → g/s, H → H/s²) change no gain; losses in other units
    change it as themselves.
    """
    gain = law.best_of_n_gain(
        gradient=gradient, trace=trace, along=along, n=n, sigma=sigma, noise=noise
    )
    terms = sigma * gradient * law.expected_maximum(n) + sigma**2 * (abs(trace) + 20 * abs(along))
    weights = law.best_of_n_gain(
        gradient=gradient / scale,
        trace=trace / scale**2,
        along=along / scale**2,
        n=n,
        sigma=sigma * scale,
        noise=noise,
    )
    losses = law.best_of_n_gain(
        gradient=gradient * scale,
        trace=trace * scale,
        along=along * scale,
        n=n,
        sigma=sigma,
        noise=noise * scale,
    )
    assert math.isclose(gain, weights, rel_tol=1e-9, abs_tol=1e-12 * terms)
    assert math.isclose(gain * scale, losses, rel_tol=1e-9, abs_tol=1e-12 * terms * scale)


def test_one_candidate_or_no_gradient_only_pays_for_the_curvature() -> None:
    assert math.isclose(law.best_of_n_gain(**QUADRATIC, n=1, sigma=0.1), -0.05)
    none = {"gradient": 0.0, "trace": 10.0, "along": 0.5, "sigma": 0.1}
    assert math.isclose(law.best_of_n_gain(**none, n=1000), -0.05)
    assert math.isclose(law.best_of_n_gain(**none, n=1000, noise=0.3), -0.05)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"sigma": 0.0}, "expected σ above 0, found 0.0"),
        ({"sigma": math.inf}, "expected σ above 0, found inf"),
        ({"gradient": -1.0}, "expected a gradient norm of at least 0, found -1.0"),
        ({"noise": -0.1}, "expected evaluation noise of at least 0, found -0.1"),
        ({"trace": math.nan}, "expected a trace that is finite, found nan"),
        ({"along": math.inf}, "expected a curvature that is finite, found inf"),
        ({"n": 0}, "expected a number of candidates of at least 1, found 0"),
    ],
)
def test_what_makes_no_sense_is_refused(bad: dict[str, float], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        law.best_of_n_gain(**(QUADRATIC | {"n": 10, "sigma": 0.1} | bad))


# the second-order form


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("n", [10, 64])
def test_the_second_order_form_holds_to_the_edge(name: str, n: int) -> None:
    """Within 5 % of the slope's gain at the edge, where the first form is 20 to 60 % off."""
    spectrum, g = SPECTRA[name], flat_start(300)
    slope, bend = candidates(spectrum, g, n=n, trials=4000, seed=n)
    frobenius, known = float(np.linalg.norm(spectrum)), facts(spectrum, g)
    more = {"frobenius": frobenius, "cube": float((spectrum**3).sum())}
    for share in (0.25, 0.5, 1.0):
        sigma = share * law.valid_up_to(gradient=1.0, frobenius=frobenius)
        gain, scale = best(slope, bend, sigma).mean(), sigma * law.expected_maximum(n)
        second = law.second_order_gain(**known, **more, n=n, sigma=sigma)
        assert abs(second - gain) < 0.05 * scale
    first = law.best_of_n_gain(**known, n=n, sigma=sigma)
    assert 0.2 * scale < abs(first - gain) < 0.6 * scale


def test_the_second_order_form_fails_for_spiky_curvature_at_large_n() -> None:
    """One eigenvalue carries all of ‖H‖_F: the gain is bounded, the form is not."""
    spectrum, g = np.eye(50)[0], np.eye(50)[1]
    slope, bend = candidates(spectrum, g, n=1000, trials=300, seed=1)
    sigma = law.valid_up_to(gradient=1.0, frobenius=1.0)
    known = facts(spectrum, g) | {"frobenius": 1.0, "cube": 1.0, "n": 1000, "sigma": sigma}
    gain = best(slope, bend, sigma).mean()
    assert abs(law.second_order_gain(**known) - gain) > 0.1 * sigma * law.expected_maximum(1000)


def test_to_first_order_both_forms_agree() -> None:
    more = {"frobenius": 3.0, "cube": 5.0, "n": 50, "sigma": 1e-4}
    first = law.best_of_n_gain(**QUADRATIC, n=50, sigma=1e-4)
    assert math.isclose(law.second_order_gain(**QUADRATIC, **more), first, rel_tol=1e-6)
    none = {"gradient": 0.0, "along": 0.0, "frobenius": 0.0, "cube": 0.0, "n": 50, "sigma": 0.1}
    assert math.isclose(law.second_order_gain(trace=2.0, **none), -0.01)
    with pytest.raises(LoclinError, match="expected tr H³ that is finite, found nan"):
        law.second_order_gain(**QUADRATIC, **(more | {"cube": math.nan}))


# the best σ


@pytest.mark.parametrize("name", ["isotropic", "decaying"])
def test_the_best_sigma_is_where_simulated_gains_peak(name: str) -> None:
    spectrum, g, n = SPECTRA[name], flat_start(300), 16
    known = facts(spectrum, g)
    sigma, gain = (f(**known, n=n) for f in (law.best_sigma, law.best_gain))
    assert sigma is not None
    assert gain is not None
    slope, bend = candidates(spectrum, g, n=n, trials=2000, seed=8)
    grid = sigma * np.linspace(0.4, 1.8, 29)
    curve = np.array([best(slope, bend, s).mean() for s in grid])
    # around the peak the gain falls by (1 − σ/σ*)²: 15 % of σ is 2 % of the gain
    assert abs(grid[curve.argmax()] / sigma - 1) <= 0.15
    share = sigma / law.valid_up_to(gradient=1.0, frobenius=float(np.linalg.norm(spectrum)))
    assert share < 0.25
    assert math.isclose(curve.max(), gain * (1 + share**2), rel_tol=0.03)


@given(
    gradient=st.floats(0.1, 10),
    trace=st.floats(0.1, 100),
    along=st.floats(0, 5),
    n=st.integers(2, 5000),
)
@settings(deadline=None, max_examples=40)
def test_the_best_sigma_is_the_laws_own_peak(
    gradient: float, trace: float, along: float, n: int
) -> None:
    known = {"gradient": gradient, "trace": trace, "along": along, "n": n}
    sigma, gain = law.best_sigma(**known), law.best_gain(**known)
    assert sigma is not None
    assert gain is not None
    assert math.isclose(law.best_of_n_gain(**known, sigma=sigma), gain, rel_tol=1e-9)
    for factor in (0.9, 1.1):
        assert law.best_of_n_gain(**known, sigma=sigma * factor) < gain
    assert math.isclose(
        law.best_gain(gradient=gradient, trace=trace, n=n) or 0.0,
        gradient**2 * law.expected_maximum(n) ** 2 / (2 * trace),
    )


def test_without_upward_curvature_there_is_no_best_sigma() -> None:
    for trace in (0.0, -3.0):
        assert law.best_sigma(gradient=1.0, trace=trace, n=10) is None
        assert law.best_gain(gradient=1.0, trace=trace, n=10) is None
    assert (
        law.best_sigma(gradient=1.0, trace=1.0, n=100, along=-1.0) is None
    )  # bends down where the best ones go
    assert law.best_sigma(gradient=0.0, trace=1.0, n=10) == 0.0
    assert law.best_sigma(gradient=1.0, trace=1.0, n=1) == 0.0


# the domain, the correlation


@pytest.mark.parametrize("name", ["isotropic", "of trace zero"])
def test_the_domain_ends_where_the_two_fluctuations_are_equal(name: str) -> None:
    spectrum, g = SPECTRA[name], flat_start(300)
    sigma = law.valid_up_to(gradient=1.0, frobenius=float(np.linalg.norm(spectrum)))
    slope, bend = candidates(spectrum, g, n=40_000, trials=1, seed=9)
    assert math.isclose((sigma * slope).std(), (sigma**2 * bend).std(), rel_tol=0.03)
    assert law.valid_up_to(gradient=1.0, frobenius=0.0) == math.inf
    assert law.valid_up_to(gradient=0.0, frobenius=1.0) == 0.0


def test_beyond_its_domain_the_law_is_wrong() -> None:
    """Where curvature takes over, selection on it gains more than the law says."""
    spectrum, g = SPECTRA["of trace zero"], flat_start(300)
    sigma = 3 * law.valid_up_to(gradient=1.0, frobenius=float(np.linalg.norm(spectrum)))
    slope, bend = candidates(spectrum, g, n=64, trials=500, seed=10)
    assert best(slope, bend, sigma).mean() > 1.5 * law.best_of_n_gain(
        **facts(spectrum, g), n=64, sigma=sigma
    )


@pytest.mark.parametrize("name", ["isotropic", "decaying", "of both signs"])
@pytest.mark.parametrize(("share", "noise"), [(0.1, 0.0), (1.0, 0.0), (3.0, 0.0), (0.5, 1.0)])
def test_gain_correlates_with_alignment_as_predicted(name: str, share: float, noise: float) -> None:
    spectrum, g, count = SPECTRA[name], flat_start(300), 20_000
    frobenius = float(np.linalg.norm(spectrum))
    sigma = share * law.valid_up_to(gradient=1.0, frobenius=frobenius)
    slope, bend = candidates(spectrum, g, n=count, trials=1, seed=11)
    heard = noise * sigma * np.random.default_rng(12).standard_normal(count)
    found = np.corrcoef(slope[0], sigma * slope[0] - sigma**2 * bend[0] + heard)[0, 1]
    expected = law.alignment_correlation(
        gradient=1.0, frobenius=frobenius, sigma=sigma, noise=noise * sigma
    )
    assert (
        abs(found - expected) < 4 * (1 - expected**2) / math.sqrt(count) * 2
    )  # χ²'s tails double the error
    assert math.isclose(expected**-2, 1 + share**2 + noise**2, rel_tol=1e-9)


def test_without_a_gradient_nothing_correlates() -> None:
    assert law.alignment_correlation(gradient=0.0, frobenius=1.0, sigma=0.1) == 0
    assert law.alignment_correlation(gradient=0.0, frobenius=0.0, sigma=0.1, noise=0.0) == 0
    assert law.alignment_correlation(gradient=1.0, frobenius=0.0, sigma=0.1) == 1
    with pytest.raises(LoclinError, match="Frobenius"):
        law.alignment_correlation(gradient=1.0, frobenius=-1.0, sigma=0.1)


# how many candidates


@given(share=st.floats(0.05, 1.2), along=st.floats(-2, 2), noise=st.floats(0, 0.3))
@settings(deadline=None, max_examples=40)
def test_the_number_needed_is_the_first_that_reaches_the_wish(
    share: float, along: float, noise: float
) -> None:
    known = {"gradient": 1.0, "trace": 5.0, "along": along, "sigma": 0.1, "noise": noise}
    curve = [law.best_of_n_gain(**known, n=n) for n in range(1, 401)]
    target = share * max(curve)
    by_hand = next((n for n, gain in enumerate(curve, 1) if gain >= target), None)
    assert law.candidates_needed(target, **known, most=400) == by_hand


def test_a_gain_that_curvature_forbids_takes_no_number_of_candidates() -> None:
    steep = {"gradient": 1.0, "trace": 1.0, "along": 8.0, "sigma": 0.1}
    curve = [law.best_of_n_gain(**steep, n=n) for n in range(1, 60)]
    peak = int(np.argmax(curve)) + 1
    assert 1 < peak < 59  # the gain falls beyond it
    assert law.candidates_needed(max(curve), **steep) == peak
    assert law.candidates_needed(max(curve) + 1e-9, **steep) is None
    assert law.candidates_needed(-1.0, **steep) == 1
    assert law.candidates_needed(0.1, gradient=0.0, trace=1.0, along=8.0, sigma=0.1) is None
    with pytest.raises(LoclinError, match="a target gain that is finite, found nan"):
        law.candidates_needed(math.nan, **steep)


# tied noise


def test_tied_noise_sees_the_folded_gradient() -> None:
    """Noise that starts one stream anew for every tensor, against the norm of the gradient folded
    over them.
    """
    rng = np.random.default_rng(13)
    pieces = {
        n: torch.from_numpy(rng.standard_normal(s))
        for n, s in {"a": (4, 5), "b": (7,), "c": (2, 3, 5)}.items()
    }
    stream = rng.standard_normal((40_000, 30))
    slopes = sum(stream[:, : p.numel()] @ p.flatten().numpy() for p in pieces.values())
    norm = folded_gradient_norm(pieces)
    assert_within_error(slopes**2, norm**2)
    slope = slopes.reshape(-1, 16)
    assert_within_error(
        0.01 * slope.max(1),
        law.best_of_n_gain(gradient=norm, trace=0.0, along=0.0, n=16, sigma=0.01),
    )


def test_folding_adds_and_cancels_what_independent_noise_would_not() -> None:
    g = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    assert math.isclose(folded_gradient_norm({"a": g}), float(g.norm()), rel_tol=1e-6)
    assert math.isclose(
        folded_gradient_norm({"a": g, "b": g.flatten()}), 2 * float(g.norm()), rel_tol=1e-6
    )
    assert folded_gradient_norm({"a": g, "b": -g}) == 0  # tied search is blind to such a gradient
    assert folded_gradient_norm({"a": torch.tensor([3.0]), "b": torch.tensor([0.0, 4.0])}) == 5
    # bf16 weights: summed in float64, so that nothing small is lost beside 256
    many = {
        str(i): torch.full((2,), v, dtype=torch.bfloat16) for i, v in enumerate([256.0] + [0.5] * 8)
    }
    assert math.isclose(folded_gradient_norm(many), 260 * math.sqrt(2), rel_tol=1e-12)


# subspaces


def test_searching_in_a_subspace_gains_what_its_density_predicts() -> None:
    """δ = σ Σ zᵢqᵢ in a k-subspace of a quadratic: the law with P_S g and P_S H P_S, at one radius
    and at its own best σ.
    """
    rng, dimension, k, n = np.random.default_rng(14), 120, 40, 16
    spectrum, g = np.linspace(0.01, 0.05, dimension), 2 * flat_start(dimension)
    basis = np.linalg.qr(rng.standard_normal((dimension, k)))[0].T
    inside, curvature = basis @ g, (basis * spectrum) @ basis.T
    energy = float(inside @ inside)
    z = rng.standard_normal((4000, n, k))
    slope, bend = -z @ inside, np.einsum("tni,ij,tnj->tn", z, curvature, z, optimize=True) / 2
    density = law.signal_density(energy, k)
    radius = 0.05
    assert_within_error(
        radius / math.sqrt(k) * slope.max(1),
        law.subspace_linear_gain(radius=radius, n=n, density=density),
    )
    known = {"gradient": math.sqrt(energy), "trace": float(np.trace(curvature)), "n": n}
    along = float(inside @ curvature @ inside) / energy
    sigma, gain = (
        law.best_sigma(**known),
        law.subspace_best_gain(energy=energy, n=n, trace=known["trace"]),
    )
    assert sigma is not None
    assert gain is not None
    share = sigma * float(np.linalg.norm(curvature)) / math.sqrt(2 * energy)
    gains = best(slope, bend, sigma) - share**2 / 2 * sigma * math.sqrt(
        energy
    ) * law.expected_maximum(n)
    assert_within_error(gains, law.best_of_n_gain(**known, along=along, sigma=sigma))
    assert math.isclose(gain, law.best_of_n_gain(**known, along=0.0, sigma=sigma), rel_tol=1e-9)
    assert math.isclose(
        law.lift(energy / 4, dimension, k), density / law.signal_density(4.0, dimension)
    )


def test_a_random_subspace_has_no_lift() -> None:
    rng, g = np.random.default_rng(15), flat_start(200)
    captures = [
        np.sum((np.linalg.qr(rng.standard_normal((200, 10)))[0].T @ g) ** 2) for _ in range(400)
    ]
    assert_within_error(np.array([law.lift(float(c), 200, 10) for c in captures]), 1.0)


def test_subspaces_that_make_no_sense_are_refused() -> None:
    assert law.subspace_best_gain(energy=1.0, n=10, trace=-1.0) is None
    assert law.subspace_best_gain(energy=0.0, n=10, trace=1.0) == 0
    assert law.subspace_linear_gain(radius=1.0, n=1, density=3.0) == 0
    with pytest.raises(LoclinError, match="a dimension of at least 1, found 0"):
        law.signal_density(1.0, 0)
    with pytest.raises(LoclinError, match="an energy of at least 0"):
        law.subspace_best_gain(energy=-1.0, n=10, trace=1.0)
    with pytest.raises(LoclinError, match=r"k from 1 to D = 10, found 0\.5 and 11"):
        law.lift(0.5, 10, 11)
    with pytest.raises(LoclinError, match="a capture from 0 to 1"):
        law.lift(1.5, 10, 1)
    with pytest.raises(LoclinError, match="a radius above 0"):
        law.subspace_linear_gain(radius=0.0, n=10, density=1.0)
