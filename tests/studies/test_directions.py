import numpy as np
import pytest
import torch

from loclin.curvature import CurvatureOperator
from loclin.errors import LoclinError
from loclin.models import Problem, twice_differentiable
from loclin.parameters import ParameterSpace
from loclin.studies.directions import (
    batch_gradients,
    disjoint_batches,
    hessian_directions,
    norm_matched_noise,
    task_vectors,
)
from loclin.tasks.batch import answer_loss, concatenate


def test_hessian_directions_are_eigenvectors_of_the_largest_eigenvalues(trained: Problem) -> None:
    space = ParameterSpace(trained.model, "transformer.h.0.ln_1.*,transformer.ln_f.*")
    data = trained.batch("recovery", "swap").rows(slice(0, 16))
    top = hessian_directions(trained, space, data, 4, seed=0)
    with twice_differentiable(trained.model):
        hessian = CurvatureOperator(space, lambda b: answer_loss(trained.model, b), [data])
        columns = [hessian @ e for e in torch.eye(space.dimension)]
    dense = torch.stack(columns).double().numpy()
    _, vectors = np.linalg.eigh((dense + dense.T) / 2)
    for i in range(4):
        assert abs(top[i].double().numpy() @ vectors[:, -1 - i]) > 0.99


def test_norm_matched_noise_has_the_norms_of_its_model(trained: Problem) -> None:
    space = ParameterSpace(trained.model)
    like = torch.stack([space.noise(seed=1), space.noise(seed=2)])
    like[:, : space.dimension // 2] *= 10
    noise = norm_matched_noise(space, like, seed=0)
    for row, model in zip(noise, like, strict=True):
        for a, b in zip(
            space.by_tensor(row).values(), space.by_tensor(model).values(), strict=True
        ):
            assert torch.isclose(a.norm(), b.norm(), rtol=1e-4)
    assert abs(float(torch.corrcoef(torch.stack([noise[0], like[0]]))[0, 1])) < 0.1


def test_task_vectors_differ_and_leave_the_model_where_it_was(trained: Problem) -> None:
    space = ParameterSpace(trained.model)
    before = space.read()
    vectors = task_vectors(trained, space, 7, batch=24, lr=1e-3, steps=3, seed=0)
    assert torch.equal(space.read(), before)
    assert torch.linalg.matrix_rank(vectors) == 7


def test_gradients_of_equal_batches_average_to_that_of_all(trained: Problem) -> None:
    space = ParameterSpace(trained.model)
    batches = disjoint_batches(trained.batch("gradients", "swap"), 4, 3, seed=0)
    whole = batch_gradients(trained, space, [concatenate(batches)])
    assert torch.allclose(batch_gradients(trained, space, batches).mean(0), whole[0], atol=1e-6)


def test_disjoint_batches_share_no_example(trained: Problem) -> None:
    data = trained.batch("gradients", "swap")
    drawn = disjoint_batches(data, 4, 10, seed=0) + disjoint_batches(data, 4, 10, seed=0, skip=10)
    rows = [tuple(r) for b in drawn for r in b.input_ids.tolist()]
    assert len(set(rows)) == len(rows) == 80
    with pytest.raises(
        LoclinError, match="at least 400 examples for 100 disjoint batches of 4, found 240"
    ):
        disjoint_batches(data, 4, 100, seed=0)
