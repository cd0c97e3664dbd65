"""What vectors do, on a linear model where every answer is known, and beside random directions."""

import numpy as np
import pytest
import torch

from loclin.steering.changes import adding
from loclin.steering.effect import layer_slopes, logit_differences, responses
from loclin.studies.steering.responses import random_vectors
from tests.planted import LinearModel, truth_world


def quiet(share: float) -> None:
    assert 0 <= share <= 1


def factors(model: LinearModel, a: torch.Tensor) -> list[float]:
    """What a push along a at the output of each block becomes at the last one."""
    along = [float(a @ layer.weight.detach() @ a) for layer in model.layers]  # type: ignore[operator]
    return [float(np.prod([1 + f for f in along[i + 1 :]])) for i in range(len(along))]


def test_slopes_on_a_linear_model_are_those_of_its_matrices() -> None:
    model, prompts, a = truth_world(layers=3, width=8, facts=6, seed=0)
    expected = [2 * f * 0.7 for f in factors(model, a)]  # the logits of yes and no differ by 2a·h
    found = layer_slopes(
        model, prompts, dict.fromkeys(range(3), 0.7 * a), path=None, progress=quiet
    )
    for layer in range(3):
        assert np.allclose(found[layer], expected[layer])
    change = {"v": adding(model, {1: 0.7 * a})}
    response = responses(model, prompts, change, (2.0, -1.0, 0.0, 1.0), progress=quiet)["v"]
    assert response.strengths == (-1.0, 0.0, 1.0, 2.0)
    assert np.allclose(response.slopes, expected[1])
    assert np.allclose(
        response.changes, np.outer(response.strengths, np.full(len(prompts), expected[1]))
    )
    assert np.array_equal(response.differences[1], logit_differences(model, prompts))


def test_several_layers_are_added_to_together() -> None:
    model, prompts, a = truth_world(layers=3, width=8, facts=6, seed=0)
    first, _, last = factors(model, a)
    change = {"v": adding(model, {0: a, 2: -a})}
    found = responses(model, prompts, change, (-1.0, 0.0, 1.0), progress=quiet)["v"]
    assert np.allclose(found.slopes, 2 * (first - last))


def test_slopes_leave_out_strengths_beyond_one() -> None:
    model, prompts, a = truth_world(layers=2, width=8, facts=6, seed=0)
    change = {"v": adding(model, {0: a})}
    near, far = (
        responses(model, prompts, change, strengths, progress=quiet)["v"]
        for strengths in ((-1.0, 0.0, 1.0), (-50.0, -1.0, 0.0, 1.0, 9.0))
    )
    assert np.allclose(near.slopes, far.slopes)


def test_random_vectors_are_as_long_as_asked_and_independent() -> None:
    found = random_vectors({0: 2.0, 3: 0.5}, 400, count=6, seed=1)
    assert all(
        float(v[0].norm()) == pytest.approx(2) and float(v[3].norm()) == pytest.approx(0.5)
        for v in found
    )
    every = torch.stack([v[n] / v[n].norm() for v in found for n in (0, 3)])
    assert float((every @ every.T - torch.eye(12)).abs().max()) < 5 / 400**0.5
    again = random_vectors({3: 0.5}, 400, count=2, seed=1)
    assert torch.equal(again[1][3], found[1][3])
    assert not torch.equal(random_vectors({3: 0.5}, 400, count=1, seed=2)[0][3], found[0][3])
