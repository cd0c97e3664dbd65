"""Settings of the linearity study: every profile runs, mistakes are named with their remedy."""

import dataclasses
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.studies.linearity.settings import LinearitySettings, reproduced
from loclin.studies.settings import Profile


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
def test_every_profile_can_be_run(profile: Profile) -> None:
    for settings in reproduced(profile):
        assert settings.checked().profile == profile
        assert settings.evaluate == ("same" if settings.data else "float64")
    assert len({settings.entry for settings in reproduced(profile)}) == len(reproduced(profile))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smallest": 0.0}, r"0 < smallest < largest, found 0\.0 and 1\.0"),
        (
            {"smallest": 2.0},
            r"0 < smallest < largest, found 2\.0 and 1\.0: change --smallest or --largest",
        ),
        ({"tolerances": ()}, r"tolerances between 0 and 1, found \[\]"),
        (
            {"tolerances": (0.1, 1.0)},
            r"tolerances between 0 and 1, found \[0\.1, 1\.0\]: change --tolerances",
        ),
        ({"curvature_chunk": 0}, "curvature-chunk of at least 1, found 0"),
        ({"per_decade": 0}, "per-decade of at least 1, found 0"),
        ({"k": 300}, r"k from 1 to T = 200, found \[300\]"),
        (
            {"prefix_vectors": (1, 11)},
            r"prefix-vectors from 1 to k = 10, found \[1, 11\]: change --prefix-vectors or raise "
            r"--k",
        ),
        ({"hessian_directions": 0}, "hessian-directions of at least 1, found 0"),
        (
            {"dtype": "auto"},
            "float32 or float64, whose round-off leaves a window to be seen, found --dtype auto",
        ),
        (
            {"dtype": "bfloat16", "space": "lora"},
            "float32 or float64, whose round-off leaves a window",
        ),
        ({"window_examples": 0}, "window-examples of at least 1, found 0"),
    ],
)
def test_bad_settings_are_named_with_their_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        dataclasses.replace(LinearitySettings(), **change).checked()
