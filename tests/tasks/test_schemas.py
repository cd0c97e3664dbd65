from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.tasks.data import TaskData
from loclin.tasks.example import Example
from loclin.tasks.records import Record
from loclin.tasks.schemas import task_data


def read(
    *rows: dict[str, Any], template: str | None = None, columns: dict[str, str] | None = None
) -> TaskData:
    records = (Record(where=f"pool line {i}", fields=row) for i, row in enumerate(rows, start=1))
    return task_data(records, source="pool", task="pool", template=template, columns=columns)


def examples(*rows: dict[str, Any], template: str | None = None) -> tuple[Example, ...]:
    return read(*rows, template=template).examples["pool"]


ANSWERS = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}]
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
BARKS = {"question": "Which barks?", "A": "cat", "B": "dog", "C": "fish", "answer": "B"}


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


def test_lettered_columns_are_chosen_among_by_their_letters() -> None:
    """MMLU's tables; an option of an empty cell is none, and a column A alone is no option."""
    purrs = {"question": "Which purrs?", "A": "cat", "B": 2, "C": "", "answer": "a "}
    assert examples(BARKS, purrs) == (
        Example(
            prompt="Which barks?\nA. cat\nB. dog\nC. fish\nAnswer:",
            answer=" B",
            options=(" A", " B", " C"),
        ),
        Example(prompt="Which purrs?\nA. cat\nB. 2\nAnswer:", answer=" A", options=(" A", " B")),
    )
    written = [{"prompt": row.pop("question"), **row} for row in (BARKS | {}, purrs | {})]
    assert examples(*written) == examples(BARKS, purrs)
    templated = examples(BARKS, BARKS | {"question": "Who?", "answer": "A"}, template="{question}")
    assert [(e.prompt, e.answer) for e in templated] == [("Which barks?", " B"), ("Who?", " A")]
    alone = {"prompt": "Which barks?", "A": "cat", "answer": "dog"}
    assert examples(alone) == (Example(prompt="Which barks?", answer=" dog"),)
    dropped = read(BARKS, purrs, BARKS | {"answer": ""}, BARKS | {"question": " "}).dropped
    assert dropped == {"with an empty answer": 1, "with an empty prompt": 1}


def test_options_of_one_cell_are_those_of_a_list() -> None:
    cells = [SKY | {"options": " blue | red", "label": "0"}, BLOOD | {"options": '["blue", "red"]'}]
    assert examples(*cells) == examples(SKY, BLOOD)
    three = {"prompt": "1 + 0 =", "options": "2|1|0", "label": "1"}  # both meanings are the same
    assert examples(three, SKY)[0].answer == " 1"
    numbers = [SKY | {"options": "3|4", "label": "4"}, SKY | {"options": "3|4", "label": 0}]
    assert [e.answer for e in examples(numbers[0], numbers[1] | {"prompt": "b"})] == [" 4", " 3"]
    assert read(*cells, SKY | {"options": "a|b", "label": ""}).dropped == {
        "with an empty answer": 1
    }


def test_labels_without_options_are_classes() -> None:
    made = examples({"prompt": "fine", "label": "good"}, {"prompt": "poor ", "label": "bad"})
    assert [(e.answer, e.options) for e in made] == [
        (" good", (" bad", " good")),
        ("bad", ("bad", "good")),
    ]
    numbers = examples({"prompt": "a", "label": 1}, {"prompt": "b", "label": False})
    assert [e.answer for e in numbers] == [" 1", " false"]
    with pytest.raises(
        LoclinError, match="2 to 100 different labels in task 'pool' of pool, found 1"
    ):
        examples({"prompt": "fine", "label": "good"})
    with pytest.raises(LoclinError, match=r"different labels .* found 101: name their column"):
        examples(*({"prompt": f"{i}", "label": i} for i in range(101)))


