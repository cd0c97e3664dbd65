"""Searches and runs of the claims about them that several tests read: each made once."""

import copy
from collections.abc import Iterator
from pathlib import Path

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
from tests.studies.search.command import GAIN, search


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


@pytest.fixture(scope="session")
def model(trained: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model off its minimum, as a folder: there is something to find."""
    place = tmp_path_factory.mktemp("search") / "model"
    moved = copy.deepcopy(trained.model)
    space = ParameterSpace(moved)
    space.add(space.noise(seed=4), scale=0.06)
    moved.save_pretrained(str(place))
    trained.tokenizer.save_pretrained(str(place))
    return place


@pytest.fixture(scope="session")
def finished(model: Path) -> tuple[Path, str]:
    out = model.parent / "run"
    return out, search(model, out, *GAIN)


@pytest.fixture(scope="session")
def twice(model: Path) -> tuple[Path, str]:
    """Two searches over a new adapter's factors, in antithetic pairs, without a forecast."""
    out = model.parent / "twice"
    lora = ("--space", "lora", "--rank", "2", "--antithetic", "--sigma", "0.05", "--n", "8")
    return out, search(model, out, *lora, "--seeds", "2", "--no-forecast")
