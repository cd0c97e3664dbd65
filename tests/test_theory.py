import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

from loclin import theory
from loclin.errors import LoclinError
from loclin.geometry.gramian import future_capture, prefix_capture
from loclin.geometry.krylov import lanczos
from loclin.geometry.subspace import Subspace
from tests.planted import drifting_steps, filtered_steps, heavy_ball_steps, white_steps
from tests.reference import drift_capture, drift_future_capture

KS = [1, 5, 10, 20, 40]
DIMENSION = 4000  # D ≫ T, as the closed forms assume
DRAWS = 24


def mean_curves(make, ks=KS) -> tuple[np.ndarray, np.ndarray]:
    """Prefix and future captures of planted runs, by the code that measures real ones."""
    grams = [(u := make(np.random.default_rng(seed))) @ u.T for seed in range(DRAWS)]
    return np.array([prefix_capture(g, ks) for g in grams]), np.array(
        [future_capture(g, ks) for g in grams]
    )


def assert_near(curves: np.ndarray, expected: np.ndarray) -> None:
    """Within Monte-Carlo error plus the O(T/D) that the closed forms neglect."""
    error = 4 * curves.std(0, ddof=1) / math.sqrt(DRAWS) + 2 * 50 / DIMENSION
    assert (np.abs(curves.mean(0) - expected) < error).all()


def test_white_steps() -> None:
    prefix, future = mean_curves(lambda rng: white_steps(50, DIMENSION, rng))
    assert_near(prefix, np.array(KS) / 50)
    assert_near(prefix, theory.white_capture(np.ones(50), KS))
    assert_near(future, np.zeros(len(KS)))


def test_white_steps_with_the_runs_own_norms() -> None:
    norms = np.geomspace(1, 0.05, 50)
    prefix, _ = mean_curves(lambda rng: white_steps(50, DIMENSION, rng, norms))
    assert_near(prefix, theory.white_capture(norms, KS))


def test_heavy_ball_on_white_noise() -> None:
    prefix, _ = mean_curves(lambda rng: heavy_ball_steps(50, DIMENSION, 0.9, rng))
    assert_near(prefix, theory.heavy_ball_capture(50, 0.9, KS))


@pytest.mark.parametrize("s", [0.02, 0.29, 2.0])
def test_stationary_drift(s: float) -> None:
    prefix, future = mean_curves(lambda rng: drifting_steps(50, DIMENSION, s, rng))
    assert_near(prefix, drift_capture(50, KS, s))
    assert_near(future, drift_future_capture(50, KS, s))


def test_a_high_capture_alone_shows_nothing() -> None:
    """The example of measures §3: a constant drift with s = 0.29 reaches the paper's 77 %."""
    assert round(float(drift_capture(100, [10], 0.29)[0]), 2) == 0.77
    assert round(float(drift_future_capture(100, [10], 0.29)[0]), 2) == 0.72


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("at_rest", [False, True])
@pytest.mark.parametrize("s", [0.0, 0.03, 0.3])
def test_the_drift_is_fitted_without_bias(s: float, at_rest: bool, momentum: float) -> None:
    response = theory.impulse_response(range(101), momentum)
    fitted = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        u = filtered_steps(response, s, np.geomspace(1, 0.2, 100), 100_000, rng, at_rest=at_rest)
        fitted.append(theory.fit_drift(u @ u.T, response, at_rest=at_rest))
    error = 4 * np.std(fitted) / math.sqrt(len(fitted))
    assert abs(np.mean(fitted) - s) < (0.002 if s == 0 else error)  # never below 0


def adam_response(steps: int) -> np.ndarray:
    """m̂_t = (1−β) Σ_i β^{t−i} g_i / (1 − β^t)."""
    i = np.arange(steps)
    kept = np.where(i[:, None] >= i, 0.9 ** np.maximum(i[:, None] - i, 0), 0.0)
    return 0.1 * kept / (1 - 0.9 ** (i[:, None] + 1))


