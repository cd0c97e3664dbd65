import numpy as np
import pytest
import torch
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry import lora
from loclin.geometry.gramian import gramian, prefix_capture
from loclin.geometry.lora import LowRank, low_rank_gramian, secants, tangents

KS = [1, 3, 6]


def walk(points: int, *shape: int, seed: int) -> Tensor:
    """Factors on the way from a start: small steps, so that products of neighbouring points nearly
    cancel.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(points, *shape, generator=generator, dtype=torch.float64) * 1e-3
    steps[0] = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return steps.cumsum(0)


A, B = walk(10, 4, 30, seed=0), walk(10, 20, 4, seed=1)


def dense_steps(a: Tensor, b: Tensor, scale: float) -> Tensor:
    return (scale * (b @ a)).diff(dim=0).flatten(1)


def test_secants_are_the_steps_of_the_product() -> None:
    steps = secants(A, B, scale=0.5)
    assert torch.allclose(
        (steps.left @ steps.right).flatten(1), dense_steps(A, B, 0.5), rtol=1e-9, atol=1e-13
    )
    assert steps.left.shape == (9, 20, 8)


@pytest.mark.parametrize("columns", [8, 20, 1024])
def test_the_gramian_equals_that_of_the_dense_products_in_any_blocks(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr(lora, "_COLUMNS", columns)
    other = walk(10, 3, 50, seed=2), walk(10, 7, 3, seed=3)
    dense = torch.cat([dense_steps(A, B, 2.0), dense_steps(*other, 1.0)], dim=1)
    steps = [secants(A, B, scale=2.0), secants(*other, scale=1.0)]
    assert np.allclose(low_rank_gramian(steps), gramian(dense), rtol=1e-8)
    assert np.array_equal(low_rank_gramian(steps), low_rank_gramian(steps).T)
    fewer = [LowRank(left=w.left[:4], right=w.right[:4]) for w in steps]
    assert np.allclose(low_rank_gramian(fewer, steps), gramian(dense[:4], dense), rtol=1e-8)


def test_tangents_are_the_differential_of_the_product() -> None:
    da, db = walk(5, 4, 30, seed=4), walk(5, 20, 4, seed=5)
    tangent = tangents(A[0], B[0], da, db, scale=0.5)
    step = 1e-6
    ahead, behind = ((B[0] + s * db) @ (A[0] + s * da) for s in (step, -step))
    assert torch.allclose(
        tangent.left @ tangent.right, 0.5 * (ahead - behind) / (2 * step), atol=1e-8
    )


def test_tangents_at_a_fresh_adapter_see_b_alone() -> None:
    """With B = 0 a direction in A changes no weight."""
    tangent = tangents(
        A[0], torch.zeros_like(B[0]), walk(3, 4, 30, seed=4), torch.zeros(3, 20, 4), scale=1.0
    )
    assert not low_rank_gramian([tangent]).any()


def test_a_change_of_gauge_moves_the_factors_and_not_the_weights() -> None:
    turn = torch.randn(4, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    turned = turn @ A, B @ turn.inverse()
    weights = [low_rank_gramian([secants(a, b, scale=1.0)]) for a, b in ((A, B), turned)]
    assert np.allclose(*weights, rtol=1e-8)
    assert np.allclose(*(prefix_capture(g, KS) for g in weights), atol=1e-8)
    factors = [
        gramian(torch.cat([a.diff(dim=0).flatten(1), b.diff(dim=0).flatten(1)], dim=1))
        for a, b in ((A, B), turned)
    ]
    assert np.abs(np.subtract(*(prefix_capture(g, KS) for g in factors))).max() > 0.01


def test_low_precision_factors_are_subtracted_exactly() -> None:
    a, b = A.bfloat16(), B.bfloat16()
    exact = low_rank_gramian([secants(a.double(), b.double(), scale=1.0)])
    assert np.allclose(low_rank_gramian([secants(a, b, scale=1.0)]), exact, rtol=1e-5, atol=1e-12)


def test_other_weights_on_the_two_sides_are_refused() -> None:
    steps = secants(A, B, scale=1.0)
    with pytest.raises(
        LoclinError,
        match=r"the same adapted weights .* found shapes \[\(20, 30\)\] and \[\]: give one",
    ):
        low_rank_gramian([steps], [])
    with pytest.raises(LoclinError, match="expected the same adapted weights"):
        low_rank_gramian([])
    with pytest.raises(
        LoclinError, match="factors at 2 points at least, found 1: record more steps"
    ):
        secants(A[:1], B[:1], scale=1.0)