@pytest.mark.parametrize("label", [1, "1", "1.0", True, "TRUE", "yes"])
def test_statements_are_true_or_false(label: Any) -> None:
    true, false = examples(
        {"statement": " Cats purr. ", "label": label}, {"statement": "Cats bark.", "label": 0}
    )
    assert true.prompt == "Statement: Cats purr.\nQuestion: Is the statement true?\nAnswer:"
    assert (true.answer, false.answer, true.options) == (" yes", " no", (" yes", " no"))
    with pytest.raises(LoclinError, match=r"true, false, yes or no .* found 2"):
        examples({"statement": "Cats purr.", "label": 2})


def test_questions_have_an_answer_a_number_or_several_answers() -> None:
    worked = "She eats 3.\nThat leaves <<1203-3=1200>>1200.\n#### 1,200"
    data = read(
        {"question": "How many?", "answer": worked}, {"question": "And then?", "answer": "5"}
    )
    assert [e.answer for e in data.examples["pool"]] == [" 1200", " 5"]
    assert data.examples["pool"][0].prompt == "Question: How many?\nAnswer:"
    assert data.notes == (
        "1 answers are the number after ####, right after the prompt: no working",
    )
    several = {"question": "Who", "answer": ["Ann", "", "Anna", "Ann", "Anna"]}
    assert examples(several) == (
        Example(prompt="Question: Who?\nAnswer:", answer=" Ann", also=(" Anna",)),
    )
    rows = [{"question": f"do cats {v}", "answer": v == "purr"} for v in ("purr", "bark")]
    assert examples(*rows)[0].options == (" yes", " no")
    heading = {"prompt": "Write:", "answer": "#### Title\nText"}
    assert examples(heading)[0].answer == " #### Title\nText"
    with pytest.raises(LoclinError, match="a number after #### in 'answer', found '#### many'"):
        examples({"question": "How many?", "answer": "Some.\n#### many"})
    with pytest.raises(LoclinError, match="texts in 'answer', found"):
        examples({"question": "Who?", "answer": ["Ann", 3]})


def test_columns_may_have_other_names() -> None:
    row = {"q": "1 + 1 =", "choices": ["2", "3"], "key": 1, "city": "Rome"}
    columns = {"prompt": "q", "options": "choices", "label": "key", "group": "city"}
    made = read(row, row | {"q": "2 =", "key": 0}, columns=columns)
    assert made.examples["pool"][0] == Example(
        prompt="1 + 1 =", answer=" 3", options=(" 2", " 3"), group="Rome"
    )
    named = read(*ANSWERS, columns={"label": "answer"}).examples["pool"]
    assert [e.options for e in named] == [(" b", " d")] * 2
    assert read({"text": "a", "to": "b"}, columns={"prompt": "text", "answer": "to"}).kept == 1
    with pytest.raises(LoclinError, match="a field 'town' for 'group', found the fields 'q'"):
        read(row, columns=columns | {"group": "town"})


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
        ([SKY | {"options": "['blue', 'red']"}], "a list of texts in 'options', found "),
        ([SKY | {"options": "[1, 2]"}], r"a list of texts in 'options', found \[1, 2\]"),
        (
            [SKY | {"options": "1|2", "label": "1"}],
            "a label of one meaning, found '1', a place and the text of another option, in pool",
        ),
        (
            [BARKS | {"answer": "D"}],
            r"two options \(A, B, C\) in 'answer', found 'D' in pool line 1",
        ),
        ([BARKS | {"answer": 1}], r"a letter among at least two options \(A, B, C\) .* found 1 in"),
        ([BARKS | {"B": "", "C": None, "answer": "A"}], r"at least two options \(A\)"),
        ([BARKS | {"C": "dog"}], "options that differ, found 'cat', 'dog', 'dog'"),
        (
            [{"prompt": "a", "options": OPTIONS, "answer": "red"}],
            "a label beside the options, found none",
        ),
        (
            [{"question": "a", "choices": OPTIONS, "answer": 1}],
            "a label beside the options, found none .* --fields prompt=question options=choices",
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
