from dataclasses import replace

import numpy as np
import pytest
import torch

from loclin.steering.effect import logit_differences, responses
from loclin.studies.steering import names
from loclin.studies.steering.claims_conditions import (
    choose_layers,
    size_of_step,
    stepping,
    vectors_at,
)
from loclin.studies.steering.claims_context import ClaimsContext
from loclin.studies.steering.claims_vectors import Vectors, shifts
from tests.studies.steering.conftest import TINY, bits


def test_vectors_are_as_long_as_caa_and_the_parts_of_e1_add_up(
    ctx: ClaimsContext, vectors: Vectors
) -> None:
    planted = replace(vectors, search=vectors.caa * 3)
    found = vectors_at(ctx, planted, 1)
    length, parts = float(vectors.caa[1].norm()), (names.E1_ALONG, names.E1_ACROSS)
    for vector in (x for n, x in found.items() if n not in parts):
        assert float(vector.norm()) == pytest.approx(length, rel=1e-5)
    assert torch.allclose(found[parts[0]] + found[parts[1]], found["E1"], atol=1e-5)
    assert abs(float(found[parts[1]] @ found[names.CAA])) < 1e-4 * length**2
    assert torch.allclose(found[names.SEARCH], found[names.CAA], atol=1e-5)


def test_the_weight_step_shifts_as_much_as_caa_is_long_and_is_undone(
    ctx: ClaimsContext, vectors: Vectors
) -> None:
    size = size_of_step(ctx, vectors, 1)
    assert size is not None
    fixed = vectors.steps["fixed"]
    moved = shifts(ctx, {"fixed": fixed}, ctx.parts["shift"], size=size)["E1"]
    assert float(moved[1].norm()) == pytest.approx(float(vectors.caa[1].norm()), rel=5e-3)
    before, test = bits(ctx.model), ctx.parts["test"]
    change = stepping(ctx, fixed, size)
    plain = logit_differences(ctx.model, test)
    found = responses(ctx.model, test, {"step": change}, TINY.strengths)["step"]
    with ctx.space.restored():
        point = ctx.space.read()
        ctx.space.write(point + 0.5 * size * point.norm() * fixed / fixed.norm())
        half = logit_differences(ctx.model, test)
    assert np.allclose(found.differences[TINY.strengths.index(0.5)], half, atol=1e-3)
    assert np.array_equal(found.differences[TINY.strengths.index(0.0)], plain)
    near = np.array([s for s in TINY.strengths if abs(s) <= 1])
    fitted = np.polyfit(near, found.differences[[TINY.strengths.index(s) for s in near]], 1)[0]
    assert np.allclose(found.slopes, fitted, atol=1e-6)
    assert all(torch.equal(before[n], p) for n, p in ctx.model.named_parameters())


def test_blocks_are_chosen_in_the_median_third_and_in_the_later_half(
    ctx: ClaimsContext, vectors: Vectors
) -> None:
    chosen, rows = choose_layers(ctx, vectors.caa)
    assert chosen == {names.MIDDLE: 0, names.CHOSEN: 1}
    assert [(r.quantity, r.value) for r in rows[:2]] == [("layer", 0.0), ("layer", 1.0)]
    assert [r.context["layer"] for r in rows if r.quantity == "choice_slope"] == [0, 1]
    # turned round at the last block, CAA moves answers the other way there, and an early one is
    # still not chosen for the late one
    turned = vectors.caa.clone()
    turned[-1] *= -1
    assert choose_layers(ctx, turned)[0] == chosen
