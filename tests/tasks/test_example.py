import pytest

from loclin.errors import LoclinError
from loclin.tasks.example import Example, check_apart, dealt, split

POOL = [Example(prompt=f"{i} =", answer=" x", group=str(i // 4)) for i in range(200)]


def test_splits_are_disjoint_grouped_and_complete() -> None:
    parts = split(POOL, {"a": 0.5, "b": 0.3, "c": 0.2}, seed=0)
    assert {name: len(p) for name, p in parts.items()} == {"a": 100, "b": 60, "c": 40}
    groups = [{e.group for e in p} for p in parts.values()]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert sorted(e.prompt for p in parts.values() for e in p) == sorted(e.prompt for e in POOL)


def test_a_split_depends_on_the_seed_and_not_on_the_order() -> None:
    shares = {"a": 0.5, "b": 0.5}
    forward, backward = split(POOL, shares, seed=0), split(POOL[::-1], shares, seed=0)
    assert set(forward["a"]) == set(backward["a"])
    assert set(forward["a"]) != set(split(POOL, shares, seed=1)["a"])


def test_bad_shares_are_refused() -> None:
    with pytest.raises(LoclinError, match="must sum to 1"):
        split(POOL, {"a": 0.5}, seed=0)
    with pytest.raises(LoclinError, match="found 1 groups, none for 'a'"):
        split(POOL[:4], {"a": 0.4, "b": 0.6}, seed=0)


SIZES = {"labels": 50, "shift": 31, "test": 40}


def test_dealt_parts_have_their_sizes_and_share_no_group() -> None:
    parts = dealt(POOL, SIZES, seed=0)
    assert {name: len(p) for name, p in parts.items()} == SIZES
    assert list(parts) == list(SIZES)
    groups = [{e.group for e in p} for p in parts.values()]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]


def test_dealing_depends_on_seed_and_purpose_and_not_on_the_order_or_on_the_parts_before() -> None:
    parts = dealt(POOL, SIZES, seed=0)
    assert {n: set(p) for n, p in dealt(POOL[::-1], {"test": 40}, seed=0).items()} == {
        "test": set(parts["test"])
    }
    assert dealt(POOL, SIZES | {"labels": 3}, seed=0)["shift"] == parts["shift"]
    assert set(dealt(POOL, SIZES, seed=1)["test"]) != set(parts["test"])
    assert set(dealt(POOL, SIZES, seed=0, purpose="other")["test"]) != set(parts["test"])


def test_too_few_examples_are_told_with_sizes_that_fit() -> None:
    with pytest.raises(
        LoclinError, match="expected 121 examples for labels, shift and test, found 80 in 20 groups"
    ) as caught:
        dealt(POOL[:80], SIZES, seed=0)
    words = str(caught.value).split("such as ")[1].split()
    fitting = dict(
        zip((w.removeprefix("--") for w in words[::2]), map(int, words[1::2]), strict=True)
    )
    assert set(fitting) == set(SIZES)
    dealt(POOL[:80], fitting, seed=0)
    large = [Example(prompt=f"{i} =", answer=" x", group=str(i // 40)) for i in range(120)]
    with pytest.raises(
        LoclinError, match=r"3 groups: .* such as --labels 40 --shift 25 --test 32$"
    ):
        dealt(large, SIZES, seed=0)  # two groups for a part of more than forty
    with pytest.raises(LoclinError, match=r"in 2 groups: give more data$"):
        dealt(large[:80], SIZES, seed=0)
    with pytest.raises(LoclinError, match="expected 9 examples for all, found 4 in 1 groups"):
        dealt(POOL[:4], {"all": 9}, seed=0)


def test_a_prompt_in_two_groups_is_refused_where_it_would_lie_in_two_parts() -> None:
    twice = [Example(prompt=f"{i // 2} =", answer=" x", group=str(i)) for i in range(40)]
    with pytest.raises(
        LoclinError, match=r"splits that share no prompt, found '\d+ =' in (a|b) and (a|b)"
    ):
        dealt(twice, {"a": 20, "b": 20}, seed=0)
    check_apart({"a": twice[:2], "b": twice[2:4]})


def test_spread_parts_hold_as_many_groups_as_there_are() -> None:
    pool = [Example(prompt=f"{i} {j}", answer=" x", group=str(i)) for i in range(30) for j in "abc"]
    parts = dealt(pool, {"labels": 12, "test": 8}, seed=0, spread=True)
    assert [len({e.group for e in part}) for part in parts.values()] == [12, 8]
    assert {e.prompt[-1] for e in parts["labels"]} == set("abc")  # not always the first
    two = dealt(pool, {"labels": 30, "test": 20}, seed=0, spread=True)
    assert [len({e.group for e in part}) for part in two.values()] == [15, 10]
    assert not {e.group for e in two["labels"]} & {e.group for e in two["test"]}
    whole = {"labels": 48, "test": 39}
    assert dealt(pool, whole, seed=0, spread=True) == dealt(pool, whole, seed=0)
