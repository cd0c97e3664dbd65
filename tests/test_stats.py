import itertools
import math

import numpy as np
import pytest
from scipy import special
from scipy import stats as scipy_stats

from loclin.correlation import (
    correlation,
    permuted_correlations,
    permuted_rank_correlations,
    rank_correlation,
)
from loclin.errors import LoclinError
from loclin.stats import (
    Scale,
    by_model,
    holm,
    mcnemar,
    mean_above,
    mean_differs,
    mean_within,
    on_scale,
    over_examples,
    over_models,
    over_runs,
    paired_difference,
    permutation_p,
    unscaled,
)


@pytest.mark.parametrize("runs", [3, 6, 24, 60])
def test_intervals_cover_the_planted_mean(runs: int) -> None:
    rng = np.random.default_rng(runs)
    covered = [
        e.low <= 1.5 <= e.high for e in (over_runs(rng.normal(1.5, 2.0, runs)) for _ in range(2000))
    ]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_a_test_of_the_mean_rejects_a_true_null_at_its_level() -> None:
    rng = np.random.default_rng(0)
    p = [mean_above(rng.normal(0, 1, 6), 0.0) for _ in range(2000)]
    assert 0.04 <= np.mean(np.array(p) < 0.05) <= 0.06


def test_the_test_and_the_interval_agree_with_scipy() -> None:
    x = np.array([0.1, 0.4, 0.35, 0.8])
    low, high = scipy_stats.ttest_1samp(x, 0).confidence_interval()
    assert np.allclose((over_runs(x).low, over_runs(x).high), (low, high))
    assert math.isclose(
        mean_above(x, 0.2), scipy_stats.ttest_1samp(x, 0.2, alternative="greater").pvalue
    )


def test_undefined_runs_are_left_out_and_one_run_has_no_interval() -> None:
    assert over_runs([1.0, math.nan, 3.0]).n == 2
    assert over_runs([1.0]).low == -math.inf
    assert mean_above([1.0], 0.0) == 1
    with pytest.raises(LoclinError, match="at least one run"):
        over_runs([math.nan])


@pytest.mark.parametrize("runs", [2, 5, 12])
def test_runs_that_are_alike_have_the_p_of_a_sign_test(runs: int) -> None:
    alike = 0.3 + 1e-15 * np.arange(runs)  # up to round-off
    assert mean_above(alike, 0.2) == 0.5**runs
    assert mean_above(alike, 0.4) == mean_above(np.full(runs, 0.4), 0.4) == 1.0
    assert mean_differs(alike) == mean_differs(-alike) == 0.5 ** (runs - 1)
    assert mean_differs(np.zeros(runs)) == 1.0


SCALES: tuple[Scale, ...] = ("plain", "logit", "score", "fisher", "log")


@pytest.mark.parametrize("scale", SCALES)
def test_scales_lead_back_and_keep_the_order(scale: Scale) -> None:
    shares = np.linspace(0.01, 0.99, 50)
    placed = on_scale(shares, scale)
    assert (np.diff(placed) > 0).all()
    assert np.allclose(unscaled(placed, scale), shares, atol=1e-12)
    ends = on_scale([0.0, 1.0], scale)
    assert np.isfinite(ends).all()  # perfect runs have a place
    assert np.isnan(on_scale(math.nan, scale))


def test_scales_are_logit_fisher_and_logarithm() -> None:
    assert on_scale(0.8, "logit") == pytest.approx(math.log(4))
    assert on_scale(1.0, "score") == pytest.approx(math.log(0.995 / 0.005))
    assert on_scale(-0.5, "fisher") == pytest.approx(math.atanh(-0.5))
    assert on_scale(2.0, "log") == pytest.approx(math.log(2))
    assert on_scale([2.0, -3.0], "plain").tolist() == [2.0, -3.0]


def test_runs_of_one_model_are_averaged_where_the_scale_is_even() -> None:
    values = [0.2, 0.9, 0.8, math.nan, 0.5, 0.99]
    halves = by_model(values, 2, "logit")
    each = [np.mean(on_scale(v, "logit")) for v in ([0.2, 0.8, 0.5], [0.9, 0.99])]
    assert halves == pytest.approx(each)
    assert by_model(values, 1)[:3].tolist() == values[:3]  # runs of one model are the units
    assert np.isnan(by_model([math.nan, 1.0, math.nan, 2.0], 2)).tolist() == [True, False]
    e = over_models(values, 2, "logit")
    assert e.n == 2
    assert e.value == pytest.approx(float(unscaled(np.mean(each), "logit")))
    assert over_models(values, 2) == over_runs(by_model(values, 2))


