"""The directions of a real run, by their lengths and what is common to both points."""

import pytest
import torch

from loclin.curvature import CurvatureOperator
from loclin.errors import LoclinError
from loclin.models import Problem, twice_differentiable
from loclin.progress import silent
from loclin.studies.context import RunContext, make_context
from loclin.studies.damage import damage
from loclin.studies.linearity.directions import (
    common_directions,
    recovery_directions,
    task_directions,
)
from loclin.studies.linearity.measure import examples_followed, requirements
from loclin.studies.linearity.settings import LinearitySettings


@pytest.fixture(scope="module")
def ctx(trained: Problem, tiny: LinearitySettings) -> RunContext[LinearitySettings]:
    return make_context(tiny, 0, requirements(tiny), silent)


def test_noise_has_the_norms_of_the_gradient(ctx: RunContext[LinearitySettings]) -> None:
    space, eval_set = ctx.space, examples_followed(ctx)
    gradient = space.gradient(eval_set.loss, eval_set.fold(0))
    with twice_differentiable(ctx.problem.model):
        operator = CurvatureOperator(space, eval_set.loss, list(eval_set.fold(0)))
        found = {d.name: d for d in common_directions(ctx, gradient, operator, seed=0)}
    noise = space.by_tensor(found["norm-matched noise"].vector)
    for name, piece in space.by_tensor(gradient).items():
        assert float(noise[name].norm()) == pytest.approx(float(piece.norm()), rel=1e-4)
    top = found["top curvature 1"].vector
    assert float(top.double().norm()) == pytest.approx(1.0, rel=1e-4)
    assert not any(d.whole for d in found.values())


def test_there_is_a_task_vector_for_every_task(ctx: RunContext[LinearitySettings]) -> None:
    found = task_directions(ctx, seed=0)
    assert [d.on for d in found] == list(ctx.problem.tasks)
    assert all(d.whole and float(d.vector.norm()) > 0 for d in found)


def test_prefix_vectors_span_the_first_updates(ctx: RunContext[LinearitySettings]) -> None:
    found = {d.name: d for d in recovery_directions(ctx, damage(ctx, ctx.task))}
    first = found["first updates, AdamW"].vector.double()
    one, three = (found[f"prefix {j}, AdamW"].vector.double() for j in (1, 3))
    assert float(one @ three) == pytest.approx(0, abs=1e-4)
    assert float(one.norm()) == pytest.approx(1.0, rel=1e-4)
    assert 0.1 < float((one @ first) ** 2) / float(first @ first) < 1
    whole = found["recovery, AdamW"].vector
    assert float(whole.norm()) > float(first.norm())
    assert not torch.equal(whole, found["recovery, SGD"].vector)


def test_updates_that_do_not_span_are_refused(
    ctx: RunContext[LinearitySettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    from loclin.geometry.subspace import Subspace
    from loclin.studies.linearity import directions

    class Flat:
        @staticmethod
        def spanned_by(rows: torch.Tensor) -> Subspace:
            return Subspace.spanned_by(rows[:1])

    monkeypatch.setattr(directions, "Subspace", Flat)
    with pytest.raises(LoclinError, match="expected 3 independent first updates by SGD, found 1"):
        list(recovery_directions(ctx, damage(ctx, ctx.task)))
