import math
from dataclasses import replace

import pytest

from loclin.run.rows import Claim
from loclin.stats import Estimate
from loclin.studies.recovery.settings import RecoverySettings
from loclin.studies.verdict import adjusted, confirmed, figures, setting, verdict

CLAIM = Claim(
    id="c",
    statement="",
    setting="",
    paper="",
    measured="",
    value=1.0,
    low=0.5,
    high=1.5,
    n=6,
    null="",
    p=0.04,
    p_holm=0.2,
    rule="",
    verdict="supported",
)


def test_a_support_that_does_not_survive_holm_is_withdrawn() -> None:
    assert confirmed(CLAIM).verdict == "inconclusive"
    assert confirmed(replace(CLAIM, p_holm=0.01)).verdict == "supported"
    assert confirmed(replace(CLAIM, verdict="refuted")).verdict == "refuted"


def test_p_values_are_adjusted_over_the_claims_that_have_one() -> None:
    claims = [replace(CLAIM, p=p) for p in (0.02, None, 0.04)]
    found = adjusted(claims)
    assert [c.p_holm for c in found] == [0.04, None, 0.04]
    assert [c.verdict for c in found] == ["supported", "inconclusive", "supported"]


def test_an_estimate_of_one_run_has_no_interval() -> None:
    one = Estimate(value=0.5, low=-math.inf, high=math.inf, n=1)
    assert figures(one) == {"value": 0.5, "low": None, "high": None, "n": 1}
    assert figures(None)["value"] is None


def test_a_setting_names_model_data_and_adapter() -> None:
    settings = RecoverySettings(model="gpt2", data=("google/boolq",), space="lora")
    assert setting(settings, "SGD") == "gpt2, google/boolq, LoRA, SGD"
    assert setting(RecoverySettings(), "θ₀") == "sequences, θ₀"


@pytest.mark.parametrize(
    ("supported", "refuted", "expected"),
    [(True, False, "supported"), (False, True, "refuted"), (False, False, "inconclusive")],
)
def test_verdicts(supported: bool, refuted: bool, expected: str) -> None:
    assert verdict(supported, refuted) == expected
