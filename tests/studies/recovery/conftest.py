"""One real run of all weights and one by LoRA, made once for all tests of the study."""

import dataclasses

import pytest

from loclin.models import Problem
from loclin.run.rows import Part
from loclin.run.runner import Session
from loclin.studies.recovery.measure import measure
from loclin.studies.recovery.settings import RecoverySettings, preset

SHORT = {
    "seeds": 1, "steps": 12, "k": 3, "ks": (1, 2, 3, 6), "times": (1, 5, 12), "project_steps": 8,
    "project_ks": (3, 6), "task_vector_steps": 3, "shuffles": 9,
}  # fmt: skip
TINY: RecoverySettings = dataclasses.replace(
    preset("smoke"), task="swap", gradients=8, gradient_batch=4, hessian_batch=32, **SHORT
).checked()
LORA: RecoverySettings = dataclasses.replace(
    preset("smoke", "statements-small"), ranks=(2,), gradients=6, hessian_batch=16, **SHORT
).checked()


@pytest.fixture(scope="session")
def part(trained: Problem) -> Part:
    return measure(TINY, 0, Session())


@pytest.fixture(scope="session")
def lora_part(speaking: Problem) -> Part:
    return measure(LORA, 0, Session())
