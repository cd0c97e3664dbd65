"""Runs of the claims about random search that several tests read."""

from collections.abc import Iterator

import pytest
from torch import Tensor

from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.progress import silent
from loclin.run.rows import Part
from loclin.run.runner import Session
from loclin.studies.context import make_context
from loclin.studies.damage import damage
from loclin.studies.search import claims_measure
from loclin.studies.search.claims_measure import SearchData, search_data
from loclin.studies.search.point import SearchRun
from tests.studies.search.claims_small import LORA, TINY


@pytest.fixture(scope="session")
def part(trained: Problem) -> Part:
    return claims_measure.measure(TINY, 0, Session())


@pytest.fixture(scope="session")
def lora_part(speaking: Problem) -> Part:
    return claims_measure.measure(LORA, 0, Session())


@pytest.fixture(scope="session")
def ctx(trained: Problem) -> SearchRun:
    return make_context(TINY, 0, claims_measure.requirements(TINY), silent)


@pytest.fixture(scope="session")
def data(ctx: SearchRun) -> SearchData:
    return search_data(ctx)


@pytest.fixture(scope="session")
def damaged(ctx: SearchRun) -> Tensor:
    return damage(ctx, ctx.task)


@pytest.fixture
def there(ctx: SearchRun, damaged: Tensor) -> Iterator[ParameterSpace]:
    """The space, standing at θ_D."""
    with ctx.space.restored():
        ctx.space.write(damaged)
        yield ctx.space
