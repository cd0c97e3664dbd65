"""The claim on planted windows: never decided, its interval, what its note says, and its number
recomputed from arrays alone.
"""

import dataclasses
from dataclasses import asdict, replace

import numpy as np
import pytest

from loclin.run.rows import Claim, Part, Row
from loclin.stats import over_models
from loclin.studies.linearity import claims
from loclin.studies.linearity.rows import line_rows
from loclin.studies.linearity.settings import LinearitySettings
from tests.recompute.linearity import estimates
from tests.studies.linearity.planted import COARSE, at_both, planted, six_runs, world
from tests.studies.planted import nested

SETTINGS = LinearitySettings(seeds=6)


def rule(rows: list[Row]) -> Claim:
    return claims.window(SETTINGS, rows, "pretrained").claim


@pytest.mark.parametrize(("gradient", "noise"), [(1.0, 6.0), (6.0, 1.0), (0.3, 0.3), (5.0, 5.0)])
def test_what_cannot_fail_is_measured_and_not_decided(gradient: float, noise: float) -> None:
    claim = claims.decide(SETTINGS, six_runs(world(gradient, noise)))[0]
    assert (claim.verdict, claim.unit) == ("measurement", "model")
    assert claim.p is claim.p_holm is claim.p_against is claim.p_against_holm is None
    size = 10 ** float(claim.value or 0)
    assert f"ε_τ {size:.3g} [" in claim.note
    if gradient > 1:
        assert "curvature predicts 1 [" in claim.note


def test_intervals_of_windows_cover_over_models_that_differ() -> None:
    hits, draws, limit = 0, 1000, np.log10(2.0**-24 / 3.0 / 0.1)
    for study in range(draws):
        rng, sizes = np.random.default_rng([study, 5]), []
        for run in range(12):
            decades = 5 + nested(rng, run, 6, 0.5)
            size = planted(rng, decades=decades, steps=COARSE).window(1, 0.1).size
            sizes.append(np.log10(size) if size else np.nan)
        e = over_models(sizes, 6)
        hits += e.low < 5 + limit < e.high
    assert 0.93 <= hits / draws <= 0.97


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


def test_a_real_run_says_how_long_its_displacements_are(
    tiny: LinearitySettings, part: Part
) -> None:
    found = claims.decide(tiny, part.rows)
    assert [c.setting for c in found] == ["sequences-small, θ₀", "sequences-small, θ_D"]
    assert all(c.verdict == "measurement" and c.low is None for c in found)  # one run
    assert "a task vector of the same task is" in found[0].note
    assert "the recovery by SGD is" in found[1].note
    assert "the recovery by AdamW is" in found[1].note


@pytest.mark.parametrize("kind", ["part", "by_lora"])
def test_the_number_of_a_real_run_follows_from_its_arrays(
    kind: str, request: pytest.FixtureRequest
) -> None:
    part = request.getfixturevalue(kind)
    settings = request.getfixturevalue("tiny" if kind == "part" else "tiny_lora")
    again = estimates(asdict(settings), part.arrays)
    for claim in claims.decide(settings, part.rows):
        key = (claim.id, claim.setting.split(", ")[-1])
        assert again[key] == (pytest.approx(claim.value, abs=1e-9), -np.inf, np.inf)


def test_planted_windows_and_their_interval_follow_from_the_arrays() -> None:
    """Round-off and a run without a window among them."""
    settings, rows, arrays = replace(SETTINGS, seeds=8, models_per_claim=4), list[Row](), {}
    for run, decades in enumerate((4.0, 5.0, -2.0, 6.0, 4.5, 5.5, 3.0, 30.0)):
        rng = np.random.default_rng(run)
        p = planted(rng, decades=decades, noise=1e-7, steps=COARSE)
        for point in ("pretrained", "damaged"):
            for direction in ("gradient", "norm-matched noise"):
                here = {"run": run, "task": "t", "point": point, "direction": direction}
                rows += line_rows(p, (0.1,), here)
            key = f"{point}/gradient/{run}"
            arrays[f"line/{key}"] = np.column_stack([p.steps, p.changes, p.scores])
            arrays[f"start/{key}"] = np.array([p.loss, p.slope, p.curvature])
    again = estimates(asdict(settings), arrays)
    for claim in claims.decide(settings, rows):
        key = (claim.id, claim.setting.split(", ")[-1])
        assert again[key] == pytest.approx((claim.value, claim.low, claim.high), abs=1e-9)
