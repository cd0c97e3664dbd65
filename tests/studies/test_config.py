import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.studies.recovery.config import Config, preset


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
def test_every_profile_can_be_run(profile: Any) -> None:
    assert preset(profile).checked().profile == profile


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "at least one seed, found 0"),
        ({"data": "boolq"}, "unknown data 'boolq': expected sequences"),
        ({"workers": -1}, "workers from 0"),
        ({"batch": 0}, "batch of at least 1, found 0: change --batch"),
        ({"sgd_lr": 0.0}, "learning rate above 0, found 0.0: change --sgd-lr"),
        ({"steps": 20}, r"ks from 1 to T = 20 steps, found \[1, 2, 3, 5, 8, 10, 15, 20, 30, 50\]"),
        ({"k": 300}, r"k from 1 to T = 200 steps, found \[300\]: change --k or raise --steps"),
        ({"times": ()}, "times from 1 to T"),
        ({"k": 7}, "--k to be one of --ks"),
        ({"gradients": 5}, "k of at most 5 gradients, found 10: raise --gradients"),
        ({"rank_gradients": (8,)}, "at least two numbers of gradients"),
    ],
)
def test_bad_settings_are_named_with_their_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        replace(Config(), **change).checked()


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "scipy", "matplotlib")
    code = f"import sys, loclin.cli, loclin.studies.recovery.config; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
