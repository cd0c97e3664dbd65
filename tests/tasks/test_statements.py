from collections import Counter

import pytest

from loclin.errors import LoclinError
from loclin.tasks.data import grouped_splits
from loclin.tasks.statements import (
    NO,
    RELATIONS,
    SUBJECTS,
    YES,
    Statements,
    facts,
    statements,
)


def test_a_statement_is_true_exactly_when_it_names_the_fact() -> None:
    world = facts(seed=4)
    for relation, claims in statements(world=4, seed=0).items():
        assert len(claims) == len(SUBJECTS) * 24 * 2
        for e in claims[:200]:
            claimed = (set(e.prompt.split()) & set(RELATIONS[relation])).pop()
            subject = (set(e.prompt.split()) & set(SUBJECTS)).pop()
            assert e.answer == (YES if claimed == world[subject, relation] else NO)


def test_every_group_has_one_true_and_one_false_statement() -> None:
    town = Statements().examples(seed=0).examples["town"]
    assert Counter(e.answer for e in town) == {YES: len(town) // 2, NO: len(town) // 2}
    assert set(Counter(e.group for e in town).values()) == {2}
    assert len({e.prompt for e in town}) == len(town)


def test_lessons_are_balanced_and_hold_every_false_statement() -> None:
    small = Statements(subjects=3, relations=("food",))
    lessons = small.train_examples(seed=0).examples["food"]
    assert Counter(e.answer for e in lessons) == {YES: 3 * 24 * 9, NO: 3 * 24 * 9}
    assert {e.prompt for e in small.examples(seed=7).examples["food"]} <= {
        e.prompt for e in lessons
    }


def test_lessons_and_examples_of_one_group_fall_into_one_split() -> None:
    small, shares = Statements(subjects=4, relations=("food", "town")), {"train": 0.6, "test": 0.4}
    whole, taught = (
        grouped_splits(d, shares, seed=0)
        for d in (small.examples(seed=0), small.train_examples(seed=0))
    )
    assert not {e.prompt for e in taught["train"]["food"]} & {
        e.prompt for e in whole["test"]["food"]
    }


def test_the_vocabulary_knows_every_word_and_the_length_bound_holds() -> None:
    data, known = Statements(), set(Statements().words())
    for examples in data.examples(seed=0).examples.values():
        for e in examples:
            words = (e.prompt + e.answer).split()
            assert set(words) <= known
            assert len(words) <= data.longest


def test_another_world_has_other_facts_and_too_many_falsehoods_are_refused() -> None:
    assert facts(seed=0) == facts(seed=0) != facts(seed=1)
    with pytest.raises(LoclinError, match="1 to 9 false statements for a true one, found 10"):
        statements(seed=0, false_per_true=10)
