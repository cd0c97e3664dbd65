"""A taught adapter of the small statement model. Tests that move it do so inside `restored()`."""

import dataclasses

import pytest

from loclin.models import Problem
from loclin.progress import silent
from loclin.studies.context import Requirements, RunContext, make_context
from loclin.studies.recovery.settings import RecoverySettings, preset

BY_LORA: RecoverySettings = dataclasses.replace(
    preset("smoke", "statements-small"), seeds=1, ranks=(2,), steps=12
)
NOTHING = Requirements(examples={}, vectors=(1, ""), rows=(12, "updates"))


@pytest.fixture(scope="session")
def ctx(speaking: Problem) -> RunContext[RecoverySettings]:
    return make_context(BY_LORA, 0, NOTHING, silent)
