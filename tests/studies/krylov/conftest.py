"""One real run of all weights and one by LoRA, made once for all tests of the study."""

from dataclasses import replace

import pytest

from loclin.models import Problem
from loclin.run.rows import Part
from loclin.run.runner import Session
from loclin.studies.krylov.measure import measure
from loclin.studies.krylov.settings import KrylovSettings, preset

SHORT = {"seeds": 1, "k": 2, "ks": (1, 2, 3), "curvature_examples": 16, "probes": 2}
TINY: KrylovSettings = replace(
    preset("smoke"), task="swap", steps=10, times=(1, 2, 5, 10), **SHORT
).checked()
LORA: KrylovSettings = replace(
    preset("smoke", "statements-small"),
    ranks=(2,),
    steps=8,
    times=(1, 2, 8),
    curvature_chunk=6,
    **SHORT,
).checked()


@pytest.fixture(scope="session")
def part(trained: Problem) -> Part:
    return measure(TINY, 0, Session())


@pytest.fixture(scope="session")
def lora_part(speaking: Problem) -> Part:
    return measure(LORA, 0, Session())