@pytest.mark.parametrize(
    ("scale", "bounds"),
    [("logit", (0, 1)), ("score", (0, 1)), ("log", (0, math.inf)), ("fisher", (-1, 1))],
)
def test_no_interval_leaves_the_range_of_its_scale(
    scale: Scale, bounds: tuple[float, float]
) -> None:
    for values in ([0.999, 0.5, 0.99], [1.0, 1.0, 0.2], [0.0, 0.01, 0.6]):
        e = over_models(values, 1, scale)
        assert bounds[0] <= e.low <= e.value <= e.high <= bounds[1]
    one = over_models([0.7], 1, scale)
    assert (one.n, one.low, one.high) == (1, -math.inf, math.inf)
    assert one.value == pytest.approx(0.7)
    with pytest.raises(LoclinError, match="at least one run"):
        over_models([math.nan, math.nan], 2, scale)


@pytest.mark.parametrize("n", [4, 6])
def test_intervals_of_skewed_shares_cover_their_mean_on_the_logit_scale(n: int) -> None:
    """Beta(8, 2): E[logit] = ψ(8) − ψ(2). Student's t on the raw shares covers too little of theirs
    and leaves [0, 1].
    """
    rng = np.random.default_rng(n)
    mean = float(special.expit(special.digamma(8) - special.digamma(2)))
    draws = rng.beta(8, 2, (4000, n))
    covered = [e.low <= mean <= e.high for e in (over_models(x, 1, "logit") for x in draws)]
    assert 0.93 <= np.mean(covered) <= 0.97
    assert any(over_runs(x).high > 1 for x in draws[:200])


def test_models_whose_runs_agree_are_no_more_than_one_unit_each() -> None:
    """Nested: intervals over runs cover far too little, those over models what they say."""
    rng = np.random.default_rng(0)
    models, over_all = [], []
    for _ in range(2000):
        runs = np.tile(rng.normal(0, 1, 4), 6) + 0.1 * rng.standard_normal(24)
        models.append(over_models(runs, 4))
        over_all.append(over_runs(runs[:12]))  # below the bootstrap, for time
    covers = [np.mean([e.low <= 0 <= e.high for e in found]) for found in (models, over_all)]
    assert 0.93 <= covers[0] <= 0.97
    assert covers[1] < 0.85


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


def test_permuting_breaks_only_the_pairing_and_all_runs_alike() -> None:
    groups = [(np.arange(8.0), np.arange(8.0) + 100 * r) for r in range(3)]
    draws = permuted_rank_correlations(groups, draws=400, seed=0)
    assert abs(np.mean(draws)) < 0.05
    # the variance of ρ between independent rankings of n is 1/(n − 1), however many runs agree
    assert math.isclose(np.var(draws), 1 / 7, rel_tol=0.25)
    assert permutation_p(1.0, draws) == 1 / 401
    alone = permuted_rank_correlations(groups[:1], draws=400, seed=0)
    assert np.allclose(draws, alone)


def test_runs_that_share_what_is_ranked_support_nothing_beyond_the_level() -> None:
    """The order of eight types of bases is one draw for all six runs, which rank them nearly alike:
    a permutation of its own for every run finds too much.
    """
    rng, p = np.random.default_rng(0), []
    for study in range(400):
        x, y = rng.normal(size=(2, 8))
        groups = [(x + 0.2 * rng.normal(size=8), y + 0.2 * rng.normal(size=8)) for _ in range(6)]
        observed = float(np.mean([rank_correlation(a, b) for a, b in groups]))
        null = permuted_rank_correlations(groups, draws=199, seed=study)
        p.append(permutation_p(observed, null))
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


def paired_outcomes(
    rng: np.random.Generator, n: int, difference: float
) -> tuple[np.ndarray, np.ndarray]:
    """Two answerers with a planted difference: 30 % of the examples are right for just one of the
    two.
    """
    kind = rng.choice(4, size=n, p=[0.4, 0.3, 0.15 + difference / 2, 0.15 - difference / 2])
    return (kind == 0) | (kind == 2), (kind == 0) | (kind == 3)


@pytest.mark.parametrize(("n", "difference"), [(12, 0.0), (100, 0.0), (100, 0.1), (300, 0.2)])
def test_paired_intervals_cover_a_planted_difference(n: int, difference: float) -> None:
    rng = np.random.default_rng(n)
    found = [paired_difference(*paired_outcomes(rng, n, difference), seed=i) for i in range(1000)]
    assert 0.93 <= np.mean([e.low <= difference <= e.high for e in found]) <= 0.97
    assert abs(np.mean([e.value for e in found]) - difference) < 4 * math.sqrt(0.3 / n / 1000)


