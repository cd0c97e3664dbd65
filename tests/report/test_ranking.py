"""The ranking of schedules: paired differences, Holm over the family, how often it errs, and what
is recommended.
"""

from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from loclin.record import Row
from loclin.report.ranking import MARGIN, ranked, ranking_table, recommended

HERE = {"pair": "all", "optimiser": "adamw"}


def rows_of(
    scores: Mapping[str, np.ndarray],
    *,
    validated: Mapping[str, np.ndarray] | None = None,
    start: float = 0.0,
) -> list[Row]:
    rows = []
    for name, values in scores.items():
        for run, value in enumerate(values):
            context = {**HERE, "run": run, "schedule": name, "family": "simultaneous"}
            chosen = (validated or scores)[name][run]
            for quantity, number in (
                ("worst_score", value),
                ("mean_score", value + 0.05),
                ("validated_worst_score", chosen),
            ):
                rows.append(Row(quantity=quantity, value=float(number), context=context))
            rows.append(Row(quantity="evaluations", value=48.0, context=context))
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


def test_differences_are_paired_and_adjusted_over_all_schedules() -> None:
    scores = drawn({"PCGrad": 0.7, "joint mixed": 0.8, "raw sum": 0.79, "replay": 0.3}, seed=0)
    found = ranked(rows_of(scores), **HERE)
    assert [r.schedule for r in found] == sorted(scores, key=lambda n: -scores[n].mean())
    by_name = {r.schedule: r for r in found}
    assert by_name["joint mixed"].behind is None
    tests = {
        n: stats.ttest_rel(scores[n], scores["joint mixed"]).pvalue
        for n in scores
        if n != "joint mixed"
    }
    assert {n: by_name[n].p for n in tests} == pytest.approx(tests)
    order = sorted(tests, key=lambda n: tests[n])
    assert by_name[order[0]].p_holm == pytest.approx(3 * tests[order[0]])
    behind = by_name["replay"].behind
    assert behind is not None
    assert behind.value == pytest.approx((scores["replay"] - scores["joint mixed"]).mean())
    assert behind.high < 0


def test_schedules_that_do_not_differ_are_told_apart_in_one_study_of_twenty_at_most() -> None:
    names = ("joint mixed", "a", "b", "c", "d", "e")
    wrong = [
        any(
            r.p_holm is not None and r.p_holm < 0.05
            for r in ranked(rows_of(drawn(dict.fromkeys(names, 0.5), seed=s)), **HERE)
        )
        for s in range(200)
    ]
    assert np.mean(wrong) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_without_the_reference_the_first_takes_its_place_and_one_run_has_no_interval() -> None:
    found = ranked(rows_of({"a": np.array([0.5]), "b": np.array([0.6])}), **HERE)
    assert [r.schedule for r in found] == ["b", "a"]
    assert found[1].behind is None
    assert found[0].p == 1.0
    assert ranked([], **HERE) == []
    table = ranking_table(
        rows_of({"a": np.array([0.5]), "b": np.array([0.6])}), "caption", (), **HERE
    )
    assert "worst task less a's" in table.header
    assert "0.6 (no interval)" in table.rows[0]


def binomial(
    chances: Mapping[str, float], *, seed: int, runs: int, examples: int
) -> dict[str, np.ndarray]:
    """Scores as they come: shares of a few examples, which tie."""
    rng = np.random.default_rng(seed)
    return {name: rng.binomial(examples, p, runs) / examples for name, p in chances.items()}


@pytest.mark.parametrize(("runs", "examples"), [(2, 12), (2, 60), (3, 20), (5, 12), (5, 40)])
def test_scores_that_tie_are_no_certainty(runs: int, examples: int) -> None:
    names = ("joint mixed", "a", "b", "c", "d", "e")
    wrong = []
    for seed in range(100):
        rows = rows_of(binomial(dict.fromkeys(names, 0.6), seed=seed, runs=runs, examples=examples))
        wrong.append(any(r.p_holm is not None and r.p_holm < 0.05 for r in ranked(rows, **HERE)))
    assert np.mean(wrong) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 100)


def test_equal_schedules_recommend_the_plainest_and_a_clear_winner_itself() -> None:
    level = recommended(
        rows_of(drawn({"raw sum": 0.8, "PCGrad": 0.8, "joint mixed": 0.8}, seed=1, scatter=0.005)),
        **HERE,
    )
    assert level.schedule == "joint mixed"
    clear = recommended(
        rows_of(drawn({"joint mixed": 0.5, "raw sum": 0.8, "PCGrad": 0.6}, seed=2)), **HERE
    )
    assert (clear.schedule, clear.best, clear.behind) == ("raw sum", "raw sum", None)
    assert clear.level == clear.better == ()


def test_a_plain_schedule_has_to_be_shown_to_be_nearly_as_good() -> None:
    wide = drawn(
        {"joint mixed": 0.78, "PCGrad": 0.8}, seed=3, scatter=0.2
    )  # not told apart, not shown to be as good
    found = recommended(
        rows_of(wide, validated={"joint mixed": np.zeros(6), "PCGrad": np.ones(6)}), **HERE
    )
    assert found.schedule == "PCGrad"
    ((name, most),) = found.level
    assert name == "joint mixed"
    assert most > 0
    near = drawn({"joint mixed": 0.8 - MARGIN / 4, "PCGrad": 0.8}, seed=4, scatter=0.004)
    assert recommended(rows_of(near), **HERE).schedule == "joint mixed"


def test_plain_schedules_on_the_margin_are_recommended_in_one_pilot_of_twenty_at_most() -> None:
    means = {"joint mixed": 0.75, "alternating": 0.75, "a": 0.75, "b": 0.75, "best": 0.75 + MARGIN}
    wrong = []
    for seed in range(400):
        scores = drawn(means, seed=seed, runs=5)
        chosen = {name: np.full(5, float(name == "best")) for name in scores}
        wrong.append(recommended(rows_of(scores, validated=chosen), **HERE).schedule != "best")
    assert np.mean(wrong) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


def test_what_is_better_than_the_recommended_one_is_said() -> None:
    tested = drawn({"joint mixed": 0.8, "PCGrad": 0.8, "MGDA": 0.9}, seed=5, scatter=0.002)
    chosen = {name: np.full(6, float(name == "PCGrad")) for name in tested}
    found = recommended(rows_of(tested, validated=chosen), **HERE)
    assert found.schedule == "joint mixed"
    ((name, by),) = found.better
    assert name == "MGDA"
    assert by.low > 0.09


def test_where_nothing_was_learned_nothing_is_recommended() -> None:
    still = {"joint mixed": np.zeros(5), "PCGrad": np.zeros(5)}
    assert recommended(rows_of(still), **HERE).schedule is None
    assert (
        recommended(
            rows_of(drawn({"joint mixed": 0.5, "PCGrad": 0.5}, seed=6), start=0.5), **HERE
        ).schedule
        is None
    )


def test_the_best_is_chosen_on_validation_examples_not_on_those_it_is_reported_on() -> None:
    tested = {"a": np.full(6, 0.9), "b": np.full(6, 0.5)}
    chosen = {"a": np.full(6, 0.5), "b": np.full(6, 0.6)}
    found = recommended(rows_of(tested, validated=chosen), **HERE)
    assert (found.schedule, found.best) == ("b", "b")
    assert [name for name, _ in found.better] == ["a"]
