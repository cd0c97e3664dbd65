"""Models are built once per session, in a cache folder of the session's own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from loclin import models
from loclin.models import Problem

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("LOCLIN_CACHE")
    os.environ["LOCLIN_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["LOCLIN_CACHE"]
    else:
        os.environ["LOCLIN_CACHE"] = before


@pytest.fixture(scope="session")
def trained() -> Problem:
    """The small sequence model. Tests that move its weights do so inside `space.restored()`."""
    return models.load("sequences-small", seed=0)