def test_pairing_narrows_what_both_share() -> None:
    """Answerers that mostly agree: of the paired difference the shared part is gone."""
    a, b = paired_outcomes(np.random.default_rng(0), 400, 0.1)
    paired = paired_difference(a, b, seed=0)
    apart = [over_examples(x, seed=0) for x in (a, b)]
    assert (paired.high - paired.low) ** 2 < 0.8 * sum((e.high - e.low) ** 2 for e in apart)
    assert math.isclose(paired.value, apart[0].value - apart[1].value)


@pytest.mark.parametrize("count", [8, 40])
def test_groups_widen_to_what_their_examples_share(count: int) -> None:
    """Five examples of each group always differ alike: only the groups are independent."""
    rng = np.random.default_rng(count)
    groups = np.repeat(np.arange(count), 5).tolist()
    with_groups, without = [], []
    for i in range(400):
        a, b = (np.repeat(x, 5) for x in paired_outcomes(rng, count, 0.1))
        with_groups.append(paired_difference(a, b, groups=groups, seed=i))
        without.append(paired_difference(a, b, seed=i))
    covered, too_narrow = (
        np.mean([e.low <= 0.1 <= e.high for e in found]) for found in (with_groups, without)
    )
    assert 0.92 <= covered <= 0.98
    assert too_narrow < 0.75
    widths = [np.mean([e.high - e.low for e in found]) for found in (with_groups, without)]
    assert math.isclose(widths[0] / widths[1], math.sqrt(5), rel_tol=0.25)
    assert with_groups[0].n == without[0].n == 5 * count


def test_groups_of_unequal_size_count_by_their_examples() -> None:
    """Passages of one to four questions, all harder or all easier: right in 0.2 or 0.8 of cases,
    0.5 on the whole.
    """
    rng = np.random.default_rng(3)
    covered = []
    for i in range(400):
        groups = np.repeat(np.arange(60), rng.integers(1, 5, 60))
        values = rng.random(len(groups)) < rng.choice([0.2, 0.8], 60)[groups]
        found = over_examples(values, groups=groups.tolist(), seed=i)
        assert math.isclose(found.value, values.mean())
        covered.append(found.low <= 0.5 <= found.high)
    assert 0.92 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize("count", [8, 40])
def test_what_all_groups_share_has_no_spread_however_large_they_are(count: int) -> None:
    groups = np.repeat(np.arange(count), np.arange(count) % 3 + 1).tolist()
    assert np.allclose(
        [(e := over_examples([0.7] * len(groups), groups=groups, seed=0)).low, e.high], 0.7
    )


def test_over_examples_equals_over_runs_where_nothing_belongs_together() -> None:
    few, many = np.random.default_rng(1).normal(size=7), np.random.default_rng(2).normal(size=200)
    assert math.isclose(over_examples(few, seed=0).low, over_runs(few).low)
    assert math.isclose(over_examples(few, seed=0).high, over_runs(few).high)
    a, b = over_examples(many, seed=0), over_runs(many)
    assert a.value == b.value
    assert a.n == 200
    assert math.isclose(
        a.high - a.low, b.high - b.low, rel_tol=0.04
    )  # two bootstraps of 10,000 draws
    named = over_examples(many, groups=[f"passage {i}" for i in range(200)], seed=0)
    assert named == a
    assert over_examples(many, seed=0) == a != over_examples(many, seed=1)


def test_identical_answers_differ_by_nothing() -> None:
    a = np.random.default_rng(0).random(50) < 0.4
    same = paired_difference(a, a.copy(), seed=0)
    assert (same.value, same.low, same.high, same.n) == (0, 0, 0, 50)
    assert mcnemar(a, a.copy()) == 1


def test_one_example_or_group_has_no_interval_and_what_is_missing_is_refused() -> None:
    assert over_examples([True], seed=0).high == math.inf
    one = over_examples([0.0, 1.0], groups=["a", "a"], seed=0)
    assert (one.value, one.low, one.n) == (0.5, -math.inf, 2)
    with pytest.raises(LoclinError, match="a finite number for each of one example or more"):
        over_examples([], seed=0)
    with pytest.raises(LoclinError, match="score all of them"):
        over_examples([1.0, math.nan], seed=0)
    with pytest.raises(LoclinError, match="expected a group for each of 2 examples, found 1"):
        over_examples([1.0, 2.0], groups=["a"], seed=0)
    with pytest.raises(LoclinError, match="expected two outcomes of each example, found 2 and 3"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0], seed=0)
    with pytest.raises(LoclinError, match="found 1 and 2"):
        mcnemar(np.array([True]), np.array([True, False]))


