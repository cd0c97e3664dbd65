"""Which families a recovery is held against, and what they span."""

import pytest
import torch

from loclin.models import Problem
from loclin.progress import silent
from loclin.studies.context import RunContext, make_context
from loclin.studies.damage import damage, recovery
from loclin.studies.names import RANDOM
from loclin.studies.recovery.bases import control_families, static_families
from loclin.studies.recovery.measure import requirements
from loclin.studies.recovery.names import ANOTHER_RUN, CONTROLS, NOISE, STATIC, TASK_VECTORS
from loclin.studies.recovery.settings import RecoverySettings
from tests.studies.recovery.conftest import TINY


@pytest.fixture(scope="module")
def ctx(trained: Problem) -> RunContext[RecoverySettings]:
    return make_context(TINY, 0, requirements(TINY), silent)


def test_fixed_bases_have_k_directions_and_leave_the_point_alone(
    ctx: RunContext[RecoverySettings],
) -> None:
    before = ctx.space.read()
    families = dict(static_families(ctx, damage(ctx, ctx.task)))
    assert torch.equal(ctx.space.read(), before)
    assert set(families) == {*STATIC, RANDOM}
    for name, family in families.items():
        assert family.rows.shape == (TINY.k, ctx.space.dimension)
        if name != TASK_VECTORS:
            assert torch.allclose(family.rows @ family.rows.T, torch.eye(TINY.k), atol=1e-2)


def test_controls_are_as_long_as_the_longest_prefix(ctx: RunContext[RecoverySettings]) -> None:
    other = str(ctx.other)
    damaged = {task: damage(ctx, task) for task in (ctx.task, other)}
    real = recovery(ctx, "sgd", ctx.task, damaged[ctx.task], 6, order="recovery", head=6)
    families = dict(control_families(ctx, "sgd", damaged, real))
    assert list(families) == list(CONTROLS)
    assert {len(f.rows) for f in families.values()} == {max(TINY.ks)}
    assert not torch.equal(families[ANOTHER_RUN].rows, real.updates)
    norms = families[NOISE].rows.norm(dim=1)
    assert torch.allclose(norms, real.updates.norm(dim=1), rtol=1e-4)
