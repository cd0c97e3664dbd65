import pytest

from loclin.errors import LoclinError
from loclin.tasks.example import Example, split

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
