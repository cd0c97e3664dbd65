"""Options of loading: what is refused before anything is loaded."""

from pathlib import Path

import pytest

from loclin import models
from loclin.errors import LoclinError
from loclin.options import BUILT_IN, LoadOptions


def test_names_of_built_in_models_are_those_of_the_recipes() -> None:
    assert set(BUILT_IN) == set(models.BUILT_IN)


def test_a_model_that_is_not_built_in_needs_data() -> None:
    LoadOptions(model="statements").check_loading()
    with pytest.raises(LoclinError, match=r"did you mean the built-in --model sequences\?"):
        LoadOptions(model="sequence").check_loading()


def test_a_file_of_data_has_to_be_there(tmp_path: Path) -> None:
    there = tmp_path / "mine.jsonl"
    there.write_text("{}")
    LoadOptions(model="other", data=(str(there), "google/boolq")).check_loading()
    with pytest.raises(LoclinError, match=r"found nothing at none\.jsonl: check the path"):
        LoadOptions(model="other", data=(str(there), "none.jsonl")).check_loading()
