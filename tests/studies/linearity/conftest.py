"""Small runs of the linearity study, and folders as users of the radius bring them."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from loclin.line import ray
from loclin.models import Problem
from loclin.models.lora import Lora, attach
from loclin.parameters import ParameterSpace
from loclin.run.rows import Part
from loclin.run.runner import Session
from loclin.studies.linearity.measure import measure
from loclin.studies.linearity.settings import LinearitySettings, preset

SMALL: dict[str, Any] = {
    "seeds": 1,
    "steps": 10,
    "k": 3,
    "prefix_vectors": (1, 3),
    "hessian_directions": 2,
    "window_examples": 12,
    "per_decade": 1,
    "smallest": 1e-5,
    "task_vector_steps": 2,
}


@pytest.fixture(scope="session")
def tiny() -> LinearitySettings:
    return dataclasses.replace(preset("smoke"), **SMALL).checked()


@pytest.fixture(scope="session")
def tiny_lora() -> LinearitySettings:
    return dataclasses.replace(preset("smoke", "statements-small"), ranks=(2,), **SMALL).checked()


@pytest.fixture(scope="session")
def part(trained: Problem, tiny: LinearitySettings) -> Part:
    return measure(tiny, 0, Session())


@pytest.fixture(scope="session")
def by_lora(speaking: Problem, tiny_lora: LinearitySettings) -> Part:
    return measure(tiny_lora, 0, Session())


@pytest.fixture(scope="session")
def folders(trained: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, a tuned one, an adapter and its merged model."""
    place = tmp_path_factory.mktemp("radius")
    base = copy.deepcopy(trained.model)
    tuned = copy.deepcopy(base)
    space = ParameterSpace(tuned)
    space.add(ray(space.read(), space.noise(seed=1)), scale=0.02)
    adapted = attach(copy.deepcopy(base), Lora(rank=2), seed=0)
    factors = ParameterSpace(adapted)
    factors.add(factors.noise(seed=2), scale=0.02)
    adapted.save_pretrained(place / "adapter")
    for name, model in (("base", base), ("tuned", tuned), ("merged", adapted.merge_and_unload())):
        model.save_pretrained(place / name)
        trained.tokenizer.save_pretrained(place / name)
    return place
