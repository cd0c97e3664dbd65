"""Settings of `loclin radius`: names, digests, mistakes with their remedy."""

from pathlib import Path
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.studies.linearity.radius_settings import RadiusSettings


def settings(**change: Any) -> RadiusSettings:
    return RadiusSettings(**{"model": "sequences-small", "direction": "gradient", **change})


@pytest.mark.parametrize(
    ("direction", "entry"),
    [
        ("gradient", "radius-sequences-small-gradient"),
        ("a/b/delta.safetensors", "radius-sequences-small-delta"),
        ("path/base..path/tuned v2", "radius-sequences-small-base-tuned-v2"),
    ],
)
def test_an_entry_names_model_data_space_and_direction(direction: str, entry: str) -> None:
    asked = settings(direction=direction)
    assert asked.entry == entry
    assert asked.run_folder == Path("runs") / entry
    on = settings(direction=direction, data=("my/yes.csv",), space="*attn*").entry
    assert on == entry.replace("small", "small-yes-attn")


def test_another_file_of_changes_is_another_record(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    path.write_bytes(b"one")
    before = settings(direction=str(path)).fingerprint()
    path.write_bytes(b"two")
    assert settings(direction=str(path)).fingerprint() != before
    assert "direction_digest" not in settings().fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "path/to/base"}, "expected --data with the model"),
        ({"folds": 1}, "folds of at least 2, found 1: change --folds"),
        ({"tolerance": 0.0}, "a tolerance between 0 and 1, found 0.0: change --tolerance"),
        ({"precision": 2.0}, "a precision between 0 and 1, found 2.0: change --precision"),
        ({"smallest": 2.0}, "0 < smallest < largest, found 2.0 and 1.0"),
        ({"examples": 0}, "examples of at least 1, found 0"),
        ({"dtype": "bfloat16"}, "expected float32 or float64, .* found --dtype bfloat16"),
    ],
)
def test_bad_settings_are_named_with_their_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        settings(**change).checked()
