import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loclin.errors import LoclinError
from loclin.law import expected_maximum
from loclin.search.ensemble import (
    Condition,
    best_of,
    compare,
    pass_at,
    solved,
    vote,
    voted,
)
from loclin.stats import holm, mcnemar, paired_difference

ANSWERS = st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=9)


def one(answers: list[str]) -> str | None:
    """The vote on one example."""
    return vote([[answer] for answer in answers])[0]


# votes


@pytest.mark.parametrize(
    ("answers", "elected"),
    [
        (["a"], "a"),
        (["a", "b", "b"], "b"),
        (["a", "b"], "a"),  # a tie: the better-ranked candidate's answer
        (
            ["c", "a", "b", "b", "a"],
            "a",
        ),  # a tie among those that lead, not with whoever ranks best
        (["b", "a", "a", "b"], "b"),
        (["", "a"], "a"),
        (["", "", "a", "b", ""], "a"),  # however many give none
        (["", ""], None),
        ([""], None),
        (["yes", " yes", " yes"], " yes"),  # another text is another answer
    ],
)
def test_votes_by_hand(answers: list[str], elected: str | None) -> None:
    assert one(answers) == elected


def test_every_example_is_voted_on_alone() -> None:
    answers = [["a", "x", ""], ["b", "x", ""], ["b", "y", ""]]
    assert (
        vote(answers)
        == ["b", "x", None]
        == [one(list(given)) for given in zip(*answers, strict=True)]
    )


@given(st.lists(st.sampled_from(["", "a", "b"]), max_size=6))
def test_a_vote_of_one_is_the_best_candidates_answer(answers: list[str]) -> None:
    assert vote([answers]) == [answer or None for answer in answers]


def leaders(answers: list[str]) -> set[str]:
    counts = {a: answers.count(a) for a in answers if a}
    return {a for a, count in counts.items() if count == max(counts.values())}


@given(ANSWERS)
def test_the_elected_answer_has_most_votes_and_of_those_the_best_ranked_one(
    answers: list[str],
) -> None:
    lead = leaders(answers)
    assert one(answers) == next((a for a in answers if a in lead), None)


@given(ANSWERS, st.randoms(use_true_random=False))
def test_exchanging_losers_changes_nothing(answers: list[str], random) -> None:
    """The order among those whose answer does not lead does not matter; with one leader no order
    matters.
    """
    lead = leaders(answers)
    losers = [i for i, a in enumerate(answers) if a not in lead]
    moved = list(answers)
    for i, j in zip(losers, random.sample(losers, len(losers)), strict=True):
        moved[i] = answers[j]
    assert one(moved) == one(answers)
    if len(lead) == 1:
        assert one(random.sample(answers, len(answers))) == one(answers)


@given(ANSWERS, st.integers(0, 8))
def test_an_empty_answer_is_no_vote(answers: list[str], place: int) -> None:
    assert one([*answers[:place], "", *answers[place:]]) == one(answers)


@given(ANSWERS)
def test_names_of_answers_do_not_matter(answers: list[str]) -> None:
    other = {"": "", "a": "zebra", "b": "1", "c": "a"}
    elected = one(answers)
    assert one([other[a] for a in answers]) == (None if elected is None else other[elected])


def test_more_voters_help_where_errors_are_independent() -> None:
    """Condorcet: 15 independent answerers, each right with 0.6 and else spread over answers."""
    rng = np.random.default_rng(0)
    right = rng.random((15, 2000)) < 0.6
    answers = [["gold" if r else f"wrong {rng.integers(2)}" for r in row] for row in right]
    scores = [solved(vote(answers[:k]), ["gold"] * 2000).mean() for k in (1, 5, 15)]
    assert scores[0] < scores[1] - 0.1
    assert scores[1] < scores[2] - 0.05


