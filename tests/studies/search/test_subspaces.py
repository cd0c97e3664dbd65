from dataclasses import replace

import pytest
import torch

from loclin.geometry.subspace import Subspace
from loclin.parameters import ParameterSpace
from loclin.seeds import derived
from loclin.studies.directions import task_vectors
from loclin.studies.search.claims_measure import SearchData
from loclin.studies.search.point import SearchRun
from loclin.studies.search.subspaces import static_plane, subspaces
from tests.studies.search.claims_small import TINY


def test_the_plane_holds_the_tasks_own_vector_and_the_gradients(
    ctx: SearchRun, data: SearchData
) -> None:
    plane = static_plane(ctx, data.batches)
    assert len(plane.basis) == TINY.k
    assert plane.basis @ plane.basis.T == pytest.approx(torch.eye(TINY.k), abs=1e-5)
    order = ("swap", *(t for t in ctx.problem.tasks if t != "swap"))
    own = replace(
        ctx.problem,
        examples={n: {t: part[t] for t in order} for n, part in ctx.problem.examples.items()},
    )
    seed = derived(ctx.seed, "task vectors of the plane")
    vectors = task_vectors(
        own, ctx.space, 2, batch=TINY.batch, lr=TINY.adamw_lr, steps=2, seed=seed
    )
    assert [plane.capture(v) for v in vectors] == pytest.approx([1, 1], abs=1e-4)


def test_subspaces_are_orthonormal_and_differ(
    ctx: SearchRun, data: SearchData, there: ParameterSpace
) -> None:
    g = there.gradient(data.select.loss, data.select.fold(0))
    prefix = there.noise(seed=5).expand(1, -1)
    updates = torch.cat([prefix, g[None], 2 * prefix + g])
    found = subspaces(ctx, data.batches, data.recovery, updates, Subspace.spanned_by(g[None]))
    for name, space in found.items():
        assert space.basis @ space.basis.T == pytest.approx(
            torch.eye(len(space.basis)), abs=1e-4
        ), name
    assert len(found["first updates"].basis) == 2  # the third depends on the others
    assert found["static plane"].capture(g) == pytest.approx(1, abs=1e-4)
    assert found["gradients at θ_D"].capture(g) > 20 * TINY.k / there.dimension
    assert found["random"].capture(g) < found["Krylov"].capture(g)
