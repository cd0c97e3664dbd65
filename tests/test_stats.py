import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from loclin.errors import LoclinError
from loclin.stats import holm, mean_above, over_runs, permutation_p, permuted_rank_correlations, rank_correlation


@pytest.mark.parametrize("runs", [3, 6, 24, 60])
def test_intervals_cover_the_planted_mean(runs: int) -> None:
    rng = np.random.default_rng(runs)
    covered = [e.low <= 1.5 <= e.high for e in (over_runs(rng.normal(1.5, 2.0, runs)) for _ in range(2000))]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_a_test_of_the_mean_rejects_a_true_null_at_its_level() -> None:
    rng = np.random.default_rng(0)
    p = [mean_above(rng.normal(0, 1, 6), 0.0) for _ in range(2000)]
    assert 0.04 <= np.mean(np.array(p) < 0.05) <= 0.06


def test_the_test_and_the_interval_agree_with_scipy() -> None:
    x = np.array([0.1, 0.4, 0.35, 0.8])
    low, high = scipy_stats.ttest_1samp(x, 0).confidence_interval()
    assert np.allclose((over_runs(x).low, over_runs(x).high), (low, high))
    assert math.isclose(mean_above(x, 0.2), scipy_stats.ttest_1samp(x, 0.2, alternative="greater").pvalue)


def test_undefined_runs_are_left_out_and_one_run_has_no_interval() -> None:
    assert over_runs([1.0, math.nan, 3.0]).n == 2
    assert over_runs([1.0]).low == -math.inf
    assert mean_above([1.0], 0.0) == 1
    assert mean_above([1.0, 1.0], 0.0) == 0
    with pytest.raises(LoclinError, match="at least one run"):
        over_runs([math.nan])


def test_permutation_p_is_uniform_under_the_null() -> None:
    rng = np.random.default_rng(0)
    p = [permutation_p(draws[0], draws[1:]) for draws in rng.normal(size=(3000, 20))]
    assert math.isclose(np.mean(np.array(p) <= 0.05), 0.05, abs_tol=0.015)
    assert min(p) == 1 / 20


def test_holm_controls_the_family() -> None:
    rng = np.random.default_rng(0)
    rejected = [min(holm(p.tolist())) < 0.05 for p in rng.uniform(size=(3000, 10))]
    assert np.mean(rejected) <= 0.06
    assert holm([0.001, 0.5])[0] == 0.002


def test_rank_correlation_equals_scipy_and_is_undefined_for_constants() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 5, 30), rng.integers(0, 5, 30)
    assert math.isclose(rank_correlation(x, y), scipy_stats.spearmanr(x, y).statistic)
    assert math.isnan(rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
    assert math.isnan(rank_correlation([1.0, 2.0], [1.0, 2.0]))


def test_permuting_within_runs_breaks_only_the_pairing() -> None:
    groups = [(np.arange(8.0), np.arange(8.0) + 100 * r) for r in range(3)]
    draws = permuted_rank_correlations(groups, draws=400, seed=0)
    assert abs(np.mean(draws)) < 0.05
    # the variance of ρ between independent rankings of n is 1/(n − 1)
    assert math.isclose(np.var(draws), 1 / 7 / 3, rel_tol=0.25)
    assert permutation_p(1.0, draws) == 1 / 401
