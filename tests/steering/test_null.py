"""The null of the cosine with labels: by its law it is what steps that are taken give."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from loclin.activations.capture import activations
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.steering import null as module
from loclin.steering.averages import labels_averaged, loss_of
from loclin.steering.compare import random_directions, shares_of
from loclin.steering.estimands import Estimand
from loclin.steering.gradient import step_direction
from loclin.steering.null import RandomSteps, cosines_by_law, drawn_cosines
from loclin.steering.prompts import prompt_set
from tests.steering.test_routes import examples


def quiet(share: float) -> None:
    assert 0 <= share <= 1 + 1e-9


def made(problem: Problem, estimand: Estimand = "E1") -> tuple[RandomSteps, torch.Tensor]:
    """Steps like the gradient's, read on other prompts; and labels' direction."""
    some = examples(problem)
    half = len(some) // 2
    asked, read = (
        prompt_set(e, problem.tokenizer, device="cpu") for e in (some[:half], some[half:])
    )
    space = ParameterSpace(problem.model)
    toward = step_direction(problem.model, space, asked, loss=loss_of(estimand))
    steps = RandomSteps(
        model=problem.model,
        space=space,
        shares=shares_of(space, toward),
        read=read,
        estimand=estimand,
        eta=1e-3,
        layers=(0, 1),
        path=None,
        seed=0,
    )
    at = {"layers": [0, 1], "path": None}
    return steps, labels_averaged(problem.model, asked, form="auto", **at).direction()  # type: ignore[arg-type]


def drawn(steps: RandomSteps, against: torch.Tensor, count: int) -> np.ndarray:
    origin = activations(steps.model, steps.read.batch, layers=steps.layers)
    return drawn_cosines(steps, against, count=count, origin=origin, progress=quiet)


def test_drawn_cosines_are_a_function_of_their_seed_and_have_both_signs(speaking: Problem) -> None:
    steps, against = made(speaking)
    before = steps.space.read()
    found = drawn(steps, against, 5)
    assert found.shape == (10, 2)
    assert np.allclose(np.sort(found, axis=0), np.sort(-found, axis=0))
    assert len(np.unique(np.abs(found))) == 10
    assert np.array_equal(found, drawn(steps, against, 5))
    assert not np.allclose(found, drawn(replace(steps, seed=1), against, 5))
    assert torch.equal(steps.space.read(), before)


@pytest.mark.parametrize("estimand", ["E1", "E3"])
def test_the_law_is_that_of_steps_that_are_taken(speaking: Problem, estimand: Estimand) -> None:
    """Kolmogorov and Smirnov on 240 steps that are not those behind the law; cosines with another
    direction have another one, and are told apart.
    """
    steps, against = made(speaking, estimand)
    before = steps.space.read()
    law = cosines_by_law(replace(steps, seed=7), against, progress=quiet)
    taken = drawn(steps, against, 240)[:240]
    turned = torch.randn(against.shape, generator=torch.Generator().manual_seed(0))
    other = cosines_by_law(steps, turned, progress=quiet)
    assert law.shape == (2 * module.DRAWS * module.LEVELS, 2)
    assert np.array_equal(np.sort(law, axis=0), np.sort(-law, axis=0))
    for layer in (0, 1):
        assert stats.ks_2samp(taken[:, layer], law[:, layer]).pvalue > 0.01
        assert stats.ks_2samp(taken[:, layer], other[:, layer]).pvalue < 1e-3
    assert torch.equal(steps.space.read(), before)
    assert all(p.grad is None for p in steps.space.parameters)


def test_what_a_shift_along_the_covariance_gives_is_the_variance(speaking: Problem) -> None:
    """cᵀb = V, up to what bends in a step of 1e-4, in float64."""
    precise = replace(speaking, model=copy.deepcopy(speaking.model).double())
    steps, against = made(precise)
    steps = replace(steps, eta=1e-4)
    for layer in (0, 1):
        unit = torch.nn.functional.normalize(against[layer].double(), dim=-1)
        variance, b = module._along(steps, layer, unit, steps.space.zeros())
        assert float(b @ unit) == pytest.approx(variance, rel=1e-4)


def test_variance_and_covariance_are_those_of_the_shifts(speaking: Problem) -> None:
    """V is the variance of cᵀJv over steps that are taken, b its covariance with Jv."""
    steps, against = made(speaking)
    unit = against.double() / against.double().norm(dim=-1, keepdim=True)
    size = steps.eta * steps.space.norm()
    shifts = torch.stack(
        [
            steps.shift(v, steps.layers) / size
            for v in random_directions(steps.space, 200, seed=3, shares=steps.shares)
        ]
    )
    for layer in (0, 1):
        variance, b = module._along(steps, layer, unit[layer], steps.space.zeros())
        a = shifts[:, layer] @ unit[layer]
        assert float(a.square().mean()) == pytest.approx(variance, rel=4 * (2 / 200) ** 0.5)
        covariance = (a[:, None] * shifts[:, layer]).mean(0)
        assert float(covariance @ b / covariance.norm() / b.norm()) > 0.95
