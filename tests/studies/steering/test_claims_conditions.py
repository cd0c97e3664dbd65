from dataclasses import replace

import numpy as np
import pytest
import torch

from loclin.steering.effect import logit_differences, response
from loclin.studies.steering import claims_names as names
from loclin.studies.steering.claims_conditions import (
    choose_layer,
    size_of_step,
    stepping,
    vectors_at_layer,
)
from loclin.studies.steering.claims_context import SteeringContext
from loclin.studies.steering.claims_vectors import Vectors, shifts
from tests.studies.steering.conftest import TINY, bits


def test_vectors_are_as_long_as_caa_and_the_parts_of_e1_add_up(
    ctx: SteeringContext, vectors: Vectors
) -> None:
    planted = replace(vectors, search=vectors.caa * 3)
    found, random = vectors_at_layer(replace(ctx, chosen=1), planted)
    length, parts = float(vectors.caa[1].norm()), (names.E1_ALONG, names.E1_ACROSS)
    for vector in [*(x for n, x in found.items() if n not in parts), *random]:
        assert float(vector.norm()) == pytest.approx(length, rel=1e-5)
    assert torch.allclose(found[parts[0]] + found[parts[1]], found["E1"], atol=1e-5)
    assert abs(float(found[parts[1]] @ found[names.CAA])) < 1e-4 * length**2
    assert torch.allclose(found[names.SEARCH], found[names.CAA], atol=1e-5)
    assert len(random) == TINY.random_vectors


def test_the_weight_step_shifts_as_much_as_caa_is_long_and_is_undone(
    ctx: SteeringContext, vectors: Vectors
) -> None:
    size = size_of_step(replace(ctx, chosen=1), vectors)
    assert size is not None
    fixed = vectors.steps["fixed"]
    moved = shifts(ctx, {"fixed": fixed}, ctx.parts["shift"], size=size)["E1"]
    assert float(moved[1].norm()) == pytest.approx(float(vectors.caa[1].norm()), rel=5e-3)
    before, test = bits(ctx.model), ctx.parts["test"]
    change = stepping(ctx, fixed, size)
    plain = logit_differences(ctx.model, test)
    found = response(ctx.model, test, change, TINY.strengths, before=plain)
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


def test_the_layer_is_chosen_among_the_later_ones(ctx: SteeringContext, vectors: Vectors) -> None:
    chosen, slopes = choose_layer(ctx, vectors.caa)
    late = ctx.layers[len(ctx.layers) // 2 :]
    assert chosen == max(late, key=lambda layer: slopes[layer].value or 0.0)
    # turned round at the last layer, CAA moves answers the other way there, and is still not chosen
    # at an early one
    turned = vectors.caa.clone()
    turned[-1] *= -1
    assert choose_layer(ctx, turned)[0] in late
