"""Calibration of the claim on planted windows, and what its note says."""

import dataclasses

import numpy as np
import pytest

from loclin.run.rows import Claim, Part, Row
from loclin.studies.linearity import claims
from loclin.studies.linearity.settings import LinearitySettings
from tests.properties import share_supported
from tests.studies.linearity.planted import at_both, six_runs, world

SETTINGS = LinearitySettings()


def rule(rows: list[Row]) -> Claim:
    return claims.window(SETTINGS, rows, "pretrained")


@pytest.mark.parametrize(("gradient", "noise"), [(1.0, 1.0), (1.0, 6.0), (6.0, 1.0), (0.3, 0.3)])
def test_a_range_of_a_decade_or_less_is_not_supported(gradient: float, noise: float) -> None:
    assert share_supported(world(gradient, noise), rule, 200) <= 0.05


@pytest.mark.parametrize(("gradient", "noise"), [(2.0, 2.0), (6.0, 3.0)])
def test_a_range_of_more_is_supported(gradient: float, noise: float) -> None:
    assert share_supported(world(gradient, noise), rule, 60) >= 0.95


def test_a_gradient_without_a_range_is_refuted_and_noise_alone_decides_nothing() -> None:
    def decided(gradient: float, noise: float) -> Claim:
        return claims.decide(SETTINGS, six_runs(world(gradient, noise)))[0]

    assert decided(0.3, 5.0).verdict == "refuted"
    assert decided(5.0, 0.3).verdict == "inconclusive"
    claim = decided(5.0, 5.0)
    assert claim.verdict == "supported"
    assert claim.p_holm is not None
    assert claim.p_holm < 0.05
    size = 10 ** float(claim.value or 0)
    assert f"ε_τ {size:.3g} [" in claim.note
    assert "curvature predicts 1 [" in claim.note
    assert claim.note.endswith("the radius, not the verdict, is the number to use")


def test_runs_without_a_window_are_counted() -> None:
    rng = np.random.default_rng(0)
    runs = enumerate((5.0, -2.0, 5.0, 5.0))
    rows = at_both([r for run, decades in runs for r in world(decades, 5.0, 0.0)(rng, run)])
    assert "in 1 of 4 runs there is no window along the gradient;" in rule(rows).note


def test_a_share_is_of_what_moves() -> None:
    rows = six_runs(world(5.0, 5.0))
    lora = dataclasses.replace(SETTINGS, space="lora")
    for settings, moved in ((SETTINGS, "weights"), (lora, "factors")):
        claim = claims.decide(settings, rows)[0]
        assert claim.measured.endswith(f"as a share of the {moved}' length")


def test_the_verdict_of_a_real_run_has_no_interval(tiny: LinearitySettings, part: Part) -> None:
    found = claims.decide(tiny, part.rows)
    assert [c.setting for c in found] == ["sequences-small, θ₀", "sequences-small, θ_D"]
    assert all(c.verdict == "inconclusive" and c.low is None for c in found)  # one run
    assert "a task vector of the same task is" in found[0].note
    assert "the recovery by SGD is" in found[1].note
    assert "the recovery by AdamW is" in found[1].note
