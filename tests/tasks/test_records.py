import pytest

from loclin.errors import LoclinError
from loclin.tasks.records import Record, parse_template

RECORD = Record(
    where="pool.jsonl line 3",
    fields={"question": "why", "year": 1999, "score": 0.5, "tags": ["a"], "x": None},
)


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{question}?", "why?"),
        ("In {year}: {question}", "In 1999: why"),
        (r"{question}\n{score}", "why\n0.5"),
        ("{{{question}}}", "{why}"),
        ("{x}{question}", "why"),
        ("Q: {x}", ""),  # all of its fields are empty: so is the prompt
    ],
)
def test_a_template_is_filled_from_the_records_own_fields(template: str, filled: str) -> None:
    assert parse_template(template).fill(RECORD) == filled


def test_a_field_that_does_not_exist_names_those_that_do() -> None:
    line = (
        "field 'answer', found the fields 'question', 'year', 'score', 'tags', 'x' in "
        "pool.jsonl line 3: use one"
    )
    with pytest.raises(LoclinError, match=line):
        parse_template("{answer}").fill(RECORD)


@pytest.mark.parametrize("template", ["{question.__class__}", "{tags[0]}", "{0}"])
def test_a_template_reaches_nothing_but_fields(template: str) -> None:
    with pytest.raises(LoclinError, match="the template's field"):
        parse_template(template).fill(RECORD)


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (
            "{question",
            r"found '\{question' \(expected '\}' before end of string\): write \{\{ for a brace",
        ),
        ("question}", "write {{ for a brace"),
        ("{question!r}", "leave out formats"),
        ("{year:>9}", "leave out formats"),
        ("{}", "leave out formats and empty braces"),
        ("What now?", "at least one field like {question}"),
        ("", "at least one field like {question}"),
    ],
)
def test_a_template_that_cannot_be_read_is_refused(template: str, line: str) -> None:
    with pytest.raises(LoclinError, match=line):
        parse_template(template)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(
        LoclinError, match=r"expected text in 'tags', found \['a'\] in pool.jsonl line 3"
    ):
        parse_template("{tags}").fill(RECORD)
    half = Record(where="pool.jsonl line 4", fields={"prompt": "\ud83d"})
    with pytest.raises(
        LoclinError,
        match=r"whole characters in 'prompt', found the half of one, '\\ud83d', in pool",
    ):
        half.text("prompt")
    with pytest.raises(LoclinError, match="expected text in 'task', found True"):
        Record(where="here", fields={"task": True}).name("task")
    assert RECORD.name("year") == "1999"
    assert RECORD.text("absent") == ""


def test_messages_stay_short_and_on_one_line() -> None:
    record = Record(
        where="here", fields={f"field\n{i}": None for i in range(30)} | {"long": ["x" * 500]}
    )
    with pytest.raises(LoclinError) as caught:
        record.text("long")
    assert len(str(caught.value)) < 120
    with pytest.raises(LoclinError) as caught:
        parse_template("{absent}").fill(record)
    assert "and 19 more" in str(caught.value)
    assert "\n" not in str(caught.value)
