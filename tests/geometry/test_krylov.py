import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.krylov import Krylov, lanczos, preconditioned_lanczos
from loclin.geometry.subspace import Subspace
from tests.planted import quadratic_descent
from tests.properties import rotation
from tests.reference import dense_capture, dense_krylov


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quadratic(spectrum: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A dense Hessian with a spectrum, turned at random; and a gradient with a share in every
    eigenvector.
    """
    turn = rotation(len(spectrum), seed=seed).double()
    turn, _ = torch.linalg.qr(turn)
    return turn @ torch.diag(spectrum) @ turn.T, turn @ normal(len(spectrum), seed=seed + 1)


def counted(hessian: Tensor) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    calls: list[int] = []

    def product(v: Tensor) -> Tensor:
        calls.append(1)
        return hessian @ v

    return product, calls


def loss_of_orthogonality(basis: Tensor) -> float:
    wide = basis.double()
    return float(torch.linalg.matrix_norm(wide @ wide.T - torch.eye(len(wide)).double(), ord=2))


def captures(space: Krylov, target: Tensor) -> list[float]:
    return [Subspace(basis=space.basis[: j + 1]).capture(target) for j in range(space.k)]


def test_the_first_rows_span_the_smaller_spaces_and_every_row_costs_one_product() -> None:
    hessian, g = quadratic(torch.linspace(-1, 5, 12).double())
    product, calls = counted(hessian)
    space = lanczos(product, g, 7)
    assert len(calls) == space.k == 7
    for j in range(1, 8):
        dense = torch.from_numpy(dense_krylov(hessian.numpy(), g.numpy(), j))
        assert Subspace(basis=space.basis[:j]).overlap(Subspace(basis=dense)) == pytest.approx(
            1, abs=1e-10
        )
    assert torch.allclose(space.basis[0], g / g.norm())
    assert math.isclose(space.norm, float(g.norm()))


def test_the_tridiagonal_is_the_hessian_seen_in_the_basis() -> None:
    hessian, g = quadratic(torch.linspace(-1, 5, 12).double())
    space = lanczos(lambda v: hessian @ v, g, 6)
    seen = (space.basis @ hessian @ space.basis.T).numpy()
    assert np.allclose(space.tridiagonal, seen, atol=1e-12)
    outside = hessian @ space.basis[-1] - space.basis.T @ (
        space.basis @ (hessian @ space.basis[-1])
    )
    assert math.isclose(space.residual, float(outside.norm()), rel_tol=1e-10)
    values, bounds = space.ritz()
    eigenvalues = torch.linalg.eigvalsh(hessian).numpy()
    assert (np.diff(values) < 0).all()
    assert np.allclose(values, np.linalg.eigvalsh(seen)[::-1])
    assert (np.abs(values[:, None] - eigenvalues).min(1) <= bounds + 1e-12).all()
    assert bounds[0] < bounds[len(bounds) // 2]  # the ends converge first


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    "spectrum", ["one large, the rest small", "over eight decades", "negative too"]
)
def test_no_orthogonality_is_lost_on_ill_conditioned_spectra(
    dtype: torch.dtype, limit: float, spectrum: str
) -> None:
    """The three-term recurrence alone loses it once its first Ritz value has converged."""
    values = {
        "one large, the rest small": torch.cat([torch.tensor([1e3]), torch.linspace(0.01, 1, 599)]),
        "over eight decades": torch.logspace(-8, 0, 600),
        "negative too": torch.cat([-torch.logspace(-4, -1, 300), torch.logspace(-6, 2, 300)]),
    }[spectrum].to(dtype)
    g = normal(600).to(dtype)
    space = lanczos(lambda v: values * v, g, 50)
    assert space.k == 50
    assert loss_of_orthogonality(space.basis) < limit
    assert loss_of_orthogonality(_three_term(values, g, 50)) > 1e-3


def _three_term(values: Tensor, g: Tensor, k: int) -> Tensor:
    rows, before, beta = [g / g.norm()], torch.zeros_like(g), 0.0
    for _ in range(k - 1):
        left = values * rows[-1] - beta * before
        left = left - (rows[-1] @ left) * rows[-1]
        before, beta = rows[-1], float(left.norm())
        rows.append(left / beta)
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_invariant_space_ends_early(dtype: torch.dtype) -> None:
    """H of rank 3 and a gradient with a part outside its range: K is at most four-dimensional."""
    directions, _ = torch.linalg.qr(normal(40, 3))
    hessian = (directions @ torch.diag(torch.tensor([3.0, 2.0, 1.0]).double()) @ directions.T).to(
        dtype
    )
    space = lanczos(lambda v: hessian @ v, normal(40, seed=1).to(dtype), 10)
    assert space.k == 4
    assert space.residual < 1e-5
    assert np.allclose(space.ritz()[0], [3, 2, 1, 0], atol=1e-5)
    inside = lanczos(lambda v: hessian @ v, directions[:, 1].to(dtype), 10)
    assert (inside.k, round(inside.diagonal[0], 5)) == (1, 2)
    assert lanczos(lambda v: 0 * v, torch.ones(5), 3).k == 1
    whole = lanczos(lambda v: v * torch.arange(6.0), torch.ones(6), 6)
    assert whole.k == 6
    assert np.allclose(whole.ritz()[0], [5, 4, 3, 2, 1, 0], atol=1e-5)


def test_descent_on_a_quadratic_is_in_the_space_of_as_many_dimensions() -> None:
    """Capture is 1 at k = t, and at k < t that of the dense space."""
    spectrum, rate, steps = torch.linspace(0.2, 4, 12).double(), 0.3, 8
    hessian, g = quadratic(spectrum, seed=3)
    eigenvalues, vectors = torch.linalg.eigh(hessian)
    start = (vectors.T @ g) / eigenvalues  # θ − θ* in eigenvectors
    updates = quadratic_descent(eigenvalues.numpy(), start.numpy(), rate, steps) @ vectors.numpy().T
    path = updates.cumsum(0)
    space = lanczos(lambda v: hessian @ v, g, steps)
    for t in range(1, steps + 1):
        held = captures(space, torch.from_numpy(path[t - 1]))
        assert held[t - 1] == pytest.approx(1, abs=1e-12)
        for k in range(1, t):
            dense = dense_krylov(hessian.numpy(), g.numpy(), k)
            assert held[k - 1] == pytest.approx(dense_capture(dense, path[t - 1]), abs=1e-10)
    coordinates = space.descent(rate, range(1, steps + 1))
    assert np.allclose(coordinates @ space.basis.numpy(), path, atol=1e-12)
    assert np.allclose(space.descent(rate, [5, 0, 2])[[0, 2]], coordinates[[4, 1]])
    assert not space.descent(rate, [0]).any()


def test_descent_beyond_the_space_is_exact_only_where_it_is_invariant() -> None:
    hessian, g = quadratic(torch.tensor([1.0, 1.0, 1.0, 3.0, 3.0, 0.5]).double())
    space = lanczos(lambda v: hessian @ v, g, 6)
    assert space.k == 3  # three different eigenvalues
    here = torch.zeros(6).double()
    for _ in range(20):
        here = here - 0.4 * (g + hessian @ here)
    assert np.allclose(space.descent(0.4, [20])[0] @ space.basis.numpy(), here.numpy(), atol=1e-10)
    short = lanczos(lambda v: hessian @ v, g, 2)
    assert not np.allclose(
        short.descent(0.4, [20])[0] @ short.basis.numpy(), here.numpy(), atol=1e-3
    )


def test_the_preconditioned_space_is_that_of_the_scaled_hessian() -> None:
    hessian, g = quadratic(torch.linspace(-0.5, 4, 12).double(), seed=5)
    m = torch.logspace(-2, 2, 12).double()
    product, calls = counted(hessian)
    space = preconditioned_lanczos(product, g, m**-0.5, 6)
    assert len(calls) == 6
    for j in range(1, 7):
        dense = dense_krylov((hessian / m[:, None]).numpy(), (g / m).numpy(), j)
        assert Subspace(basis=space.basis[:j]).overlap(
            Subspace(basis=torch.from_numpy(dense))
        ) == pytest.approx(1)
    assert loss_of_orthogonality(space.basis) < 1e-12
    here = torch.zeros(12).double()
    for _ in range(6):  # descent with fixed preconditioner stays in it
        here = here - 0.01 * (g + hessian @ here) / m
    assert space.capture(here) == pytest.approx(1, abs=1e-9)
    assert lanczos(lambda v: hessian @ v, g, 6).basis.shape == space.basis.shape
    plain = preconditioned_lanczos(product, g, torch.ones(12).double(), 6)
    assert plain.overlap(Subspace(basis=lanczos(product, g, 6).basis)) == pytest.approx(1)


def test_half_precision_is_widened() -> None:
    assert (
        lanczos(lambda v: 2 * v, torch.ones(3, dtype=torch.bfloat16), 2).basis.dtype
        == torch.float32
    )


@pytest.mark.parametrize(
    ("start", "k", "message"),
    [
        (torch.zeros(4), 2, "a start that is not zero, found zeros"),
        (torch.tensor([1.0, math.nan]), 1, "a finite start, found NaN or infinity"),
        (torch.ones(4), 0, "k from 1 to D = 4, found 0"),
        (torch.ones(4), 5, "k from 1 to D = 4, found 5"),
    ],
)
def test_starts_and_sizes_that_make_no_space_are_refused(
    start: Tensor, k: int, message: str
) -> None:
    with pytest.raises(LoclinError, match=message):
        lanczos(lambda v: v, start, k)


def test_products_scales_and_steps_that_make_no_sense_are_refused() -> None:
    steep = torch.tensor([1.0, 2.0, math.inf])
    with pytest.raises(
        LoclinError, match="finite Hessian-vector products, found NaN or infinity in product 1 of 2"
    ):
        lanczos(lambda v: v * steep, torch.ones(3), 2)
    with pytest.raises(LoclinError, match="a positive finite scale in every coordinate"):
        preconditioned_lanczos(lambda v: v, torch.ones(3), torch.tensor([1.0, 0.0, 1.0]), 2)
    with pytest.raises(LoclinError, match=r"steps from 0 on, found \[-1\]"):
        lanczos(lambda v: v, torch.ones(3), 1).descent(0.1, [-1])