def test_mcnemar_on_two_media_for_tubercle_bacilli() -> None:
    """Armitage and Berry, Statistical Methods in Medical Research, 1994, p. 127: 20 both, 12 and 2
    one, 16 neither.
    """
    a = np.array([True] * 20 + [True] * 12 + [False] * 2 + [False] * 16)
    b = np.array([True] * 20 + [False] * 12 + [True] * 2 + [False] * 16)
    by_hand = 2 * sum(math.comb(14, i) for i in range(3)) / 2**14
    assert math.isclose(mcnemar(a, b), by_hand)
    assert round(mcnemar(a, b), 4) == 0.0129


@pytest.mark.parametrize(("only_a", "only_b"), list(itertools.product([0, 1, 2, 5, 11], repeat=2)))
def test_mcnemar_is_the_exact_sign_test_of_what_differs(only_a: int, only_b: int) -> None:
    a = np.array([True] * only_a + [False] * only_b + [True, False, True])
    b = np.array([False] * only_a + [True] * only_b + [True, False, True])
    expected = (
        scipy_stats.binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    )
    assert math.isclose(mcnemar(a, b), expected)
    assert math.isclose(mcnemar(b, a), expected)


def test_mcnemar_rejects_a_true_null_at_most_at_its_level_and_a_planted_difference_often() -> None:
    rng = np.random.default_rng(4)
    null, planted = (
        [mcnemar(*paired_outcomes(rng, 200, d)) for _ in range(1500)] for d in (0.0, 0.15)
    )
    assert 0.02 <= np.mean(np.array(null) < 0.05) <= 0.055
    assert np.mean(np.array(planted) < 0.05) > 0.9


def test_equivalence_is_the_larger_of_two_one_sided_tests() -> None:
    x = np.array([0.1, -0.05, 0.12, 0.02, math.nan])
    above = scipy_stats.ttest_1samp(x[:4], -0.2, alternative="greater").pvalue
    below = scipy_stats.ttest_1samp(x[:4], 0.15, alternative="less").pvalue
    assert math.isclose(mean_within(x, -0.2, 0.15), max(above, below))
    # the 90 % interval that lies inside just where p < 0.05
    low, high = scipy_stats.ttest_1samp(x[:4], 0).confidence_interval(0.9)
    assert mean_within(x, low - 1e-9, high + 1e-9) < 0.05 < mean_within(x, low + 1e-9, 1.0)


@pytest.mark.parametrize("runs", [2, 6, 12])
@pytest.mark.parametrize("margin", [-0.25, 0.25])
def test_equivalence_on_the_margin_is_claimed_at_the_level_at_most(
    runs: int, margin: float
) -> None:
    rng = np.random.default_rng(runs)
    claimed = [mean_within(rng.normal(margin, 0.1, runs), -0.25, 0.25) < 0.05 for _ in range(1000)]
    assert np.mean(claimed) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    if runs > 2:  # of two runs the other margin takes nearly all of the power
        assert np.mean(claimed) >= 0.03


def test_equivalence_is_found_where_it_is_and_never_for_want_of_data() -> None:
    rng = np.random.default_rng(0)
    assert (
        np.mean([mean_within(rng.normal(0, 0.1, 6), -0.25, 0.25) < 0.05 for _ in range(500)]) > 0.95
    )
    wide = [mean_within(rng.normal(0, 2.0, 6), -0.25, 0.25) < 0.05 for _ in range(500)]
    assert np.mean(wide) < 0.05  # no difference is significant there either
    assert mean_within([0.0], -1.0, 1.0) == mean_within([0.0, math.nan], -1.0, 1.0) == 1
    assert mean_within([0.0, 0.0], -1.0, 1.0) == 0.25  # alike: the sign test of two
    assert mean_within([1.0, 1.0], -1.0, 1.0) == mean_within([2.0, 2.0], -1.0, 1.0) == 1


def test_correlations_leave_out_what_is_not_finite() -> None:
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 4.0, np.nan, 8.0])
    assert correlation(x, y) == pytest.approx(1)
    assert math.isnan(correlation(x, np.ones(4)))
    assert math.isnan(correlation(x, np.array([1.0, np.nan, np.nan, 2.0])))
    null = permuted_correlations([(x, y), (x, x**2)], draws=2000, seed=0)
    assert abs(null.mean()) < 0.05
    assert null.std() == pytest.approx(math.sqrt((1 / 2 + 1 / 3) / 4), rel=0.1)
