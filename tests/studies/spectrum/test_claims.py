"""Calibration of the claim on planted gradients."""

import numpy as np
import pytest
from torch import nn

from loclin.geometry.gramian import gramian
from loclin.parameters import ParameterSpace
from loclin.run.rows import Claim, Part, Row
from loclin.studies.spectrum import claims
from loclin.studies.spectrum.gradients import controls
from loclin.studies.spectrum.rows import crossfit_rows, rank_rows
from loclin.studies.spectrum.settings import SpectrumSettings
from tests.properties import share_supported
from tests.studies.spectrum.planted import gathered, planted

SETTINGS = SpectrumSettings(counts=(16, 32), ks=(1, 5), k=5)


@pytest.mark.parametrize("rank", [None, 2, 5])
def test_low_rank_gradients(rank: int | None) -> None:
    """At most 5 % of isotropic worlds called low rank before Holm's correction, at least 95 % of
    rank r after it.
    """
    space = ParameterSpace(nn.Sequential(nn.Linear(20, 15), nn.Linear(15, 10)))

    def world(rng: np.random.Generator, run: int) -> list[Row]:
        gradients = gathered(planted(rank, rng, space), space)
        products = gramian(gradients.rows)
        drawn = controls(gradients, seed=int(rng.integers(1 << 30)))
        here, ks, columns = {"run": run, "point": "damaged"}, SETTINGS.ks, space.dimension
        rows = list(rank_rows(products, drawn, SETTINGS.counts, here))
        return [*rows, *crossfit_rows(products, drawn["per tensor"], ks, columns, here)]

    def rule(rows: list[Row]) -> Claim:
        return claims.low_rank_gradients(SETTINGS, rows, "damaged")

    share = share_supported(world, rule, 200, family=2 if rank else 1)
    assert share >= 0.95 if rank else share <= 0.05


def test_one_run_decides_nothing(tiny: SpectrumSettings, part: Part) -> None:
    found = claims.decide(tiny, part.rows)
    assert [c.setting for c in found] == ["sequences-small, θ₀", "sequences-small, θ_D"]
    assert all(c.verdict == "inconclusive" and c.low is None for c in found)
