import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loclin.errors import LoclinError
from loclin.geometry.subspace import Subspace, random_subspace
from loclin.theory import random_capture, random_overlap
from tests.properties import (
    assert_follows,
    assert_invariant_to_rotation,
    assert_within_error,
    rotation,
)

seeds = st.integers(0, 2**31 - 1)
shapes = st.tuples(st.integers(1, 6), st.integers(8, 30))


@given(seed=seeds, shape=shapes)
@settings(max_examples=40, deadline=None)
def test_projection_is_idempotent_and_capture_a_share(seed: int, shape: tuple[int, int]) -> None:
    space = random_subspace(*shape, seed=seed)
    v = torch.randn(shape[1], generator=torch.Generator().manual_seed(seed + 1))
    once = space.project(v)
    assert torch.allclose(space.project(once), once, atol=1e-5)
    assert 0 <= space.capture(v) <= 1
    assert math.isclose(
        space.capture(v), float(once.square().sum() / v.square().sum()), abs_tol=1e-5
    )
    assert math.isclose(space.capture(space.basis[0]), 1, abs_tol=1e-5)


@given(seed=seeds, shape=shapes)
@settings(max_examples=40, deadline=None)
def test_overlap_is_symmetric_and_invariant_to_rotation(seed: int, shape: tuple[int, int]) -> None:
    a, b = random_subspace(*shape, seed=seed), random_subspace(*shape, seed=seed + 1)
    assert math.isclose(a.overlap(b), b.overlap(a), abs_tol=1e-6)
    assert math.isclose(a.overlap(a), 1, abs_tol=1e-5)
    assert_invariant_to_rotation(
        lambda x, y: Subspace.spanned_by(x).overlap(Subspace.spanned_by(y)),
        a.basis,
        b.basis,
        seed=seed,
    )


def test_overlap_is_the_mean_squared_cosine_of_the_principal_angles() -> None:
    a, b = random_subspace(3, 10, seed=0), random_subspace(3, 10, seed=1)
    assert math.isclose(a.overlap(b), float(np.mean(np.cos(a.angles(b)) ** 2)), abs_tol=1e-5)


def test_small_angles_are_not_lost_to_rounding() -> None:
    a = Subspace.spanned_by(torch.tensor([[1.0, 0.0, 0.0]]))
    b = Subspace.spanned_by(torch.tensor([[1.0, 1e-5, 0.0]]))
    assert math.isclose(a.angles(b)[0], 1e-5, rel_tol=1e-3)  # by the cosine formula this would be 0


def test_a_basis_keeps_the_order_of_its_vectors() -> None:
    vectors = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    space = Subspace.spanned_by(vectors)
    for j in range(1, 5):
        first = Subspace(basis=space.basis[:j])
        assert math.isclose(first.capture(vectors[j - 1]), 1, abs_tol=1e-5)


def test_dependent_vectors_span_no_more_than_their_rank() -> None:
    vectors = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    space = Subspace.spanned_by(
        torch.cat([vectors, 2 * vectors[:1] - vectors[1:2], torch.zeros(1, 20)])
    )
    assert space.k == 3
    assert torch.allclose(space.basis @ space.basis.T, torch.eye(3), atol=1e-5)
    assert all(space.capture(v) > 1 - 1e-5 for v in vectors)


def test_more_vectors_than_dimensions_span_the_whole_space() -> None:
    space = Subspace.spanned_by(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    assert space.k == 4
    assert torch.allclose(space.basis @ space.basis.T, torch.eye(4), atol=1e-5)


def test_capture_by_random_subspaces_follows_the_beta_law() -> None:
    k, dimension = 3, 40
    v = rotation(dimension, seed=5)[0]
    draws = np.array([random_subspace(k, dimension, seed=s).capture(v) for s in range(2000)])
    assert_follows(draws, random_capture(k, dimension))


def test_overlap_of_random_subspaces_has_the_stated_mean_and_variance() -> None:
    k1, k2, dimension = 5, 3, 30
    a = random_subspace(k1, dimension, seed=10_000)
    draws = np.array([a.overlap(random_subspace(k2, dimension, seed=s)) for s in range(3000)])
    mean, variance = random_overlap(k1, k2, dimension)
    assert_within_error(draws, mean)
    assert_within_error((draws - mean) ** 2, variance)


def test_what_spans_nothing_is_refused() -> None:
    with pytest.raises(LoclinError, match="found only zeros"):
        Subspace.spanned_by(torch.zeros(2, 5))
    with pytest.raises(LoclinError, match="NaN"):
        Subspace.spanned_by(torch.full((1, 5), math.nan))
    with pytest.raises(LoclinError, match="at least one"):
        Subspace.spanned_by(torch.zeros(0, 5))
    with pytest.raises(LoclinError, match="capture is not defined"):
        random_subspace(1, 5, seed=0).capture(torch.zeros(5))
    other = random_subspace(1, 4, seed=0)
    for ask in (
        other.capture,
        other.project,
        lambda v: other.overlap(random_subspace(1, 5, seed=0)),
        lambda v: other.angles(random_subspace(1, 5, seed=0)),
    ):
        with pytest.raises(LoclinError, match="a vector of 4 coordinates, found 5: take both from"):
            ask(torch.ones(5))
    with pytest.raises(LoclinError, match="k from 1 to D = 5, found 6"):
        random_subspace(6, 5, seed=0)
