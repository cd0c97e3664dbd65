"""Calibration of the claim on planted gradients, and its numbers recomputed from arrays alone."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from torch import nn

from loclin.geometry.gramian import gramian
from loclin.parameters import ParameterSpace
from loclin.run.rows import Part, Row
from loclin.stats import over_models
from loclin.studies.spectrum import claims
from loclin.studies.spectrum.gradients import controls
from loclin.studies.spectrum.rows import crossfit_rows, rank_rows
from loclin.studies.spectrum.settings import SpectrumSettings
from loclin.studies.verdict import Rule
from tests.properties import World, assert_rarely_decided, verdict_shares
from tests.recompute.spectrum import estimates
from tests.studies.planted import nested
from tests.studies.spectrum.planted import gathered, planted

SETTINGS = SpectrumSettings(counts=(16, 32), ks=(1, 5), k=5, seeds=6)
NESTED = replace(SETTINGS, seeds=12)


def shares(world: World, draws: int, settings: SpectrumSettings = SETTINGS) -> dict[str, float]:
    """Of verdicts, with as strict a correction as the claim at the other point can bring."""

    def rule(rows: list[Row]) -> Rule:
        return claims.low_rank_gradients(settings, rows, "damaged")

    return verdict_shares(world, rule, draws, settings.seeds, family=2)


def world(rank: int | None, *, crowded: bool = False) -> World:
    """Runs measured by the code that measures real ones."""
    space = ParameterSpace(nn.Sequential(nn.Linear(20, 15), nn.Linear(15, 10)))

    def make(rng: np.random.Generator, run: int) -> list[Row]:
        gradients = gathered(planted(rank, rng, space, crowded=crowded), space)
        products = gramian(gradients.rows)
        drawn = controls(gradients, seed=int(rng.integers(1 << 30)))
        here, ks, columns = {"run": run, "point": "damaged"}, SETTINGS.ks, space.dimension
        rows = list(rank_rows(products, drawn, SETTINGS.counts, here))
        return [*rows, *crossfit_rows(products, drawn["per tensor"], ks, columns, here)]

    return make


@pytest.mark.parametrize("crowded", [False, True])
def test_isotropic_gradients_are_not_of_low_rank(crowded: bool) -> None:
    """Whatever their norms: a few carry the energy, of which most may be in one small tensor."""
    found = shares(world(None, crowded=crowded), 200)
    assert "supported" not in found
    if not crowded:  # what shares nothing is refuted
        assert found["refuted"] >= 0.95


@pytest.mark.parametrize("rank", [2, 5])
def test_low_rank_is_seen_whatever_the_norms(rank: int) -> None:
    assert shares(world(rank), 200)["supported"] >= 0.95


@pytest.mark.parametrize(
    ("ratio", "growth", "skewed"),
    [(0.5, 1.0, False), (0.2, np.sqrt(2), False), (0.5, np.sqrt(2), True)],
)
def test_at_a_threshold_chance_decides_nothing(ratio: float, growth: float, skewed: bool) -> None:
    """Ranks just at what the rule asks for, two runs on each of six models that differ; and with
    skewed spread.
    """

    def make(rng: np.random.Generator, run: int) -> list[Row]:
        rows = []
        middle = {"rank_ratio": ratio, "rank_growth": growth}
        for quantity, contexts in CONTEXTS.items():
            off = nested(rng, run, 6, 0.3)
            off = 0.6 * (np.exp(off) - np.exp(0.045)) if skewed else off
            for context in contexts:
                here = {"run": run, "point": "damaged", **context}
                value = middle[quantity] * float(np.exp(off))
                rows.append(Row(quantity=quantity, value=value, context=here))
        energy = {"run": run, "point": "damaged", "vectors": "measured", "k": 5}
        return [*rows, Row(quantity="crossfit_energy", value=0.5, context=energy)]

    assert_rarely_decided(shares(make, 400, NESTED), 400)


CONTEXTS = {
    "rank_ratio": [
        {"norms": norms, "control": control}
        for norms in ("unit", "own")
        for control in ("isotropic", "per tensor")
    ],
    "rank_growth": [
        {"norms": norms, "vectors": vectors}
        for norms in ("unit", "own")
        for vectors in ("measured", "isotropic")
    ],
}


def test_intervals_over_models_cover_what_runs_nested_in_them_would_miss() -> None:
    hits = {1: 0, 6: 0}
    for study in range(1000):
        rng = np.random.default_rng([study, 5])
        ratios = [0.3 * np.exp(nested(rng, run, 6, 0.4)) for run in range(12)]
        for models in hits:
            e = over_models(ratios, models, "log")
            hits[models] += e.low < 0.3 < e.high
    assert 0.93 <= hits[6] / 1000 <= 0.97
    assert hits[1] / 1000 < 0.9


def test_one_run_decides_nothing_and_its_numbers_follow_from_its_arrays(
    tiny: SpectrumSettings, part: Part
) -> None:
    found = claims.decide(tiny, part.rows)
    assert [c.setting for c in found] == ["sequences-small, θ₀", "sequences-small, θ_D"]
    assert all(c.verdict == "inconclusive" and c.low is None for c in found)
    # three runs on three models, made from one: other gradients come first
    rows, arrays = list[Row](), dict[str, np.ndarray]()
    for run in range(3):
        order = np.random.default_rng(run).permutation(8)
        for key, gram in part.arrays.items():
            arrays[f"{key.rpartition('/')[0]}/{run}"] = gram[np.ix_(order, order)]
    several = replace(tiny, seeds=3, counts=(4, 6))
    for run in range(3):
        for point in ("pretrained", "damaged"):
            own, *drawn = (
                arrays[f"{name}/{point}/{run}"]
                for name in ("gradient_gramian", "control_gramian/isotropic",
                             "control_gramian/per tensor")
            )  # fmt: skip
            named = dict(zip(("isotropic", "per tensor"), drawn, strict=True))
            here = {"run": run, "point": point}
            rows += rank_rows(own, named, several.counts, here)
            rows += crossfit_rows(own, named["per tensor"], several.ks, 100, here)
    again = estimates(asdict(several), arrays)
    for claim in claims.decide(several, rows):
        key = (claim.id, claim.setting.split(", ")[-1])
        assert again[key] == pytest.approx((claim.value, claim.low, claim.high), abs=1e-9)
