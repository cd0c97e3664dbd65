from dataclasses import replace
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.search import local_law
from loclin.studies.search import claims_settings
from loclin.studies.search.claims_settings import preset, reproduced
from loclin.studies.settings import Profile
from tests.studies.search.claims_small import TINY


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
def test_every_profile_can_be_run(profile: Profile) -> None:
    for settings in reproduced(profile):
        assert settings.checked().profile == profile
    assert preset(profile, "distilgpt2").curvature_chunk < preset(profile).curvature_chunk


def test_all_runs_hold_1200_candidates_for_figure_3() -> None:
    for settings in reproduced("standard"):
        assert settings.seeds * settings.candidates >= 1200


def test_models_are_the_units_of_every_profile() -> None:
    units = {p: [(s.seeds, s.models) for s in reproduced(p)[:2]] for p in ("standard", "paper")}
    assert units == {"standard": [(12, 6), (8, 4)], "paper": [(24, 12), (24, 12)]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"n": 6},
            r"expected n from 2 to the fewest candidates, 5, found 6: change --n, or raise "
            r"--candidates",
        ),
        ({"n": 3}, r"expected --n 3 among --best-of, from 1 on, found \[1, 2, 4\]: add it"),
        ({"sizes": (0.2, 0.05, 1.0)}, "expected growing sizes above 0"),
        ({"sizes": (0.2, 0.5)}, "expected 1 and --size 0.2 among --sizes"),
        (
            {"size": 1.0},
            r"expected a size of at most 0.25, within the law's domain, found 1.0: lower --size",
        ),
        ({"edge": 1.5}, "expected an edge between 0 and 1, found 1.5: change --edge"),
        ({"votes": (3,)}, r"expected growing votes that begin with 1, found \[3\]: change --votes"),
        (
            {"tested": 2},
            r"expected from 3 \(the largest vote\) to 6 candidates to be tested, found 2: change "
            r"--tested",
        ),
        ({"temperature": 0.0}, "expected a temperature above 0"),
        ({"noises": ("gaussian",)}, "expected noises beside gaussian, each once"),
        ({"probes": 1}, "at least 2 probes for an interval, found 1: raise --probes"),
        ({"gradients": 5}, "expected at least 2 k = 6 gradients, found 5: raise --gradients"),
        ({"k": 13}, r"expected k from 1 to T = 12, found \[13\]: change --k or raise --steps"),
        ({"halfway_every": 0}, "expected halfway-every of at least 1, found 0: change --halfway-"),
        (
            {"space": "lora", "dtype": "bfloat16"},
            "expected float32 or float64 for gains this small",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        replace(TINY, **change).checked()


def test_sizes_that_are_allowed_lie_in_the_law_s_domain() -> None:
    assert claims_settings.DOMAIN == local_law.DOMAIN
