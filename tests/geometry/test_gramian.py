import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loclin.errors import LoclinError
from loclin.geometry.gramian import (
    _check,
    cross_capture,
    future_capture,
    gramian,
    inner,
    norm,
    prefix_capture,
    span_overlap,
    spanned_energy,
    summed_gramian,
)
from loclin.geometry.subspace import Subspace
from tests.planted import drifting_steps, quadratic_descent, white_steps
from tests.reference import dense_capture

KS = [1, 2, 3, 5, 8, 12, 19]


def curved(seed: int, steps: int = 20, dimension: int = 60) -> np.ndarray:
    """Correlated steps of very different lengths, as training makes them."""
    rng = np.random.default_rng(seed)
    drift = drifting_steps(steps, dimension, 0.5, rng)
    return (drift * np.geomspace(1, 1e-3, steps)[:, None]).astype(np.float32)


def test_gramian_equals_the_dense_product_over_several_blocks() -> None:
    rows = torch.randn(3, 200_000, generator=torch.Generator().manual_seed(0))
    others = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(1))
    assert np.allclose(gramian(rows), (rows.double() @ rows.double().T).numpy(), rtol=1e-12)
    assert np.allclose(
        gramian(rows, others), (rows.double() @ others.double().T).numpy(), rtol=1e-12
    )


@pytest.mark.parametrize("size", [1, 65_536, 65_537, 300_001])
def test_long_products_are_those_of_float64(size: int) -> None:
    one, other = torch.randn(2, size, generator=torch.Generator().manual_seed(size))
    exact = float(one.double() @ other.double())
    assert inner(one, other) == pytest.approx(exact, rel=1e-13, abs=1e-13 * size)
    assert norm(one) == pytest.approx(float(one.double().norm()), rel=1e-13)


def test_a_gramian_by_parts_is_that_of_the_whole_vectors() -> None:
    rows = torch.randn(3, 70_000 + 6 + 1, generator=torch.Generator().manual_seed(0))
    parts = [list(p.unbind()) for p in rows.split([70_000, 6, 1], dim=1)]
    parts[1] = [p.view(2, 3).T for p in parts[1]]  # whatever the shapes
    assert np.allclose(summed_gramian(parts), (rows.double() @ rows.double().T), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_prefix_and_future_capture_equal_the_dense_twin(seed: int) -> None:
    u = curved(seed)
    g = gramian(torch.from_numpy(u))
    d = u.astype(np.float64).sum(0)
    dense_prefix = [dense_capture(u[:k], d) for k in KS]
    dense_future = [dense_capture(u[:k], u[k:].astype(np.float64).sum(0)) for k in KS]
    assert np.allclose(prefix_capture(g, KS), dense_prefix, atol=1e-6)
    assert np.allclose(future_capture(g, KS), dense_future, atol=1e-6)


def test_cross_capture_equals_the_dense_twin() -> None:
    u, b = curved(0), curved(7)
    g, basis = gramian(torch.from_numpy(u)), gramian(torch.from_numpy(b))
    products = gramian(torch.from_numpy(b), torch.from_numpy(u))
    d = u.astype(np.float64).sum(0)
    ks = [1, 4, 9]
    assert np.allclose(
        cross_capture(basis, products, g, ks), [dense_capture(b[:k], d) for k in ks], atol=1e-6
    )
    futures = [dense_capture(b[:k], u[k:].astype(np.float64).sum(0)) for k in ks]
    assert np.allclose(cross_capture(basis, products, g, ks, future=True), futures, atol=1e-6)


def test_whole_prefix_holds_everything_and_capture_never_falls() -> None:
    g = gramian(torch.from_numpy(curved(3)))
    curve = prefix_capture(g, range(1, 21))
    assert np.isclose(curve[-1], 1)
    assert (np.diff(curve) >= -1e-12).all()
    assert np.isnan(future_capture(g, [20])).all()


@pytest.mark.parametrize("k", [1, 3, 6])
def test_overlap_of_spans_equals_that_of_their_subspaces(k: int) -> None:
    u = torch.from_numpy(curved(5))
    g = gramian(u)
    overlap = span_overlap(g[:k, :k], g[:k, k : 3 * k], g[k : 3 * k, k : 3 * k])
    assert np.isclose(
        overlap, Subspace.spanned_by(u[:k]).overlap(Subspace.spanned_by(u[k : 3 * k])), atol=1e-5
    )


def test_repeated_vectors_change_no_span() -> None:
    u = torch.from_numpy(curved(5))
    g = gramian(torch.cat([u[:3], 2 * u[:2], torch.zeros(1, 60)]))
    assert np.isclose(span_overlap(g[:3, :3], g[:3, 3:], g[3:, 3:]), 1, atol=1e-6)
    with pytest.raises(LoclinError, match="found zeros: they span nothing"):
        span_overlap(g[:3, :3], g[:3, 5:], g[5:, 5:])


def test_dependent_vectors_add_no_dimension() -> None:
    u = curved(0, steps=4)
    doubled = np.concatenate([u[:2], u[:2] * 3, u[2:]])
    target = np.random.default_rng(0).standard_normal(60)
    energy = spanned_energy(
        gramian(torch.from_numpy(doubled)), doubled.astype(float) @ target[:, None]
    )[:, 0]
    assert np.isclose(energy[1], energy[3])
    assert np.isclose(energy[-1] / (target @ target), dense_capture(u, target), atol=1e-6)


def test_quadratic_descent_spans_its_future_by_its_distinct_eigenvalues() -> None:
    """A quadratic with m distinct eigenvalues moves in an m-dimensional Krylov space: m steps hold
    all of the future.
    """
    spectrum = np.repeat([0.1, 0.5, 1.0], 20)
    u = quadratic_descent(spectrum, np.ones(60), 0.9, 30)
    held = future_capture(u @ u.T, [1, 2, 3])
    assert held[2] > 1 - 1e-9
    assert held[0] < held[1] < held[2]
    assert held[1] < 0.99


@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(2, 12), dimension=st.integers(2, 30))
@settings(max_examples=50, deadline=None)
def test_captures_lie_between_nought_and_one(seed: int, steps: int, dimension: int) -> None:
    u = white_steps(steps, dimension, np.random.default_rng(seed))
    ks = list(range(1, steps + 1))
    prefix, future = prefix_capture(u @ u.T, ks), future_capture(u @ u.T, ks)[:-1]
    for values in (prefix, future):
        assert ((values >= 0) & (values <= 1)).all()


def test_updates_in_the_place_of_their_gramian_are_refused() -> None:
    with pytest.raises(
        LoclinError,
        match=r"expected a T×T Gramian, found shape \(20, 30\): give gramian\(updates\)",
    ):
        _check(np.ones((20, 30)), [1])


@pytest.mark.parametrize("ks", [[0], [21], []])
def test_a_k_that_the_run_does_not_have_is_refused(ks: list[int]) -> None:
    with pytest.raises(
        LoclinError, match=r"expected k from 1 to T = 20, found .*: choose smaller k"
    ):
        prefix_capture(gramian(torch.from_numpy(curved(0))), ks)


def test_a_run_that_does_not_move_is_refused() -> None:
    with pytest.raises(LoclinError, match="zero length"):
        prefix_capture(np.zeros((3, 3)), [1])
