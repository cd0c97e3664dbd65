"""The law's numbers at a point, against dense twins."""

import copy
import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loclin import law
from loclin.models import Problem
from loclin.models.evaluation import EvalSet
from loclin.parameters import ParameterSpace
from loclin.search.local_law import CUBES, Coordinates, LocalLaw, second_order
from loclin.search.noise import Noise
from tests.reference import folded_gradient_norm


def symmetric(size: int, seed: int) -> Tensor:
    h = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return h + h.T


def test_a_subspace_sees_the_hessian_between_its_directions() -> None:
    h, generator = symmetric(12, 0), torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(12, 3, generator=generator, dtype=torch.float64))[0].T
    g = torch.randn(12, generator=generator, dtype=torch.float64)
    seen = LocalLaw.in_subspace(lambda v: h @ v, g, basis)
    dense = LocalLaw.of_matrix((basis @ g).numpy(), (basis @ h @ basis.T).numpy())
    assert dataclasses.astuple(seen) == pytest.approx(dataclasses.astuple(dense))


def test_all_coordinates_are_seen_by_probes() -> None:
    module = nn.Linear(4, 3).double()
    space, h, g = (
        ParameterSpace(module),
        symmetric(15, 0),
        torch.randn(15, generator=torch.Generator().manual_seed(1)).double(),
    )
    seen = LocalLaw.by_probes(lambda v: h @ v, g, 4000, seed=0, noise=space.noise)
    dense = LocalLaw.of_matrix(g.numpy(), h.numpy())
    assert (seen.gradient, seen.along) == (
        pytest.approx(dense.gradient),
        pytest.approx(dense.along),
    )
    assert seen.trace == pytest.approx(dense.trace, abs=4 * np.sqrt(2 / 4000) * dense.frobenius)
    assert seen.frobenius == pytest.approx(dense.frobenius, rel=0.1)


def test_the_cubed_trace_takes_a_second_product_of_the_first_probes() -> None:
    """tr H³ without bias over seeds, by four products more."""
    module, h = nn.Linear(4, 3).double(), symmetric(15, 0) / 4 + torch.eye(15).double()
    space, g, products = ParameterSpace(module), torch.ones(15).double(), list[Tensor]()

    def product(v: Tensor) -> Tensor:
        products.append(v)
        return h @ v

    found = [
        LocalLaw.by_probes(product, g, 6, seed=seed, noise=space.noise).cube for seed in range(400)
    ]
    assert len(products) == 400 * (6 + 1 + CUBES)
    cube = float((h @ h @ h).trace())
    assert np.mean(found) == pytest.approx(cube, abs=4 * np.std(found) / math.sqrt(len(found)))
    assert LocalLaw.of_matrix(g.numpy(), h.numpy()).cube == pytest.approx(cube)


def test_what_was_not_measured_has_no_second_order() -> None:
    known = LocalLaw(gradient=1.0, trace=2.0, along=0.5, frobenius=1.0, cube=0.3)
    assert known.second_order_gain(10, 0.1) == law.second_order_gain(
        gradient=1.0, trace=2.0, along=0.5, frobenius=1.0, cube=0.3, n=10, sigma=0.1
    )
    assert math.isnan(replace(known, cube=math.nan).second_order_gain(10, 0.1))
    assert math.isnan(replace(known, frobenius=math.nan).second_order_gain(10, 0.1))
    assert known.linear_gain(10, 0.1) == pytest.approx(0.1 * law.expected_maximum(10))


def test_tied_noise_sees_everything_folded_over_the_tensors() -> None:
    space = ParameterSpace(
        nn.Linear(4, 3).double()
    )  # 12 numbers, and 3 that repeat the first of them
    fold = torch.cat([torch.eye(12), torch.eye(12)[:3]]).double()
    h, g = symmetric(15, 0), torch.randn(15, generator=torch.Generator().manual_seed(1)).double()
    seen = LocalLaw.of_tied_noise(lambda v: h @ v, space, g, 300, seed=0)
    dense = LocalLaw.of_matrix((fold.T @ g).numpy(), (fold.T @ h @ fold).numpy())
    assert (seen.gradient, seen.along) == (
        pytest.approx(dense.gradient),
        pytest.approx(dense.along),
    )
    assert seen.trace == pytest.approx(dense.trace, abs=4 * np.sqrt(2 / 300) * dense.frobenius)