def test_votes_without_candidates_or_of_unequal_length_are_refused() -> None:
    with pytest.raises(LoclinError, match="from one candidate or more, found no candidates"):
        vote([])
    with pytest.raises(LoclinError, match=r"found \[1, 2\] answers: ask all of them"):
        vote([["a", "b"], ["a"]])
    with pytest.raises(LoclinError, match="expected 2 answers, found 1"):
        solved(["a"], ["a", "b"])
    assert solved([None, "a", "b"], ["a", "a", "a"]).tolist() == [False, True, False]
    assert voted([["a", "b"], ["b", "b"]], ["a", "a"]).tolist() == [True, False]
    assert vote([[], []]) == []


# ranks and ladders


@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.5, 0.9, math.nan]), min_size=1, max_size=7))
@settings(deadline=None)
def test_the_ladder_is_the_mean_over_all_draws(scores: list[float]) -> None:
    ns = list(range(1, len(scores) + 1))
    if not np.isfinite(scores).any():
        with pytest.raises(LoclinError, match="a finite score, found none: search at a smaller σ"):
            best_of(np.array(scores), ns)
        return
    by_hand = []
    for n in ns:
        draws = [np.array(draw) for draw in itertools.combinations(scores, n)]
        by_hand.append(np.mean([np.nanmax(d) for d in draws if np.isfinite(d).any()]))
    assert np.allclose(best_of(np.array(scores), ns), by_hand)


def test_the_ladder_of_normal_scores_is_m_n() -> None:
    rng = np.random.default_rng(1)
    curves = np.array([best_of(rng.standard_normal(200), [1, 10, 100]) for _ in range(1500)])
    for n, column in zip((1, 10, 100), curves.T, strict=True):
        assert abs(column.mean() - expected_maximum(n)) < 4 * column.std() / math.sqrt(len(column))
    with pytest.raises(LoclinError, match=r"from 1 to 3, found \[0, 4\]"):
        best_of(np.zeros(3), [0, 1, 4])


# pass@k


@given(st.integers(1, 6), st.integers(0, 2**12 - 1))
@settings(deadline=None)
def test_pass_at_is_the_share_of_draws_that_hold_a_solver(total: int, bits: int) -> None:
    outcomes = np.array([bool(bits >> i & 1) for i in range(2 * total)]).reshape(total, 2)
    ks = list(range(1, total + 1))
    by_hand = [
        np.mean(
            [outcomes[list(draw)].any(0) for draw in itertools.combinations(range(total), k)],
            axis=0,
        )
        for k in ks
    ]
    found = pass_at(outcomes, ks)
    assert np.allclose(found, by_hand)
    assert (np.diff(found, axis=0) >= -1e-12).all()
    assert np.array_equal(found[-1] == 1, outcomes.any(0))
    assert np.allclose(found[0], outcomes.mean(0))


def test_pass_at_is_unbiased_where_any_of_k_seen_ones_is_not_asked() -> None:
    """1 − (1−p)^k from N = 20 outcomes of solve rate p; the plug-in 1 − (1−c/N)^k falls short of
    it.
    """
    rng = np.random.default_rng(2)
    rates = rng.beta(0.5, 3, 400)
    found = np.array([pass_at(rng.random((20, 400)) < rates, [10])[0] for _ in range(200)])
    truth = 1 - (1 - rates) ** 10
    assert abs((found - truth).mean()) < 4 * (found - truth).mean(1).std() / math.sqrt(200)


def test_pass_at_of_thousands_neither_overflows_nor_rounds_away() -> None:
    outcomes = np.zeros((5000, 2), dtype=bool)
    outcomes[:1, 1] = True
    assert np.allclose(pass_at(outcomes, [1, 2500, 5000]), [[0, 1 / 5000], [0, 0.5], [0, 1]])
    with pytest.raises(
        LoclinError, match=r"expected numbers of candidates from 1 to 5000, found \[5001\]"
    ):
        pass_at(outcomes, [5001])
    assert pass_at(outcomes, []).shape == (0, 2)


# comparisons


