from dataclasses import replace
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.stats import on_scale, unscaled
from loclin.studies.recovery.settings import RecoverySettings, preset, reproduced
from loclin.studies.settings import Profile


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
def test_every_profile_can_be_run(profile: Profile) -> None:
    for settings in reproduced(profile):
        assert settings.checked().k in settings.ks
    sequences, statements = (preset(profile, model) for model in ("sequences", "statements"))
    counts = {"smoke": (3, 3, 3, 3), "standard": (12, 6, 8, 4), "paper": (24, 12, 24, 12)}[profile]
    assert counts == (sequences.seeds, sequences.models, statements.seeds, statements.models)
    assert preset(profile, "statements").gradients < preset(profile, "sequences").gradients


def test_prefixes_end_with_the_whole_way_and_the_longest_is_kept_exactly() -> None:
    settings = RecoverySettings(ks=(1, 10), steps=60, project_ks=(5, 20))
    assert settings.all_ks == (1, 10, 60)
    assert settings.head == 20


def test_shares_are_averaged_on_a_scale_of_their_own() -> None:
    assert {"logit", "score"} == set(RecoverySettings.scales.values())
    for scale in RecoverySettings.scales.values():
        assert 0 < float(unscaled(on_scale(0.3, scale), scale)) < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 20}, r"ks from 1 to T = 20, found \[1, 2, 3, 5, 8, 10, 15, 20, 30, 50\]"),
        ({"k": 300}, r"k from 1 to T = 200, found \[300\]: change --k or raise --steps"),
        ({"times": ()}, "times from 1 to T"),
        ({"project_repeats": 0}, "project-repeats of at least 1, found 0"),
        ({"k": 7}, "--k to be one of --ks"),
        ({"gradients": 5}, "k of at most 5 gradients, found 10: raise --gradients"),
        ({"times": (150,)}, r"time of at most 100 steps, found \[150\]"),
    ],
)
def test_bad_settings_are_named_with_their_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        replace(RecoverySettings(), **change).checked()
