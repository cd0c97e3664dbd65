"""What is kept of gradients against dense twins, and their random controls."""

import numpy as np
import pytest
import torch

from loclin.geometry.gramian import gramian
from loclin.geometry.sketch import Sketch
from loclin.geometry.spectrum import effective_ranks
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.studies.directions import batch_gradients, disjoint_batches
from loclin.studies.spectrum.gradients import Gradients, controls, gather, tensor_gramians
from loclin.tasks.batch import Batch
from loclin.updates import UpdateStorage
from tests.reference import dense_ranks


@pytest.fixture(scope="module")
def batches(trained: Problem) -> list[Batch]:
    return disjoint_batches(trained.batch("gradients", "swap"), 4, 8, seed=0)


@pytest.fixture(scope="module")
def gradients(trained: Problem, batches: list[Batch]) -> Gradients:
    return gather(trained.model, ParameterSpace(trained.model), UpdateStorage(), batches)


def test_the_gradients_are_those_of_the_batches_and_their_spectrum_that_of_a_dense_svd(
    trained: Problem, batches: list[Batch], gradients: Gradients
) -> None:
    dense = batch_gradients(trained, gradients.space, batches)
    torch.testing.assert_close(gradients.rows, dense)
    whole = np.sum(list(tensor_gramians(gradients).values()), axis=0)
    assert whole == pytest.approx(gramian(dense), rel=1e-10)
    ranks = effective_ranks(whole)
    assert (ranks.stable, ranks.participation, ranks.entropy) == pytest.approx(
        dense_ranks(dense.numpy()), rel=1e-6
    )
    assert gradients.norms.square().sum(1).numpy() == pytest.approx(np.diag(whole), rel=1e-5)
    assert gradients.first(3).rows.shape == (3, gradients.space.dimension)


def test_sketched_gradients_are_held_against_sketched_noise(
    trained: Problem, batches: list[Batch], gradients: Gradients
) -> None:
    storage = UpdateStorage(store="sketch", sketch=Sketch(size=4096, seed=0))
    sketched = gather(trained.model, gradients.space, storage, batches)
    assert sketched.columns == 4096
    assert not sketched.whole
    torch.testing.assert_close(sketched.norms, gradients.norms)
    expected = np.diag(gramian(gradients.rows))
    for name, products in controls(sketched, seed=0).items():
        # a norm read from 4096 numbers: 1/√2048
        assert np.diag(products) == pytest.approx(expected, rel=0.2), name
        scale = np.sqrt(np.outer(expected, expected))
        off = (products / scale)[~np.eye(8, dtype=bool)]
        assert np.abs(off).max() < 0.15, name


def test_controls_have_the_norms_of_the_gradients(gradients: Gradients) -> None:
    expected = np.diag(gramian(gradients.rows))
    for name, products in controls(gradients, seed=0).items():
        assert np.diag(products) == pytest.approx(expected, rel=1e-5), name
