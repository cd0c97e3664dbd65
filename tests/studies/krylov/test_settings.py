from dataclasses import replace
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.studies.krylov.settings import preset, reproduced
from loclin.studies.settings import Profile
from tests.studies.krylov.conftest import TINY


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
def test_every_profile_can_be_run(profile: Profile) -> None:
    for settings in reproduced(profile):
        assert settings.checked().k in settings.ks
    assert preset(profile, "distilgpt2").curvature_chunk < preset(profile).curvature_chunk


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 4}, r"expected --k to be one of --ks \[1, 2, 3\], found 4: add it there"),
        (
            {"ks": (2, 11)},
            r"expected ks from 1 to T = 10, found \[2, 11\]: change --ks or raise --steps",
        ),
        ({"times": (0,)}, "expected times from 1 to T = 10"),
        ({"probes": 1}, "probes of at least 2, found 1: change --probes"),
        (
            {"curvature_examples": 0},
            "expected curvature-examples of at least 1, found 0: change --curvature-examples",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        replace(TINY, **change).checked()
