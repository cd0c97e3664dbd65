"""One run of the study on pairs, and a user's two tasks and models, made once."""

from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.models import Problem
from loclin.progress import silent
from loclin.run.rows import Part
from loclin.run.runner import Session
from loclin.studies.context import RunContext, make_context
from loclin.studies.schedules.measure import measure, requirements
from loclin.studies.schedules.settings import SchedulesSettings
from tests.conftest import FAMILIES
from tests.studies.schedules.small import TINY, task_file


@pytest.fixture(scope="package")
def ctx(trained: Problem) -> RunContext[SchedulesSettings]:
    return make_context(TINY, 0, requirements(TINY), silent)


@pytest.fixture(scope="package")
def part(trained: Problem) -> Part:
    return measure(TINY, 0, Session())


@pytest.fixture(scope="package")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    where = tmp_path_factory.mktemp("tasks")
    first = task_file(where / "A.jsonl", {"cat": "purr", "dog": "ran"})
    return first, task_file(where / "B.jsonl", {"mat": "sat", "man": "no"})


@pytest.fixture(scope="package")
def folder(
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    made: dict[str, Path] = {}
    for family in FAMILIES:
        made[family] = tmp_path_factory.mktemp(family)
        families[family].save_pretrained(made[family])
        tokenizers[family].save_pretrained(made[family])
    return {family: str(where) for family, where in made.items()}
