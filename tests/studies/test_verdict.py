import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from loclin.run.rows import Claim
from loclin.stats import Estimate, mean_above
from loclin.studies.recovery.settings import RecoverySettings
from loclin.studies.verdict import (
    LEVEL,
    Drawn,
    Mean,
    Rule,
    Within,
    decided,
    setting,
    undecided,
)
from tests.rows import WORDS

CLAIM = undecided(None, **WORDS)


def rule(*conditions: Mean | Within | Drawn, models: int = 1) -> Rule:
    return Rule(claim=CLAIM, conditions=conditions, models=models)


def means(center: float, n: int = 8, spread: float = 0.05) -> np.ndarray:
    return np.asarray(center + spread * stats.norm.ppf((np.arange(n) + 0.5) / n))


def test_every_condition_has_to_hold_and_one_that_fails_refutes() -> None:
    high, low = Mean(name="a", values=means(0.8), threshold=0.5), means(-0.3)
    assert decided([rule(high)])[0].verdict == "supported"
    both = decided([rule(high, Mean(name="b", values=low, threshold=0.0))])[0]
    assert (both.verdict, both.agree) == ("refuted", "8 of 8")
    assert both.p == mean_above(low, 0.0)
    assert both.p_against == pytest.approx(2 * mean_above(-low, 0.0))  # Bonferroni over the two
    spared = decided([rule(high, Mean(name="b", values=low, threshold=0.0, refutes=False))])[0]
    assert spared.verdict == "inconclusive"
    assert decided([rule(high, Drawn(name="c", value=0.2))])[0].verdict == "inconclusive"
    assert decided([rule(Drawn(name="c", value=0.9, other=0.01))])[0].verdict == "refuted"


def test_holm_is_over_both_directions_of_all_claims() -> None:
    rules = [rule(Drawn(name="a", value=p, other=1 - p)) for p in (0.01, 0.03, 0.5)]
    first, second, third = decided(rules)
    assert first.p_holm == pytest.approx(6 * 0.01)
    assert second.p_holm == pytest.approx(5 * 0.03)
    assert third.p_against_holm == 1.0
    assert {c.verdict for c in (first, second, third)} == {"inconclusive"}
    assert decided([rules[0]])[0].verdict == "supported"  # alone, it is two tests
    assert decided([rule(Drawn(name="a", value=0.03, other=0.97))])[0].verdict == "inconclusive"


def test_the_unit_is_the_model_whatever_its_runs() -> None:
    """Runs of one model that agree are no more evidence than one of them."""
    by_model = np.array([0.9, 0.2, 0.8, 0.3])
    nested = np.tile(by_model, 25)
    alone, many = (
        decided([rule(Mean(name="a", values=v, threshold=0.5), models=4)])[0]
        for v in (by_model, nested)
    )
    assert many.p == pytest.approx(alone.p)
    assert many.unit == "model"
    assert many.agree == alone.agree == "2 of 4"
    runs = decided([rule(Mean(name="a", values=by_model, threshold=0.5))])[0]
    assert runs.unit == "run on one model"


def test_null_studies_are_rarely_decided_though_runs_are_nested_in_models() -> None:
    rng, verdicts = np.random.default_rng(0), []
    for _ in range(400):
        effects = np.repeat(rng.normal(0.5, 0.1, 6)[None], 4, 0) + rng.normal(0, 0.01, (4, 6))
        condition = Mean(name="a", values=effects.ravel(), threshold=0.5)
        verdicts.append(decided([rule(condition, models=6)])[0].verdict)
    for word in ("supported", "refuted"):
        assert verdicts.count(word) / 400 <= LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / 400)


def test_the_least_effect_is_found_in_four_of_five_studies() -> None:
    values = means(0.62, n=6)
    claim = decided([rule(Mean(name="share", values=values, threshold=0.5))])[0]
    name, _, effect = claim.least_effect.partition(": ")
    assert name == "share"
    rng, spread = np.random.default_rng(1), float(values.std(ddof=1))
    drawn = rng.normal(float(effect), spread, (4000, 6))
    power = np.mean([mean_above(study, 0.5) < LEVEL / 2 for study in drawn])
    assert power == pytest.approx(0.8, abs=0.03)
    family = decided([rule(Mean(name="share", values=values, threshold=0.5))] * 3)[0]
    drawn += float(family.least_effect.partition(": ")[2]) - float(effect)
    power = np.mean([mean_above(study, 0.5) < LEVEL / 6 for study in drawn])
    assert power == pytest.approx(0.8, abs=0.03)  # at Holm's first step of six tests


def test_a_margin_that_equal_means_would_lie_within() -> None:
    values = means(0.0, n=6)
    claim = decided([rule(Within(name="gap", values=values, low=-0.1, high=0.1))])[0]
    assert claim.verdict == "supported"
    margin = float(claim.least_effect.removeprefix("gap: a margin of "))
    rng, spread = np.random.default_rng(1), float(values.std(ddof=1))
    drawn = rng.normal(0.0, spread, (4000, 6))
    found = [
        max(mean_above(study, -margin), mean_above(-study, -margin)) < LEVEL / 2 for study in drawn
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)
    apart = decided([rule(Within(name="gap", values=means(0.3), low=-0.1, high=0.1))])[0]
    assert apart.verdict == "refuted"


