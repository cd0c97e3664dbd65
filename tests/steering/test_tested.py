"""What vectors do, on a linear model where every answer is known, and beside random directions."""

import numpy as np
import pytest
import torch

from loclin.activations.adding import added
from loclin.steering.effect import logit_differences
from loclin.steering.neutral import Neutral, damage
from loclin.steering.tested import at_equal_damage, harms, layer_slopes, random_vectors, responses
from loclin.tasks.batch import Batch
from tests.planted import LinearModel, truth_world


def quiet(share: float) -> None:
    assert 0 <= share <= 1


def factors(model: LinearModel, a: torch.Tensor) -> list[float]:
    """What a push along a at the output of each block becomes at the last one."""
    along = [float(a @ layer.weight.detach() @ a) for layer in model.layers]  # type: ignore[operator]
    return [float(np.prod([1 + f for f in along[i + 1 :]])) for i in range(len(along))]


def test_slopes_on_a_linear_model_are_those_of_its_matrices() -> None:
    model, asked, a = truth_world(layers=3, width=8, facts=6, seed=0)
    expected = [2 * f * 0.7 for f in factors(model, a)]  # the logits of yes and no differ by 2a·h
    found = layer_slopes(model, asked, dict.fromkeys(range(3), 0.7 * a), path=None, told=quiet)
    for layer in range(3):
        assert np.allclose(found[layer], expected[layer])
    response = responses(
        model, asked, {"v": {1: 0.7 * a}}, (2.0, -1.0, 0.0, 1.0), path=None, told=quiet
    )["v"]
    assert response.strengths == (-1.0, 0.0, 1.0, 2.0)
    assert np.allclose(response.slopes, expected[1])
    assert np.allclose(
        response.changes, np.outer(response.strengths, np.full(len(asked), expected[1]))
    )
    assert np.array_equal(response.differences[1], logit_differences(model, asked))


def test_several_layers_are_added_to_together() -> None:
    model, asked, a = truth_world(layers=3, width=8, facts=6, seed=0)
    first, _, last = factors(model, a)
    found = responses(model, asked, {"v": {0: a, 2: -a}}, (-1.0, 0.0, 1.0), path=None, told=quiet)[
        "v"
    ]
    assert np.allclose(found.slopes, 2 * (first - last))


def test_slopes_leave_out_strengths_beyond_one() -> None:
    model, asked, a = truth_world(layers=2, width=8, facts=6, seed=0)
    near = responses(model, asked, {"v": {0: a}}, (-1.0, 0.0, 1.0), path=None, told=quiet)["v"]
    far = responses(
        model, asked, {"v": {0: a}}, (-50.0, -1.0, 0.0, 1.0, 9.0), path=None, told=quiet
    )["v"]
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


def test_damage_by_strength_and_at_equal_damage() -> None:
    model, asked, a = truth_world(layers=2, width=8, facts=6, seed=0)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 15, (5, 6)))
    neutral = Neutral(
        batch=Batch(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids),
        answers=(),
        source="planted",
    )
    found = harms(model, neutral, {0: a}, (1.0, 0.0, -2.0), path=None)
    assert [h.strength for h in found] == [-2.0, 0.0, 1.0]
    assert np.allclose(found[1].kl, 0, atol=1e-12)
    assert found[1].perplexity == pytest.approx(found[1].before)
    assert found[2].kl.mean() > 0
    there = at_equal_damage(model, asked, neutral, {0: a}, 0.05, path=None)
    assert there is not None
    strength, changes = there
    assert damage(
        model, neutral, lambda: added(model, {0: strength * a})
    ).kl.mean() == pytest.approx(0.05, rel=0.05)
    assert np.allclose(changes, 2 * strength * factors(model, a)[0])
    nowhere = torch.zeros_like(a)
    assert at_equal_damage(model, asked, neutral, {0: nowhere}, 0.05, path=None) is None
