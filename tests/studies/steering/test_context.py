"""Five parts of the examples: disjoint, of one form, none that a built-in model learned from."""

import dataclasses
from dataclasses import replace

import pytest

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.studies.steering.context import digest, split_examples, split_prompts
from loclin.studies.steering.names import PARTS
from loclin.studies.steering.settings import SteerSettings
from loclin.tasks.example import Example

SIZES = {"labels": 24, "gradient": 20, "shift": 16, "choose": 8, "test": 24}


def settings(**more: object) -> SteerSettings:
    return SteerSettings(model="statements-small", **{**SIZES, **more})  # type: ignore[arg-type]


def test_parts_share_nothing_and_leave_out_what_the_model_learned(speaking: Problem) -> None:
    parts = split_examples(speaking, settings())
    examples = {name: parts[name].examples for name in PARTS}
    assert {name: len(e) for name, e in examples.items()} == SIZES
    prompts = [e.prompt for part in examples.values() for e in part]
    assert len(set(prompts)) == len(prompts)
    groups = [{e.group for e in part} for part in examples.values()]
    assert sum(map(len, groups)) == len(set().union(*groups))
    taught = {
        e.prompt
        for name in ("train", "validate")
        for part in speaking.examples[name].values()
        for e in part
    }
    assert not taught & set(prompts)
    assert {parts[name].form for name in PARTS} == {"class"}
    assert digest(parts) == digest(split_examples(speaking, settings()))
    assert digest(parts) != digest(split_examples(speaking, settings(seed=1)))
    other = split_examples(speaking, settings(labels=4))
    assert other["test"].examples == parts["test"].examples


def test_one_task_alone(speaking: Problem) -> None:
    parts = split_examples(speaking, settings(task="colour"))
    assert all("colour" in e.prompt for name in PARTS for e in parts[name].examples)
    with pytest.raises(LoclinError, match="unknown task 'weather': expected one of colour, town"):
        split_examples(speaking, settings(task="weather"))


def test_too_few_examples_say_how_many_are_needed(speaking: Problem) -> None:
    with pytest.raises(
        LoclinError,
        match=r"expected 2068 examples for labels, .* and test, found \d+ in \d+ groups: give more",
    ):
        split_examples(speaking, settings(labels=2000))


def with_options(problem: Problem, options: dict[str, tuple[str, str]]) -> Problem:
    """The same prompts with other options by task; the first is right where the statement is."""

    def other(task: str, e: Example) -> Example:
        pair = options[task]
        return replace(e, options=pair, answer=pair[0 if e.answer == " yes" else 1])

    examples = {
        name: {task: tuple(other(task, e) for e in part) for task, part in tasks.items()}
        for name, tasks in problem.examples.items()
    }
    return dataclasses.replace(problem, examples=examples)


def test_without_a_positive_option_the_right_answer_counts(speaking: Problem) -> None:
    problem = with_options(speaking, {"colour": (" red", " green"), "town": (" rome", " oslo")})
    parts = split_examples(problem, settings())
    assert {parts[name].form for name in PARTS} == {"paired"}
    assert (parts["test"].toward == parts["test"].gold).all()
    for more, name in (({"form": "class"}, "form"), ({"estimand": "E3"}, "estimand")):
        with pytest.raises(
            LoclinError, match=f"expected examples with a positive option for --{name}"
        ):
            split_examples(problem, settings(**more))
    named = split_examples(problem, settings(task="colour", positive=" green"))
    assert named["test"].form == "class"
    with pytest.raises(LoclinError, match="expected the positive option ' green' in every example"):
        split_examples(problem, settings(positive=" green"))


def test_a_part_of_one_class_is_named(speaking: Problem) -> None:
    lopsided = {
        name: {
            task: tuple(e for i, e in enumerate(part) if e.answer == " yes" or i % 59 == 0)
            for task, part in tasks.items()
        }
        for name, tasks in speaking.examples.items()
    }
    with pytest.raises(
        LoclinError, match=r"in the \w+ part: expected examples of both classes, found"
    ):
        split_examples(dataclasses.replace(speaking, examples=lopsided), settings(choose=4))


def test_a_part_of_one_pair_of_options_is_not_asked_in_another_form(speaking: Problem) -> None:
    some = speaking.examples["test"][speaking.tasks[0]][:12]
    assert split_prompts("choose", some, speaking.tokenizer, " yes", "cpu").form == "class"
    with pytest.raises(
        LoclinError,
        match=r"in the choose part: expected the options of all the data, found those with ' yes'",
    ):
        split_prompts("choose", some, speaking.tokenizer, None, "cpu")
