from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.studies.steering.claims_settings import SteeringClaimsSettings, preset, reproduced


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
def test_every_profile_can_be_run(profile: Any) -> None:
    every = reproduced(profile)
    assert all(settings.checked().profile == profile for settings in every)
    assert len({s.entry for s in every}) == len(every) == (2 if profile == "paper" else 1)
    assert every[0].entry == f"steering-statements{'-small' if profile == 'smoke' else ''}"


def test_runs_models_and_nulls_of_the_profiles() -> None:
    standard, paper, smoke = (preset(profile) for profile in ("standard", "paper", "smoke"))  # type: ignore[arg-type]
    assert [(s.runs, s.models) for s in (smoke, standard, paper)] == [(3, 3), (8, 4), (24, 12)]
    assert [standard.model_seed(run) for run in range(8)] == [0, 1, 2, 3] * 2
    assert all(standard.model_seed(run) == standard.of_model(run) for run in range(8))
    own = preset("standard", "gpt2")
    assert (own.runs, own.models) == (3, 1)
    # Holm over five claims in both directions, draws of one model
    assert 10 / (2 * min(own.directions, own.tokens) + 1) < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": "lora"}, "expected --space full or a pattern of parameter names, found lora"),
        ({"dtype": "bfloat16"}, "float32 or float64 for steps this small, found --dtype bfloat16"),
        ({"eta": 0.5}, "--eta 0.5 among --etas"),
        ({"etas": (1e-2, 1e-3)}, "growing step sizes above 0"),
        ({"winners": 200}, "fewer winners than the 200 candidates, found 200"),
        ({"strengths": (-1.0, 1.0)}, "different finite strengths with −1, 0 and 1"),
        ({"test": 4}, "test of at least 8, found 4: change --test"),
        ({"directions": 0}, "directions of at least 1, found 0"),
        ({"kl": 0.0}, "kl above 0, found 0.0: change --kl"),
        ({"search_size": 2.0}, "between 0 and 1, found 2.0"),
        (
            {"neutral": Path("nowhere.txt")},
            "expected a file for --neutral, found nothing at nowhere.txt",
        ),
        ({"neutral_tokens": 1}, "neutral-tokens of at least 2, found 1"),
        ({"outliers": -1}, "found -1: change --outliers"),
        ({"model": "gpt2", "data": ()}, "expected --data with the model 'gpt2'"),
        ({"seeds": 0}, "at least one seed, found 0"),
    ],
)
def test_bad_settings_are_named_with_their_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        replace(SteeringClaimsSettings(), **change).checked()
