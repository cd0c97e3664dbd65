"""The ranking of schedules and the recommendation, as rows: paired differences, Holm over the
family, how often it errs, and what is recommended.
"""

from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from loclin.run.rows import Row
from loclin.studies.schedules.recommend import (
    MARGIN,
    leader_stands_out,
    ranking_rows,
    recommendation_rows,
)

HERE = {"pair": "all", "optimiser": "adamw"}
Scores = Mapping[str, np.ndarray]


def rows_of(scores: Scores, *, validated: Scores | None = None, start: float = 0.0) -> list[Row]:
    rows = []
    for name, values in scores.items():
        for run, value in enumerate(values):
            context = {**HERE, "run": run, "schedule": name, "family": "simultaneous"}
            chosen = (validated or scores)[name][run]
            for quantity, number in (("worst_score", value), ("validated_worst_score", chosen)):
                rows.append(Row(quantity=quantity, value=float(number), context=context))
    for run in range(len(next(iter(scores.values())))):
        rows.append(Row(quantity="first_worst_score", value=start, context={**HERE, "run": run}))
    return rows


def drawn(
    means: Mapping[str, float], *, seed: int, runs: int = 6, scatter: float = 0.03
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    common = 0.1 * rng.standard_normal(runs)  # of a run: paired differences are free of it
    return {
        name: mean + common + scatter * rng.standard_normal(runs) for name, mean in means.items()
    }


def by_schedule(rows: list[Row], quantity: str, **context: str) -> dict[str, Row]:
    return {
        r.context["schedule"]: r
        for r in rows
        if r.quantity == quantity and all(r.context.get(k) == v for k, v in context.items())
    }


def ranked(scores: Scores) -> list[Row]:
    return ranking_rows(rows_of(scores), HERE)


def recommended(
    scores: Scores, validated: Scores | None = None, start: float = 0.0
) -> tuple[Row, list[Row]]:
    rows = recommendation_rows(rows_of(scores, validated=validated, start=start), HERE)
    (row,) = (r for r in rows if r.quantity == "recommended")
    return row, rows


def any_told_apart(scores: Scores) -> bool:
    p = by_schedule(ranked(scores), "worst_score_difference_p_holm")
    return any(r.value is not None and r.value < 0.05 for r in p.values())


def test_differences_are_paired_and_adjusted_over_all_schedules() -> None:
    scores = drawn({"PCGrad": 0.7, "joint mixed": 0.8, "raw sum": 0.79, "replay": 0.3}, seed=0)
    rows = ranked(scores)
    places = {name: float(r.value or 0) for name, r in by_schedule(rows, "place").items()}
    assert sorted(places, key=lambda n: places[n]) == sorted(
        scores, key=lambda n: -scores[n].mean()
    )
    assert sorted(places.values()) == [1, 2, 3, 4]
    less = by_schedule(rows, "worst_score_difference", reference="joint mixed")
    reference = scores["joint mixed"]
    tests = {n: stats.ttest_rel(scores[n], reference).pvalue for n in scores if n != "joint mixed"}
    assert {n: r.p for n, r in less.items()} == pytest.approx(tests)
    order = sorted(tests, key=lambda n: tests[n])
    adjusted = by_schedule(rows, "worst_score_difference_p_holm")
    assert adjusted[order[0]].value == pytest.approx(3 * tests[order[0]])
    behind = less["replay"]
    assert behind.value == pytest.approx((scores["replay"] - reference).mean())
    assert behind.high is not None
    assert behind.high < 0
    assert behind.n == 6
    assert behind.context["family"] == "sequential, mended"


def test_schedules_that_do_not_differ_are_told_apart_in_one_study_of_twenty_at_most() -> None:
    names = ("joint mixed", "a", "b", "c", "d", "e")
    wrong = [any_told_apart(drawn(dict.fromkeys(names, 0.5), seed=s)) for s in range(200)]
    assert np.mean(wrong) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_without_the_reference_the_first_takes_its_place_and_one_run_has_no_interval() -> None:
    rows = ranked({"a": np.array([0.5]), "b": np.array([0.6])})
    assert [r.context["schedule"] for r in rows if r.quantity == "place"] == ["b", "a"]
    (less,) = by_schedule(rows, "worst_score_difference", reference="a").values()
    assert (less.p, less.low, less.high, less.n) == (1.0, None, None, 1)
    assert less.value == pytest.approx(0.1)
    assert ranking_rows([], HERE) == []


def binomial(
    chances: Mapping[str, float], *, seed: int, runs: int, examples: int
) -> dict[str, np.ndarray]:
    """Scores as they come: shares of a few examples, which tie."""
    rng = np.random.default_rng(seed)
    return {name: rng.binomial(examples, p, runs) / examples for name, p in chances.items()}


@pytest.mark.parametrize(("runs", "examples"), [(2, 12), (2, 60), (3, 20), (5, 12), (5, 40)])
def test_scores_that_tie_are_no_certainty(runs: int, examples: int) -> None:
    chances = dict.fromkeys(("joint mixed", "a", "b", "c", "d", "e"), 0.6)
    wrong = [
        any_told_apart(binomial(chances, seed=seed, runs=runs, examples=examples))
        for seed in range(100)
    ]
    assert np.mean(wrong) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 100)


