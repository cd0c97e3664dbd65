import math

import numpy as np
import pytest

from loclin import theory
from loclin.errors import LoclinError
from loclin.geometry.gramian import future_capture, prefix_capture
from tests.planted import drifting_steps, heavy_ball_steps, white_steps
from tests.properties import assert_within_error

KS = [1, 5, 10, 20, 40]
DIMENSION = 4000  # D ≫ T, as the closed forms assume
DRAWS = 24


def mean_curves(make, ks=KS) -> tuple[np.ndarray, np.ndarray]:
    """Prefix and future captures of planted runs, by the code that measures real ones."""
    grams = [(u := make(np.random.default_rng(seed))) @ u.T for seed in range(DRAWS)]
    return np.array([prefix_capture(g, ks) for g in grams]), np.array([future_capture(g, ks) for g in grams])


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
    assert_near(prefix, theory.drift_capture(50, KS, s))
    assert_near(future, theory.drift_future_capture(50, KS, s))


def test_a_high_capture_alone_shows_nothing() -> None:
    """The worked example of measures §3: a constant drift with s = 0.29 reaches the paper's 77 %."""
    assert round(float(theory.drift_capture(100, [10], 0.29)[0]), 2) == 0.77
    assert round(float(theory.drift_future_capture(100, [10], 0.29)[0]), 2) == 0.72


@pytest.mark.parametrize("s", [0.0, 0.1, 1.0])
def test_the_drift_is_fitted_without_bias(s: float) -> None:
    grams = [
        (
            u := drifting_steps(60, DIMENSION, s, np.random.default_rng(seed))
            if s
            else white_steps(60, DIMENSION, np.random.default_rng(seed))
        )
        @ u.T
        for seed in range(DRAWS)
    ]
    fitted = np.array([theory.fit_drift(g) for g in grams])
    if s:
        assert_within_error(fitted, s)
    else:
        assert fitted.mean() < 1e-3


def test_pure_drift_and_one_step() -> None:
    assert theory.fit_drift(np.ones((5, 5))) == math.inf
    assert theory.drift_capture(5, [1, 2], math.inf).tolist() == [1, 1]
    assert theory.drift_future_capture(5, [1, 2], math.inf).tolist() == [1, 1]
    with pytest.raises(LoclinError, match="at least 2 updates"):
        theory.fit_drift(np.ones((1, 1)))
    with pytest.raises(LoclinError, match="k from 1 to D − 1 = 4, found 5"):
        theory.random_capture(5, 5)
