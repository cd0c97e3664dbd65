"""One small real run of the spectrum study."""

from dataclasses import replace

import pytest

from loclin.models import Problem
from loclin.run.rows import Part
from loclin.run.runner import Session
from loclin.studies.spectrum.measure import measure
from loclin.studies.spectrum.settings import SpectrumSettings, preset


@pytest.fixture(scope="package")
def tiny() -> SpectrumSettings:
    small = replace(preset("smoke"), task="swap", gradient_batch=4, overlap_gradients=3)
    return replace(small, seeds=1, counts=(4, 8), ks=(1, 2), k=2).checked()


@pytest.fixture(scope="package")
def part(trained: Problem, tiny: SpectrumSettings) -> Part:
    return measure(tiny, 0, Session())
