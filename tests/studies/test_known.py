"""What a model knows comes first: on the page, and before anything is destroyed."""

from copy import deepcopy
from dataclasses import replace

import pytest

from loclin.models import Problem
from loclin.progress import silent
from loclin.studies import context, known, names
from loclin.studies.context import RunContext, make_context
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
    assert value(found.rows, names.KNOWN, of="town") == 0
    assert value(found.rows, names.ZERO_SHOT, of="colour") > 0.8
    assert value(found.rows, names.MASS, of="colour") > 0.9
    (note,) = found.notes
    assert note.startswith("zero-shot, before anything is trained: ")
    assert "on town (0.5" in note
    assert not known.known(speaking, OWN, 1).notes


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