def test_thresholds_of_half_and_twice_the_size() -> None:
    claim = decided([rule(Mean(name="a", values=means(0.6), threshold=0.5))])[0]
    assert (claim.halved, claim.verdict, claim.doubled) == ("supported", "supported", "refuted")
    share = Mean(name="a", values=means(0.6), threshold=0.5, scale="logit")
    claim = decided([rule(share)])[0]
    assert (claim.halved, claim.doubled) == ("supported", "refuted")  # 1/3 and 2/3
    claim = decided([rule(Mean(name="a", values=means(0.6), threshold=0.0))])[0]
    assert (claim.halved, claim.doubled) == ("", "")  # there is nothing to halve
    ratio = Within(name="r", values=means(1.2), low=0.8, high=1.25, scale="log")
    claim = decided([rule(ratio)])[0]
    assert (claim.halved, claim.doubled) == ("refuted", "supported")


def test_a_mean_below_is_a_mean_above_the_other_way_round() -> None:
    below = Mean(name="a", values=means(0.2), threshold=0.5, below=True, scale="logit")
    above = Mean(name="a", values=1 - means(0.2), threshold=0.5, scale="logit")
    assert below.p(1) == pytest.approx(above.p(1))
    assert below.against(1) == pytest.approx(above.against(1))
    assert float(below.least(1, 0.025).split(": ")[1]) == pytest.approx(
        1 - float(above.least(1, 0.025).split(": ")[1]), abs=2e-3
    )


def test_units_that_agree_are_those_beyond_what_refutes() -> None:
    values = np.array([-0.09, -0.08, -0.09, -0.085, -0.08, 0.01, np.nan])
    claim = decided([rule(Mean(name="a", values=values, threshold=0.02, refuted_at=-0.02))])[0]
    assert (claim.verdict, claim.agree) == ("refuted", "5 of 6")


def test_an_effect_of_the_other_sign_is_not_similar() -> None:
    ratio = Within(name="r", values=means(-1.0, 4), low=0.8, high=1.25, scale="log")
    assert decided([rule(ratio)])[0].verdict == "refuted"


def test_refuting_may_need_another_threshold() -> None:
    values = means(0.3)
    error = Mean(name="a", values=values, threshold=0.25, below=True, refuted_at=0.35)
    assert decided([rule(error)])[0].verdict == "inconclusive"
    assert decided([rule(replace(error, refuted_at=0.2))])[0].verdict == "refuted"


def test_what_is_not_defined_decides_nothing() -> None:
    nothing = Mean(name="a", values=np.full(6, np.nan), threshold=0.5)
    claim = decided([rule(nothing)])[0]
    assert (claim.verdict, claim.p, claim.p_against) == ("inconclusive", 1.0, 1.0)
    assert claim.least_effect == ""
    alike = decided([rule(Mean(name="a", values=[0.7] * 4, threshold=0.5))])[0]
    assert alike.p == 0.5**4  # the sign test's


def test_a_claim_without_conditions_stays_what_it_is() -> None:
    rules = [Rule(claim=replace(CLAIM, verdict=v)) for v in ("measurement", "not run")]
    assert [c.verdict for c in decided(rules)] == ["measurement", "not run"]
    assert [c.p for c in decided(rules)] == [None, None]


def test_the_p_of_a_verdict_is_that_of_its_direction() -> None:
    claim: Claim = decided([rule(Drawn(name="a", value=0.9, other=0.01))])[0]
    assert claim.p_of_verdict == claim.p_against_holm == pytest.approx(0.02)


def test_an_estimate_of_one_run_has_no_interval() -> None:
    one = Estimate(value=0.5, low=-math.inf, high=math.inf, n=1)
    claim = undecided(one, **WORDS)
    assert (claim.value, claim.low, claim.high, claim.n) == (0.5, None, None, 1)
    assert undecided(None, **WORDS).value is None


def test_a_setting_names_model_data_and_adapter() -> None:
    settings = RecoverySettings(model="gpt2", data=("google/boolq",), space="lora")
    assert setting(settings, "SGD") == "gpt2, google/boolq, LoRA, SGD"
    assert setting(RecoverySettings(), "θ₀") == "sequences, θ₀"


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Mean(name="a", values=means(0.8), threshold=0.5), (0.5, "above")),
        (Mean(name="a", values=means(0.8), threshold=0.9, below=True), (0.9, "below")),
        (Within(name="a", values=means(0.8), low=-1.0, high=1.0), (1.0, "within")),
        (Mean(name="a", values=means(0.3), threshold=0.5), (None, "")),  # of another number
        (Drawn(name="a", value=0.01), (None, "")),
    ],
)
def test_the_bar_is_that_of_the_condition_about_the_estimate(
    condition: Mean | Within | Drawn, expected: tuple[float | None, str]
) -> None:
    other = Mean(name="b", values=means(-3.0), threshold=7.0)
    asked = rule(other, condition)
    asked = replace(asked, claim=replace(asked.claim, value=float(np.mean(means(0.8)))))
    found = decided([asked])[0]
    assert (found.bar, found.supports) == expected