def test_equal_schedules_recommend_the_plainest_and_a_clear_winner_itself() -> None:
    equal = drawn({"raw sum": 0.8, "PCGrad": 0.8, "joint mixed": 0.8}, seed=1, scatter=0.005)
    assert recommended(equal)[0].context["schedule"] == "joint mixed"
    clear = drawn({"joint mixed": 0.5, "raw sum": 0.8, "PCGrad": 0.6}, seed=2)
    row, rows = recommended(clear)
    assert row.context["schedule"] == "raw sum"
    assert (row.value, row.null, row.p) == (0.0, None, None)  # it is the best itself
    (best,) = by_schedule(rows, "best_validated").items()
    assert best[0] == "raw sum"
    assert best[1].value == pytest.approx(clear["raw sum"].mean())
    worse = by_schedule(rows, "less_recommended", relation="worse")
    assert set(worse) == {"joint mixed", "PCGrad"}
    assert worse["PCGrad"].value == pytest.approx((clear["PCGrad"] - clear["raw sum"]).mean())


def test_a_plain_schedule_has_to_be_shown_to_be_nearly_as_good() -> None:
    # not told apart, and not shown to be as good
    wide = drawn({"joint mixed": 0.78, "PCGrad": 0.8}, seed=3, scatter=0.2)
    row, rows = recommended(wide, {"joint mixed": np.zeros(6), "PCGrad": np.ones(6)})
    assert row.context["schedule"] == "PCGrad"
    ((name, level),) = by_schedule(rows, "less_recommended", relation="not told apart").items()
    assert name == "joint mixed"
    assert level.high is not None
    assert level.high > 0
    near = drawn({"joint mixed": 0.8 - MARGIN / 4, "PCGrad": 0.8}, seed=4, scatter=0.004)
    row, _ = recommended(near)
    assert row.context["schedule"] == "joint mixed"
    assert row.value == pytest.approx((near["joint mixed"] - near["PCGrad"]).mean())
    assert row.null == -MARGIN
    assert row.p is not None
    assert row.p < 0.05


def test_plain_schedules_on_the_margin_are_recommended_in_one_comparison_of_twenty_at_most() -> (
    None
):
    means = {"joint mixed": 0.75, "alternating": 0.75, "a": 0.75, "b": 0.75, "best": 0.75 + MARGIN}
    wrong = []
    for seed in range(400):
        scores = drawn(means, seed=seed, runs=5)
        chosen = {name: np.full(5, float(name == "best")) for name in scores}
        wrong.append(recommended(scores, chosen)[0].context["schedule"] != "best")
    assert np.mean(wrong) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


def test_what_is_better_than_the_recommended_one_is_said() -> None:
    tested = drawn({"joint mixed": 0.8, "PCGrad": 0.8, "MGDA": 0.9}, seed=5, scatter=0.002)
    chosen = {name: np.full(6, float(name == "PCGrad")) for name in tested}
    row, rows = recommended(tested, chosen)
    assert row.context["schedule"] == "joint mixed"
    ((name, by),) = by_schedule(rows, "less_recommended", relation="better").items()
    assert name == "MGDA"
    assert by.low is not None
    assert by.low > 0.09


def test_pilots_that_are_alike_are_a_sign_test_and_no_certainty() -> None:
    alike = {"joint mixed": np.full(6, 0.9), "PCGrad": np.full(6, 0.8)}
    (row,) = by_schedule(ranked(alike), "worst_score_difference").values()
    assert row.p == 2 * 0.5**6
    row, _ = recommended(alike, {"joint mixed": np.zeros(6), "PCGrad": np.ones(6)})
    assert (row.context["schedule"], row.p) == ("joint mixed", 0.5**6)
    few = {name: values[:3] for name, values in alike.items()}  # too few for any p
    assert recommended(few)[0].value == 0.0
    assert recommended(few, start=0.89)[0].value is None  # what they gained may be chance


def test_runs_of_one_model_are_one_unit_of_the_ranking() -> None:
    scores = drawn({"joint mixed": 0.8, "PCGrad": 0.6}, seed=0, runs=12)
    rows = ranking_rows(rows_of(scores), HERE, 6)
    (row,) = by_schedule(rows, "worst_score_difference").values()
    less = (scores["PCGrad"] - scores["joint mixed"]).reshape(2, 6).mean(0)
    assert row.n == 6
    assert row.p == pytest.approx(stats.ttest_1samp(less, 0).pvalue)


def test_where_nothing_was_learned_nothing_is_recommended() -> None:
    still = {"joint mixed": np.zeros(5), "PCGrad": np.zeros(5)}
    for scores, start in ((still, 0.0), (drawn(dict.fromkeys(still, 0.5), seed=6), 0.5)):
        row, rows = recommended(scores, start=start)
        assert (row.value, row.context["schedule"]) == (None, None)
        assert row.p is not None
        assert row.p >= 0.05
        assert {r.quantity for r in rows} == {"best_validated", "recommended"}


def test_the_best_is_chosen_on_validation_examples_not_on_those_it_is_reported_on() -> None:
    tested = {"a": np.full(6, 0.9), "b": np.full(6, 0.5)}
    row, rows = recommended(tested, {"a": np.full(6, 0.5), "b": np.full(6, 0.6)})
    assert row.context["schedule"] == "b"
    assert list(by_schedule(rows, "best_validated")) == ["b"]
    assert list(by_schedule(rows, "less_recommended", relation="better")) == ["a"]


def test_a_leader_stands_out_where_its_paired_difference_says_so() -> None:
    far, near = {"a": 0.9, "b": 0.6, "c": 0.5}, {"a": 0.9, "b": 0.9, "c": 0.5}
    apart, alike = (
        [leader_stands_out(rows_of(drawn(means, seed=seed)), HERE) for seed in range(200)]
        for means in (far, near)
    )
    assert all(apart)
    assert np.mean(alike) < 0.08  # the better of two equals, at the two-sided 5 % of an interval
    assert not leader_stands_out(rows_of({s: np.array([0.9, 0.9]) for s in "ab"}), HERE)
    assert leader_stands_out(rows_of({"a": np.array([0.9, 0.9])}), HERE)
