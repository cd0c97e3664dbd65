import math

import numpy as np
import pytest
import torch
from scipy import stats

from loclin.errors import LoclinError
from loclin.geometry.gramian import gramian
from loclin.geometry.spectrum import centred, effective_ranks, principal_directions, random_sketch
from tests.reference import (
    dense_capture,
    dense_ranks,
    isotropic_participation,
    isotropic_stable_rank,
)


def gaussian(n: int, dimension: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dimension, generator=torch.Generator().manual_seed(seed))


def test_ranks_equal_those_of_the_dense_singular_values() -> None:
    rows = gaussian(12, 300) * torch.linspace(1, 5, 12)[:, None]
    ranks = effective_ranks(gramian(rows))
    assert np.allclose(
        (ranks.stable, ranks.participation, ranks.entropy), dense_ranks(rows.numpy()), rtol=1e-6
    )
    middle = effective_ranks(centred(gramian(rows)))
    dense = dense_ranks((rows - rows.mean(0)).numpy())
    assert np.allclose((middle.stable, middle.participation, middle.entropy), dense, rtol=1e-5)


def test_the_three_ranks_keep_their_order() -> None:
    ranks = effective_ranks(gramian(gaussian(20, 50) * torch.linspace(0.1, 3, 50)))
    assert ranks.stable <= ranks.participation <= ranks.entropy <= 20


def test_planted_rank_is_found_and_isotropic_vectors_are_not_low_rank() -> None:
    few = gaussian(64, 4, seed=1) @ gaussian(4, 2000, seed=2)
    assert effective_ranks(gramian(few)).participation < 4.001
    assert effective_ranks(gramian(gaussian(64, 2000))).participation > 55


def test_isotropic_ranks_follow_their_closed_forms() -> None:
    n, dimension = 60, 240
    draws = [effective_ranks(gramian(gaussian(n, dimension, seed=s))) for s in range(20)]
    assert math.isclose(
        float(np.mean([r.participation for r in draws])),
        isotropic_participation(n, dimension),
        rel_tol=0.02,
    )
    assert math.isclose(
        float(np.mean([r.stable for r in draws])), isotropic_stable_rank(n, dimension), rel_tol=0.06
    )


def test_principal_directions_are_the_top_right_singular_vectors() -> None:
    rows = gaussian(10, 100) * torch.cat([torch.full((3,), 20.0), torch.ones(97)])
    space = principal_directions(rows, 3)
    _, _, vt = np.linalg.svd(rows.double().numpy(), full_matrices=False)
    for i in range(3):  # nested: the first i rows span the first i singular vectors
        assert dense_capture(space.basis[: i + 1].numpy(), vt[i]) > 1 - 1e-6


def test_a_sketch_has_the_norms_it_was_given() -> None:
    norms = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    sketch = random_sketch(norms, [50, 70], seed=0)
    assert np.allclose(np.diag(sketch), [25, 1], rtol=1e-5)


def participation_of_sketches(n: int, size: int, draws: int = 200) -> np.ndarray:
    return np.array(
        [
            effective_ranks(random_sketch(torch.ones(n, 1), [size], seed=s)).participation
            for s in range(draws)
        ]
    )


@pytest.mark.parametrize(("n", "size"), [(20, 12), (20, 20), (20, 21), (20, 500)])
def test_a_sketch_drawn_without_its_vectors_follows_the_law_of_drawn_vectors(
    n: int, size: int
) -> None:
    """Fewer dimensions than vectors, as many, and more: the two ways of drawing agree with vectors
    of unit length.
    """
    dense = []
    for seed in range(200):
        rows = gaussian(n, size, seed=seed)
        dense.append(effective_ranks(gramian(rows / rows.norm(dim=1)[:, None])).participation)
    assert stats.ks_2samp(participation_of_sketches(n, size), np.array(dense)).pvalue > 1e-3


def test_the_sketch_of_a_large_network_needs_no_vector_of_its_size() -> None:
    draws = participation_of_sketches(20, 500_000_000, draws=5)
    assert np.allclose(draws, isotropic_participation(20, 500_000_000), rtol=1e-4)


def test_tensors_of_unequal_norm_lower_the_rank_by_themselves() -> None:
    small, large = torch.full((30, 1), 0.01), torch.ones(30, 1)
    uneven = effective_ranks(
        random_sketch(torch.cat([large, small], 1), [5, 100_000], seed=0)
    ).participation
    assert uneven < isotropic_participation(30, 5) * 1.3


def test_too_few_vectors_are_refused() -> None:
    with pytest.raises(LoclinError, match="k from 1 to n = 4 vectors, found 5"):
        principal_directions(gaussian(4, 10), 5)
    with pytest.raises(LoclinError, match="rank 3 at least, found rank 2"):
        principal_directions(gaussian(5, 2, seed=1) @ gaussian(2, 30, seed=2), 3)
    with pytest.raises(LoclinError, match="vanish or hold NaN"):
        effective_ranks(np.zeros((3, 3)))