@pytest.mark.parametrize("fading", [1, 5])
@pytest.mark.parametrize("s", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(
    ("optimiser", "at_rest"),
    [("sgd", False), ("heavy ball", False), ("heavy ball", True), ("adam", False), ("adam", True)],
)
def test_the_drift_through_the_optimiser(
    optimiser: str, at_rest: bool, s: float, fading: float
) -> None:
    """Within 0.005 of the mean capture of planted runs. Adam's average is planted with its bias
    correction, which the null need not know.
    """
    steps, dimension, ks = 100, 100_000, [1, 5, 10, 20]
    momentum = 0.0 if optimiser == "sgd" else 0.9
    response = theory.impulse_response(range(steps + 1), momentum)
    real = adam_response(steps) if optimiser == "adam" else response
    less, norms = [], np.geomspace(1, 1 / fading, steps)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        u = filtered_steps(real, s, norms, dimension, rng, at_rest=at_rest)
        g = u @ u.T
        expected = theory.drift_gramian(g, response, at_rest=at_rest)
        both = [
            np.array([f(m, ks) for f in (prefix_capture, future_capture)]) for m in (g, expected)
        ]
        less.append(both[0] - both[1] - (1 - both[1]) * np.array(ks) / dimension)
    assert np.abs(np.mean(less, axis=0)).max() < 0.005


def test_without_memory_and_with_equal_norms_it_is_the_closed_form() -> None:
    u = filtered_steps(np.eye(50), 0.2, np.ones(50), 10_000, np.random.default_rng(0))
    s = theory.fit_drift(u @ u.T)
    for at_rest in (False, True):
        expected = theory.drift_gramian(u @ u.T, at_rest=at_rest)
        assert prefix_capture(expected, KS) == pytest.approx(drift_capture(50, KS, s))
        assert future_capture(expected, KS) == pytest.approx(drift_future_capture(50, KS, s))


def test_a_preconditioner_that_stands_still_changes_the_dimension_alone() -> None:
    """Noise of k directions is then held by chance as in (tr P²)²/tr P⁴ dimensions."""
    steps, ks, response = 60, [2, 5, 10], theory.impulse_response(range(61), 0.9)
    scales = np.geomspace(1, 0.05, 3000)
    effective = (scales**2).sum() ** 2 / (scales**4).sum()
    less = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        noise = response @ rng.standard_normal((steps, 3000))
        u = (noise + response.sum(1)[:, None] * 0.1 * rng.standard_normal(3000)) * scales
        expected = future_capture(theory.drift_gramian(u @ u.T, response, at_rest=True), ks)
        by_chance = (1 - expected) * np.array(ks) / effective
        less.append(future_capture(u @ u.T, ks) - expected - by_chance)
    assert np.abs(np.mean(less, axis=0)).max() < 0.01
    assert effective < 1000


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_a_segment_responds_as_the_sum_of_its_steps(momentum: float) -> None:
    single = theory.impulse_response(range(13), momentum)
    ends = [0, 1, 4, 5, 12]
    summed = [single[a:b].sum(0) for a, b in pairwise(ends)]
    assert theory.impulse_response(ends, momentum) == pytest.approx(np.array(summed))
    assert theory.impulse_response([7, 8, 11], momentum) == pytest.approx(
        theory.impulse_response([0, 1, 4], momentum)
    )
    if momentum == 0.9:
        rows = adam_response(12)
        ratio = rows.sum(1) / single.sum(1)
        assert rows == pytest.approx(single * ratio[:, None])  # a size for every step, no more


def test_pure_drift_still_segments_and_one_step() -> None:
    assert theory.fit_drift(np.ones((5, 5))) == math.inf
    response = theory.impulse_response(range(6), 0.9)
    for at_rest in (False, True):
        assert theory.fit_drift(np.ones((5, 5)), response, at_rest=at_rest) == math.inf
        expected = theory.drift_gramian(np.ones((5, 5)), response, at_rest=at_rest)
        assert future_capture(expected, [1, 2]) == pytest.approx([1, 1])
    still = np.diag([0.0, 1.0, 1.0])
    assert theory.fit_drift(still) == 0
    assert np.array_equal(theory.drift_gramian(still), still)
    assert theory.fit_drift(np.diag([0.0, 1.0])) == 0  # nothing to compare the only step with
    with pytest.raises(LoclinError, match="at least 2 updates"):
        theory.fit_drift(np.ones((1, 1)))
    with pytest.raises(LoclinError, match="k from 1 to D − 1 = 4, found 5"):
        theory.random_capture(5, 5)


def missed(
    spectrum: np.ndarray, gradient: np.ndarray, target: np.ndarray, ks: Sequence[int]
) -> list[float]:
    """‖(I−P)d‖ for the Krylov spaces of a diagonal Hessian."""
    values, d = torch.from_numpy(spectrum), torch.from_numpy(target)
    basis = lanczos(lambda v: values * v, torch.from_numpy(gradient), max(ks)).basis
    return [float((d - Subspace(basis=basis[:k]).project(d)).norm()) for k in ks]


@pytest.mark.parametrize("condition", [3.0, 50.0, 1e4])
def test_krylov_spaces_miss_no_more_of_a_converged_descent_than_the_bound(condition: float) -> None:
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        spectrum = np.exp(rng.uniform(0, np.log(condition), 60))
        spectrum[:2] = 1, condition
        gradient = rng.standard_normal(60)
        d = -gradient / spectrum
        ks = (1, 2, 5, 10, 20)
        for k, left in zip(ks, missed(spectrum, gradient, d, ks), strict=True):
            assert left**2 / np.sum(d**2) <= theory.krylov_converged_bound(condition, k) + 1e-20


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_converged_bound_is_all_but_reached_by_the_worst_quadratic(k: int) -> None:
    """Eigenvalues where the Chebyshev polynomial is ±1, and the weights for which it is the
    least-squares residual too.
    """
    condition = 9.0
    nodes = np.cos(np.pi * np.arange(k + 1) / k)
    spectrum = (condition + 1) / 2 + (condition - 1) / 2 * nodes
    residual = (-1.0) ** np.arange(k + 1)
    weights = np.linalg.svd(np.stack([residual * spectrum**m for m in range(1, k + 1)]))[2][-1]
    assert (weights > 0).all() or (weights < 0).all()
    d = np.sqrt(np.abs(weights))
    (left,) = missed(spectrum, -spectrum * d, d, [k])
    share = left**2 / np.sum(d**2)
    rho = 1 / 2  # (√9 − 1)/(√9 + 1)
    assert math.isclose(share, (2 * rho**k / (1 + rho ** (2 * k))) ** 2, rel_tol=1e-9)
    assert (
        share
        <= theory.krylov_converged_bound(condition, k)
        <= share * (1 + rho ** (2 * k)) ** 2 * (1 + 1e-9)
    )


def stopped(spectrum: np.ndarray, gradient: np.ndarray, rate: float, steps: int) -> np.ndarray:
    """d_t of gradient descent with a diagonal Hessian."""
    d = np.zeros_like(gradient)
    for _ in range(steps):
        d = d - rate * (gradient + spectrum * d)
    return d


@pytest.mark.parametrize("steps", [5, 50, 200])
def test_krylov_spaces_leave_no_more_of_a_stopped_descent_than_the_bound(steps: int) -> None:
    told = 0
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        rate = 0.1
        spectrum = 2 / rate * rng.uniform(0, 1, 80) ** rng.choice([1, 4, 12])
        gradient = rng.standard_normal(80)
        d = stopped(spectrum, gradient, rate, steps)
        ks = (1, 2, 4, 10, 30, 60)
        for k, left in zip(ks, missed(spectrum, gradient, d, ks), strict=True):
            bound = theory.krylov_stopped_bound(rate, steps, float(np.linalg.norm(gradient)), k)
            assert left <= bound + 1e-9
            told += bound < 0.5 * np.linalg.norm(d)
    assert told  # it says something in some of these cases


def test_the_stopped_bound_fails_under_negative_curvature() -> None:
    rng = np.random.default_rng(0)
    spectrum, gradient = np.linspace(-10, 0, 40), rng.standard_normal(40)
    d = stopped(spectrum, gradient, 0.1, 40)
    (left,) = missed(spectrum, gradient, d, [5])
    assert left > theory.krylov_stopped_bound(0.1, 40, float(np.linalg.norm(gradient)), 5)


def test_krylov_bounds_say_what_they_need() -> None:
    with pytest.raises(LoclinError, match=r"κ and k of at least 1, found κ = 0\.5, k = 2"):
        theory.krylov_converged_bound(0.5, 2)
    with pytest.raises(LoclinError, match="t and k of at least 1, found t = 5, k = 0"):
        theory.krylov_stopped_bound(0.1, 5, 1.0, 0)
