"""Three parts that share nothing, drawn by the seed alone; what is too few or repeats itself is
refused.
"""

import random

import pytest

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.search.splits import PARTS, Splits, askable, check_disjoint, divided, examples_hash
from loclin.tasks.example import Example

SIZES = {"select": 20, "validate": 10, "test": 30}
POOL = [Example(prompt=f"{i} =", answer=" x", group=f"g{i // 3}") for i in range(90)]


def parts(splits: Splits) -> dict[str, tuple[Example, ...]]:
    return {name: getattr(splits, name) for name in PARTS}


def test_no_group_and_no_prompt_is_in_two_parts_and_each_holds_its_number() -> None:
    found = parts(divided(POOL, SIZES, seed=0))
    assert {name: len(part) for name, part in found.items()} == SIZES
    groups = [{e.group for e in part} for part in found.values()]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert len({e.prompt for part in found.values() for e in part}) == 60


def test_a_group_keeps_its_place_whatever_the_order_of_the_examples() -> None:
    first, mixed = divided(POOL, SIZES, seed=0), list(POOL)
    random.Random(0).shuffle(mixed)
    again = divided(mixed, SIZES, seed=0)
    for name in PARTS:
        assert {e.group for e in getattr(first, name)} == {e.group for e in getattr(again, name)}
    other = divided(POOL, SIZES, seed=1)
    assert {e.group for e in first.test} != {e.group for e in other.test}


def test_test_is_the_same_whatever_is_taken_for_the_other_parts() -> None:
    small = divided(POOL, SIZES | {"select": 5, "validate": 3}, seed=0)
    assert small.test == divided(POOL, SIZES, seed=0).test


def test_prompts_are_groups_where_none_is_given() -> None:
    bare = [Example(prompt=f"{i} =", answer=" x") for i in range(60)]
    found = divided(bare, SIZES, seed=0)
    assert len({e.prompt for part in parts(found).values() for e in part}) == 60


def test_too_few_examples_say_how_many_are_needed_and_what_would_fit() -> None:
    with pytest.raises(
        LoclinError,
        match=r"expected 60 examples for select, validate and test, found 40 in 14 groups: give "
        r"more data, or fewer of each, such "
        r"as --select 12 --validate 6 --test 18",
    ):
        divided(POOL[:40], SIZES, seed=0)
    divided(POOL[:40], {"select": 12, "validate": 6, "test": 18}, seed=0)


def test_splits_that_overlap_are_refused() -> None:
    twice = [
        *POOL,
        *(Example(prompt=e.prompt, answer=" y", group=f"other {e.group}") for e in POOL),
    ]
    with pytest.raises(
        LoclinError,
        match=r"splits that share no prompt, found '\d+ =' in (select|validate|test) and ",
    ):
        divided(twice, {"select": 60, "validate": 60, "test": 60}, seed=0)
    with pytest.raises(
        LoclinError, match="splits that share no group, found 'g0' in select and test"
    ):
        check_disjoint(
            Splits(select=tuple(POOL[:1]), validate=tuple(POOL[30:31]), test=tuple(POOL[1:2]))
        )


def test_hashes_tell_every_word_and_the_order() -> None:
    first = examples_hash(POOL[:2])
    assert first == examples_hash(POOL[:2])
    assert first != examples_hash(POOL[1::-1])
    assert first != examples_hash(
        [POOL[0], Example(prompt=POOL[1].prompt, answer=" y", group=POOL[1].group)]
    )
    assert set(divided(POOL, SIZES, seed=0).hashes()) == set(PARTS)


def test_what_a_model_was_trained_on_is_not_asked(trained: Problem) -> None:
    every = askable(trained.examples, task=None, without=())
    fresh = askable(trained.examples, task="swap", without=("train", "validate"))
    taught = {e.prompt for name in ("train", "validate") for e in trained.examples[name]["swap"]}
    assert not taught & {e.prompt for e in fresh}
    assert len(fresh) < len(every) / len(trained.tasks)
    with pytest.raises(LoclinError, match="unknown task 'divide': expected one of copy"):
        askable(trained.examples, task="divide", without=())
