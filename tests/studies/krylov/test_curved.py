"""The damaged point of the small model: the same bases however products and passes are made."""

import dataclasses
from dataclasses import replace
from typing import Any

import pytest
import torch

from loclin.curvature import CurvatureOperator
from loclin.geometry.subspace import Subspace
from loclin.models import Problem, twice_differentiable
from loclin.progress import silent
from loclin.studies.context import RunContext, make_context
from loclin.studies.damage import damage
from loclin.studies.krylov.curved import Curved, chosen, curved_at
from loclin.studies.krylov.measure import requirements
from loclin.studies.krylov.names import EIGENVECTORS, KRYLOV
from loclin.studies.krylov.settings import KrylovSettings
from loclin.tasks.batch import answer_loss
from tests.studies.krylov.conftest import TINY

#: In float64, so that what is compared differs by the way it is made and not by rounding.
EXACT = replace(TINY, dtype="float64")


@pytest.fixture(scope="module")
def ctx(trained: Problem) -> RunContext[KrylovSettings]:
    return make_context(EXACT, 0, requirements(EXACT), silent)


@pytest.fixture(scope="module")
def damaged(ctx: RunContext[KrylovSettings]) -> torch.Tensor:
    return damage(ctx, ctx.task)


@pytest.fixture(scope="module")
def found(ctx: RunContext[KrylovSettings], damaged: torch.Tensor) -> Curved:
    return curved_at(ctx, damaged)


def changed(ctx: RunContext[KrylovSettings], **settings: Any) -> RunContext[KrylovSettings]:
    return dataclasses.replace(ctx, settings=replace(ctx.settings, **settings))


def test_gradient_and_products_are_those_of_the_chosen_examples(
    ctx: RunContext[KrylovSettings], damaged: torch.Tensor, found: Curved
) -> None:
    problem, space = ctx.problem, ctx.space
    before = space.read()
    again = curved_at(changed(ctx, curvature_chunk=5), damaged)
    assert torch.equal(space.read(), before)
    first, second = (Subspace(basis=c.krylov.basis) for c in (found, again))
    assert first.overlap(second) > 1 - 1e-9
    assert found.eigenvalues == pytest.approx(again.eigenvalues, rel=1e-9)
    assert found.probes.forms == pytest.approx(again.probes.forms, rel=1e-9)
    rows = found.families[KRYLOV].exact
    assert torch.allclose(rows @ rows.T, torch.eye(3, dtype=rows.dtype), atol=1e-12)
    own = found.preconditioned.exact
    assert torch.allclose(own @ own.T, torch.eye(3, dtype=rows.dtype), atol=1e-12)
    with space.restored():
        space.write(damaged)
        shown = [problem.batch("recovery", ctx.task)]
        whole = space.gradient(lambda b: answer_loss(problem.model, b), shown)
        assert Subspace(basis=rows[:1]).capture(whole) > 0.3  # a sample of the same gradient
        with twice_differentiable(problem.model):
            top = found.families[EIGENVECTORS].exact[0]
            product = CurvatureOperator(space, lambda b: answer_loss(problem.model, b), shown)(top)
    assert float(top @ product) > 0


def test_finite_differences_find_nearly_the_same_space_and_are_named(
    ctx: RunContext[KrylovSettings], damaged: torch.Tensor, found: Curved
) -> None:
    near = curved_at(changed(ctx, products="finite differences"), damaged)
    first, second = (Subspace(basis=c.krylov.basis) for c in (found, near))
    # a relative error of the products of 1e-7 enters squared, times their spread
    assert first.overlap(second) > 1 - 1e-9


def test_examples_are_drawn_once(trained: Problem) -> None:
    data = trained.batch("recovery", "swap")
    drawn = chosen(data, 40, seed=3)
    assert len(torch.unique(drawn.input_ids, dim=0)) == len(drawn) == 40
    assert not torch.equal(drawn.input_ids, chosen(data, 40, seed=4).input_ids)
