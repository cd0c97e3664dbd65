from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.tasks.data import TaskData
from loclin.tasks.example import Example
from loclin.tasks.records import Record
from loclin.tasks.schemas import task_data


def read(*rows: dict[str, Any], template: str | None = None) -> TaskData:
    records = (Record(where=f"pool line {i}", fields=row) for i, row in enumerate(rows, start=1))
    return task_data(records, source="pool", task="pool", template=template)


def examples(*rows: dict[str, Any], template: str | None = None) -> tuple[Example, ...]:
    return read(*rows, template=template).examples["pool"]


OPTIONS = ["blue", "red"]
SKY = {"prompt": "The sky is", "options": OPTIONS, "label": 0}
BLOOD = {"prompt": "Blood is", "options": OPTIONS, "label": "red"}
PURR = {"question": "do cats purr", "passage": "Cats purr.", "answer": True}
BARK = {"question": "do cats bark?", "passage": "Cats purr.", "answer": "No"}
SURE = {
    "question": "Sure?",
    "answer_matching_behavior": "(B)",
    "answer_not_matching_behavior": "(A)",
}
AGREED = {
    "question": "Answer:",
    "answer_matching_behavior": " (A)",
    "answer_not_matching_behavior": " (B)",
}


def test_every_schema_becomes_examples() -> None:
    assert examples({"prompt": "1 + 1 =", "answer": "2"}) == (
        Example(prompt="1 + 1 =", answer=" 2"),
    )
    both = (" blue", " red")
    assert examples(SKY, BLOOD) == (
        Example(prompt="The sky is", answer=" blue", options=both),
        Example(prompt="Blood is", answer=" red", options=both),
    )
    truth = (" yes", " no")
    assert examples(PURR, BARK) == (
        Example(
            prompt="Cats purr.\nQuestion: do cats purr?\nAnswer:",
            answer=" yes",
            options=truth,
            group="Cats purr.",
        ),
        Example(
            prompt="Cats purr.\nQuestion: do cats bark?\nAnswer:",
            answer=" no",
            options=truth,
            group="Cats purr.",
        ),
    )
    letters = (" (A)", " (B)")
    assert examples(SURE, AGREED) == (
        Example(prompt="Sure?\n\nAnswer:", answer=" (B)", options=letters),
        Example(prompt="Answer:", answer=" (A)", options=letters),
    )


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"), [("a", "b", " b"), ("a", "\nb", "\nb"), ("a\n", "b", "b")]
)
def test_one_space_parts_prompt_and_answer(prompt: str, answer: str, expected: str) -> None:
    assert examples({"prompt": prompt, "answer": answer})[0].answer == expected


def test_a_template_takes_the_place_of_the_prompt_and_may_end_in_white_space() -> None:
    made = examples(PURR, BARK, template=r"{question}\n")
    assert [(e.prompt, e.answer, e.options) for e in made] == [
        ("do cats purr\n", "yes", ("yes", "no")),
        ("do cats bark?\n", "no", ("yes", "no")),
    ]
    assert {e.group for e in made} == {"Cats purr."}  # still one passage
    assert examples({"q": "1 + 1", "answer": "2"}, template="{q} =")[0].prompt == "1 + 1 ="
    assert (
        examples({"prompt": "1", "answer": "2"}, template="{prompt} + 1 =")[0].prompt == "1 + 1 ="
    )


def test_tasks_and_groups_may_be_named() -> None:
    row = {"prompt": "a", "answer": "b"}
    data = read(
        row,
        row | {"task": "second", "group": 7},
        row | {"task": None, "group": None, "prompt": "c"},
    )
    assert {task: [e.group for e in es] for task, es in data.examples.items()} == {
        "pool": ["", ""],
        "second": ["7"],
    }


def test_a_long_passage_is_a_short_group_all_the_same() -> None:
    long = {"passage": "Cats purr. " * 50}
    groups = {e.group for e in examples(PURR | long, BARK | long)}
    assert len(groups) == 1
    assert len(groups.pop()) == 32
    assert examples(PURR | {"passage": ""}, BARK)[0].prompt == "Question: do cats purr?\nAnswer:"


def test_null_and_empty_fields_are_dropped_and_counted() -> None:
    rows = [
        PURR | {"question": None},
        PURR | {"answer": None},
        PURR | {"question": " "},
        PURR,
        BARK,
    ]
    assert read(*rows).dropped == {"with an empty prompt": 2, "with an empty answer": 1}
    assert read(SKY, BLOOD, SKY | {"label": None}).dropped == {"with an empty answer": 1}
    assert read(SURE, AGREED, AGREED | {"answer_matching_behavior": None}).dropped == {
        "with an empty answer": 1
    }
    rows = [SKY, BLOOD, SKY | {"options": ["blue", " "], "prompt": "Look:"}]
    assert read(*rows).dropped == {"with an empty option": 1}


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([], "at least one record, found none in pool"),
        (
            [{"text": "a"}],
            r"known schema \(prompt, options, label; .*\), found 'text' in pool line 1: rename",
        ),
        ([{"answer": "a"}], "known schema"),
        (
            [PURR, SKY],
            "BoolQ schema as in pool line 1, found those of the options schema in pool line 2",
        ),
        ([PURR, {"question": "a"}], "known schema .* found 'question' in pool line 2"),
        (
            [SKY, SKY | {"label": 2}],
            "a label from 0 to 1, found 2 in pool line 2: count the options from 0",
        ),
        ([SKY | {"label": -1}], "a label from 0 to 1, found -1"),
        ([SKY | {"label": True}], "an index or an option's text in 'label', found True"),
        ([SKY | {"label": "green"}], "a label among the options 'blue', 'red', found 'green'"),
        ([SKY | {"options": ["blue"]}], "at least two options, found 1 in pool line 1"),
        ([SKY | {"options": ["blue", " blue"]}], "options that differ, found 'blue', ' blue'"),
        ([SKY | {"options": "blue"}], "a list of texts in 'options', found 'blue'"),
        (
            [{"prompt": "a", "options": OPTIONS, "answer": "red"}],
            "a label beside the options, found none",
        ),
        ([{"prompt": "a", "answer": 3}], "text in 'answer', found 3 in pool line 1"),
        ([PURR | {"answer": "maybe"}], "true, false, yes or no in 'answer', found 'maybe'"),
        ([PURR | {"answer": 1}], "true, false, yes or no in 'answer', found 1"),
        (
            [SURE | {"answer_not_matching_behavior": "(B)"}],
            r"options that differ, found '\(B\)', '\(B\)'",
        ),
        (
            [SKY, BLOOD | {"label": "blue"}],
            "at least two different right answers in task 'pool' of pool, found only ' blue'",
        ),
        (
            [{"prompt": "a", "answer": ""}],
            "keep in pool, found none: 1 read, dropped 1 with an empty answer",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(rows: list[dict[str, Any]], line: str) -> None:
    with pytest.raises(LoclinError, match=line) as caught:
        read(*rows)
    assert "\n" not in str(caught.value)
