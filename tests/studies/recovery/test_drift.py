"""The meter of a moving basis on the small model."""

import numpy as np
import pytest

from loclin import theory
from loclin.geometry.gramian import gramian
from loclin.geometry.subspace import random_subspace
from loclin.models import Problem
from loclin.progress import silent
from loclin.studies.context import RunContext, make_context
from loclin.studies.recovery.drift import PAIRS, DriftMeter, corrected_overlap, overlap_of
from loclin.studies.recovery.measure import requirements
from loclin.studies.recovery.settings import RecoverySettings
from tests.rows import value, values
from tests.studies.recovery.conftest import TINY


@pytest.fixture(scope="module")
def ctx(trained: Problem) -> RunContext[RecoverySettings]:
    return make_context(TINY, 0, requirements(TINY), silent)


def test_a_basis_that_has_not_moved_is_itself(ctx: RunContext[RecoverySettings]) -> None:
    meter = DriftMeter(ctx)
    held = meter.products()
    assert set(held) == set(PAIRS)
    rows = list(meter.rows(0, held, {"optimiser": "sgd"}))
    assert value(rows, "overlap", batches="same") == pytest.approx(1, abs=1e-5)
    assert {r.context["t"] for r in rows} == {0}
    floors = values(rows, "overlap_floor")
    assert floors[0] == pytest.approx(floors[1], abs=1e-5)
    assert 0 < floors[0] < 1
    assert value(rows, "overlap", batches="independent") == pytest.approx(floors[0], abs=1e-5)
    assert value(rows, "rho") == pytest.approx(1, abs=1e-4)
    chance = theory.random_overlap(3, 3, ctx.space.dimension)[0]
    for quantity in ("overlap", "overlap_floor"):
        assert values(rows, quantity, "null") == [pytest.approx(chance)] * 2


def test_another_point_has_another_basis_and_a_floor_of_its_own(
    ctx: RunContext[RecoverySettings],
) -> None:
    meter = DriftMeter(ctx)
    with ctx.space.restored():
        ctx.space.add(ctx.space.noise(seed=0), scale=0.05)
        rows = list(meter.rows(1, meter.products(), {}))
    assert value(rows, "overlap", batches="same") < 0.99
    first, later = (value(rows, "overlap_floor", point=p) for p in ("damaged", "recovery"))
    assert first != later
    between, chance = value(rows, "overlap", batches="independent"), meter.chance
    expected = (between - chance) / np.sqrt((first - chance) * (later - chance))
    assert value(rows, "rho") == pytest.approx(expected)


@pytest.mark.parametrize("floors", [(0.01, 0.8), (0.8, 0.01), (-0.1, 0.5)])
def test_no_ratio_where_two_bases_of_either_point_hardly_agree(
    floors: tuple[float, float],
) -> None:
    above = tuple(0.1 + floor for floor in floors)
    assert np.isnan(corrected_overlap(0.3, above, 0.1))
    assert corrected_overlap(0.3, (0.9, 0.3), 0.1) == pytest.approx(0.2 / np.sqrt(0.8 * 0.2))


def test_overlaps_from_products_are_those_of_subspaces() -> None:
    one, other = (random_subspace(3, 20, seed=seed) for seed in (0, 1))
    assert overlap_of(gramian(one.basis, other.basis)) == pytest.approx(one.overlap(other))
