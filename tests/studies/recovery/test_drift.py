"""The meter of a moving basis on the small model."""

import dataclasses

import pytest

from loclin import theory
from loclin.models import Problem
from loclin.progress import silent
from loclin.studies.context import RunContext, make_context
from loclin.studies.recovery.drift import DriftMeter
from loclin.studies.recovery.measure import requirements
from loclin.studies.recovery.settings import RecoverySettings
from tests.rows import value, values
from tests.studies.recovery.conftest import TINY


@pytest.fixture(scope="module")
def ctx(trained: Problem) -> RunContext[RecoverySettings]:
    return make_context(TINY, 0, requirements(TINY), silent)


def test_a_basis_that_has_not_moved_is_itself(ctx: RunContext[RecoverySettings]) -> None:
    meter = DriftMeter(ctx)
    rows = list(meter.rows(0, {"optimiser": "sgd"}))
    assert value(rows, "overlap", batches="same") == pytest.approx(1, abs=1e-5)
    assert {r.context["t"] for r in rows} == {0}
    floor = meter.floor_row({"optimiser": "sgd"})
    assert floor.null == pytest.approx(theory.random_overlap(3, 3, ctx.space.dimension)[0])
    assert 0 < floor.value < 1
    assert values(rows, "overlap", "null", batches="same") == [floor.null]


def test_another_point_has_another_basis(ctx: RunContext[RecoverySettings]) -> None:
    meter = DriftMeter(ctx)
    with ctx.space.restored():
        ctx.space.add(ctx.space.noise(seed=0), scale=0.05)
        rows = list(meter.rows(1, {}))
    assert value(rows, "overlap", batches="same") < 0.99


def test_no_ratio_where_two_bases_of_one_point_hardly_agree(
    ctx: RunContext[RecoverySettings],
) -> None:
    meter = DriftMeter(dataclasses.replace(ctx))
    meter.floor = meter.chance + 0.01
    assert values(list(meter.rows(1, {})), "rho") == [None]