def conditions(rng: np.random.Generator, n: int) -> tuple[Condition, list[Condition]]:
    base = rng.random(n) < 0.4
    better = base | (rng.random(n) < 0.3)
    other = np.where(rng.random(n) < 0.2, rng.random(n) < 0.4, base)
    return Condition(name="base", right=base, forward_passes=1), [
        Condition(name="ensemble of 5", right=better, forward_passes=5, note="by majority"),
        Condition(name="random 5", right=other, forward_passes=5),
    ]


def test_every_condition_is_held_against_the_base() -> None:
    base, others = conditions(np.random.default_rng(3), 200)
    rows = compare(others, base, seed=7)
    assert [row.condition.name for row in rows] == ["base", "ensemble of 5", "random 5"]
    for row, condition in zip(rows, [base, *others], strict=True):
        assert row.condition is condition
        assert row.score.value == condition.right.mean()
        assert row.score.n == 200
        assert row.gain == paired_difference(condition.right, base.right, seed=7)
        assert row.p == mcnemar(condition.right, base.right)
    # the base tests nothing
    assert [row.p_holm for row in rows] == [None, *holm([rows[1].p, rows[2].p])]
    assert (rows[0].gain.value, rows[0].gain.low, rows[0].gain.high, rows[0].p) == (0, 0, 0, 1)
    assert rows[1].p_holm is not None
    assert rows[1].p_holm < 1e-6


def test_groups_reach_the_intervals() -> None:
    base, others = conditions(np.random.default_rng(4), 60)
    repeated = [
        Condition(
            name=condition.name,
            right=np.repeat(condition.right, 4),
            forward_passes=1,
        )
        for condition in (base, *others)
    ]
    alone, grouped = (
        compare(repeated[1:], repeated[0], groups=groups, seed=0)
        for groups in (None, [i // 4 for i in range(240)])
    )
    for a, g in zip(alone[1:], grouped[1:], strict=True):
        assert math.isclose((g.gain.high - g.gain.low) / (a.gain.high - a.gain.low), 2, rel_tol=0.2)
        assert math.isclose(
            (g.score.high - g.score.low) / (a.score.high - a.score.low), 2, rel_tol=0.2
        )


def test_conditions_over_other_examples_or_of_one_name_are_refused() -> None:
    base = Condition(name="base", right=np.zeros(3, dtype=bool), forward_passes=1)
    short = Condition(name="short", right=np.zeros(2, dtype=bool), forward_passes=1)
    with pytest.raises(
        LoclinError, match="of the same 3 examples, found 2 of short: answer all of them"
    ):
        compare([short], base, seed=0)
    with pytest.raises(LoclinError, match=r"different names, found \['base'\] more than once"):
        compare([base], base, seed=0)
    assert len(compare([], base, seed=0)) == 1


# why the splits are locked


def test_a_winner_of_pure_noise_gains_on_the_split_that_chose_it_and_nowhere_else() -> None:
    """64 candidates that all answer at random like the base: chosen on select, reported on test,
    over 400 searches.

    On select the winner seems to gain m_N standard deviations of a score; on test its gain is zero
    within its interval as often as the interval says.
    """
    rng, searches, total, n, chance = np.random.default_rng(5), 400, 64, 400, 0.5
    selected, tested = [], []
    for search in range(searches):
        # scores on select are sums over examples; outcomes on test are drawn for the winner and the
        # base
        scores = rng.binomial(n, chance, total) / n
        winner = int(scores.argmax())
        outcomes = rng.random((2, n)) < chance
        selected.append(scores[winner] - chance)
        tested.append(paired_difference(outcomes[0], outcomes[1], seed=search))
    spread = math.sqrt(chance * (1 - chance) / n)
    assert math.isclose(np.mean(selected), expected_maximum(total) * spread, rel_tol=0.03)
    values = np.array([e.value for e in tested])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(searches)
    assert 0.92 <= np.mean([e.low <= 0 <= e.high for e in tested]) <= 0.98
    # and an honest reader of the select split would have believed it: what the interval covers
    # there is almost never zero
    assert np.mean(np.array(selected) > 1.96 * spread) > 0.6