def test_the_reference_is_the_best_sigma_up_to_the_validity_edge() -> None:
    flat = LocalLaw(gradient=1.0, trace=-1.0, along=0.0, frobenius=10.0)
    assert flat.reference(20) == pytest.approx(math.sqrt(2) / 10)
    many = LocalLaw(gradient=1.0, trace=100.0, along=0.0, frobenius=10.0)
    assert many.reference(20) == pytest.approx(0.018675, rel=1e-3)
    assert many.in_domain(20, many.reference(20))
    assert many.domain(20) == many.reference(20)
    assert flat.domain(20) == 0.25 * flat.edge
    assert not many.in_domain(20, 1.1 * many.reference(20))
    assert flat.in_domain(20, 0.25 * flat.reference(20))
    assert not flat.in_domain(20, 0.26 * flat.reference(20))


def test_a_matrix_is_seen_as_probes_see_it() -> None:
    rng = np.random.default_rng(0)
    h = rng.standard_normal((5, 5))
    h, g = h + h.T, rng.standard_normal(5)
    seen = LocalLaw.of_matrix(g, h)
    assert seen.gradient == pytest.approx(float(torch.tensor(g).norm()))
    assert seen.along == pytest.approx(g @ h @ g / (g @ g))
    assert (seen.trace, seen.frobenius) == (
        pytest.approx(np.trace(h)),
        pytest.approx(np.linalg.norm(h)),
    )
    assert LocalLaw.of_matrix(np.zeros(2), np.eye(2)).along == 0


def test_the_gain_bends_where_the_law_says() -> None:
    flat = LocalLaw(gradient=1.0, trace=0.0, along=0.0, frobenius=1.0)
    assert flat.bends_at(20, 0.2) == math.inf
    bent = replace(flat, trace=4.0)
    sigma = bent.bends_at(20, 0.2)
    assert bent.gain(20, sigma) == pytest.approx(0.8 * flat.gain(20, sigma))


def test_lifting_and_folding_are_transposes() -> None:
    module = torch.nn.Linear(3, 4).double()
    space = ParameterSpace(module)
    tied = Coordinates.of(space, Noise.parse("tied"), None)
    rng = torch.Generator().manual_seed(0)
    s, v = (
        torch.randn(n, generator=rng, dtype=torch.float64)
        for n in (tied.dimension, space.dimension)
    )
    assert float(tied.lift(s) @ v) == pytest.approx(float(s @ tied.fold(v)))
    assert tied.dimension == 12
    pieces = space.by_tensor(v)
    assert float(tied.fold(v).norm()) == pytest.approx(folded_gradient_norm(pieces))


def test_both_methods_give_the_hessian_of_the_examples_and_leave_attention_alone(
    trained: Problem,
) -> None:
    problem = replace(trained, model=copy.deepcopy(trained.model).double())
    space = ParameterSpace(problem.model)
    eval_set = EvalSet.of(problem, problem.examples["test"][problem.tasks[0]][:16])
    batches, attention = list(eval_set.fold(0)), problem.model.config._attn_implementation
    v = space.noise(seed=0)
    with space.restored():
        space.add(space.noise(seed=1), scale=0.02)  # off the minimum
        with second_order(problem, space, eval_set.loss, batches) as product:
            exactly = product(v)
        method = "finite differences"
        with second_order(problem, space, eval_set.loss, batches, method) as product:
            # float64: the step is 5e-8 of ‖θ‖, the error u^{2/3} = 2e-11 times a condition number
            assert (product(v) - exactly).norm() < 1e-7 * exactly.norm()
    assert problem.model.config._attn_implementation == attention
