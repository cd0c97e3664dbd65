"""Settings of the spectrum study: every profile runs, mistakes are named with their remedy."""

from dataclasses import replace
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.studies.settings import Profile
from loclin.studies.spectrum.settings import SpectrumSettings, reproduced


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
def test_every_profile_can_be_run(profile: Profile) -> None:
    for settings in reproduced(profile):
        assert settings.checked().entry.startswith("spectrum-")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": (8, 8)}, "at least two growing numbers of gradients"),
        ({"counts": (8,)}, "at least two growing numbers of gradients"),
        ({"counts": ()}, "at least two growing numbers of gradients"),
        ({"counts": (16, 8)}, "at least two growing numbers"),
        ({"ks": (65,)}, r"ks from 1 to 64, half of the gradients, found \[65\]"),
        ({"k": 30}, "k of at most 12 gradients, found 30"),
        ({"gradient_batch": 0}, "gradient-batch of at least 1"),
        (
            {"store": "sketch", "sketch_size": 100},
            "sketch of at least 4 n = 512 numbers, found 100",
        ),
    ],
)
def test_bad_settings_are_named_with_their_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        replace(SpectrumSettings(), **change).checked()
