"""What a model knows comes first: on the page, and before anything is destroyed."""

from copy import deepcopy
from dataclasses import replace

import pytest

from loclin.models import Problem
from loclin.progress import silent
from loclin.run.rows import Row, summaries
from loclin.studies import context, known
from loclin.studies.context import RunContext, make_context
from loclin.studies.known_page import section, with_known
from loclin.studies.recovery.settings import RecoverySettings
from tests.models.test_zero_shot import turned
from tests.rows import value
from tests.studies.conftest import BY_LORA, NOTHING

#: The small statement model as somebody's own, with its data given by name.
OWN = replace(BY_LORA, model="mine", data=("mine.jsonl",), task="each")


def test_a_built_in_model_is_not_asked_what_it_was_made_from(speaking: Problem) -> None:
    found = known.known(speaking, BY_LORA, 0)
    assert not found.rows
    assert not found.notes
    assert found.tasks == speaking.tasks


def test_rows_notes_and_tasks_say_what_is_known(speaking: Problem) -> None:
    found = known.known(turned(speaking, "town"), OWN, 0)
    assert found.tasks == ("colour",)
    assert value(found.rows, known.KNOWN, of="town") == 0
    assert value(found.rows, known.SCORE, of="colour") > 0.8
    assert value(found.rows, known.MASS, of="colour") > 0.9
    (note,) = found.notes
    assert note.startswith("zero-shot, before anything is trained: ")
    assert "on town (0.5" in note
    assert not known.known(speaking, OWN, 1).notes


def test_the_section_is_a_table_of_the_first_run(speaking: Problem) -> None:
    rows = [r for run in (0, 1) for r in known.known(turned(speaking, "town"), OWN, run).rows]
    (section,) = section([*rows, *summaries(rows)])
    assert section.brief
    assert section.sees == ["Not known without teaching: town."]
    (table,) = section.tables
    assert [row[0] for row in table.rows] == ["colour", "town"]
    assert [row[-1] for row in table.rows] == ["yes", "no"]
    assert all(row[-2] == "100" and "[" in row[1] for row in table.rows)
    assert section([Row(quantity="score", value=1.0)]) == []
    (alone,) = section(known.known(speaking, OWN).rows)
    assert len(alone.tables[0].rows) == 2


def test_a_study_sees_none_of_these_rows(speaking: Problem) -> None:
    own = Row(quantity="score", value=1.0)
    seen: list[Row] = []
    sections = with_known(lambda rows, _: seen.extend(rows) or [])
    assert len(sections([*known.known(speaking, OWN).rows, own], {})) == 1
    assert seen == [own]


@pytest.mark.parametrize(
    ("unknown", "tasks", "note"),
    [
        ((), ("colour", "town"), ""),
        (("town",), ("colour",), "left out of destroying and recovering: town"),
        (("colour", "town"), ("colour", "town"), "no task is known without teaching"),
    ],
)
def test_tasks_that_are_not_known_are_left_out_of_destroying(
    speaking: Problem,
    monkeypatch: pytest.MonkeyPatch,
    unknown: tuple[str, ...],
    tasks: tuple[str, ...],
    note: str,
) -> None:
    problem = speaking
    for task in unknown:
        problem = turned(problem, task)
    monkeypatch.setattr(
        context, "load", lambda *_, **__: replace(problem, model=deepcopy(problem.model))
    )
    monkeypatch.setattr(context, "teach", lambda *_: "taught")
    for run in range(2):
        ctx: RunContext[RecoverySettings] = make_context(OWN, run, NOTHING, silent)
        assert ctx.problem.tasks == tasks
        assert ctx.task in tasks
        assert ctx.known.rows
        assert any(note in line for line in ctx.notes)
    named = make_context(replace(OWN, task="town"), 0, NOTHING, silent)
    assert named.task == "town"
