"""Rows against dense twins and exact descents."""

import numpy as np
import pytest
import torch

from loclin.curvature import Probes
from loclin.geometry.krylov import Krylov, lanczos
from loclin.studies.families import Family
from loclin.studies.krylov.curved import Curved
from loclin.studies.krylov.rows import (
    bound_rows,
    captures_until,
    curvature_rows,
    descent_rows,
    prefix_capture_rows,
    premise_row,
)
from tests.planted import quadratic_descent, white_steps
from tests.reference import dense_capture
from tests.rows import value, values


def descent(
    spectrum: np.ndarray, g: np.ndarray, rate: float, steps: int
) -> tuple[Krylov, np.ndarray]:
    """Krylov space and updates of gradient descent on a diagonal quadratic."""
    values = torch.from_numpy(spectrum)
    return lanczos(lambda v: values * v, torch.from_numpy(g), 6), quadratic_descent(
        spectrum, g / spectrum, rate, steps
    )


def test_captures_until_are_those_of_the_summed_steps() -> None:
    rng = np.random.default_rng(0)
    u, b = white_steps(12, 30, rng), rng.standard_normal((4, 30))
    captured = captures_until(b @ b.T, b @ u.T, u @ u.T, [1, 3, 12])
    assert captured == pytest.approx([dense_capture(b, u[:t].sum(0)) for t in (1, 3, 12)])
    assert np.isnan(captures_until(b @ b.T, 0 * (b @ u.T), 0 * (u @ u.T), [5])).all()


def test_prefix_rows_have_no_null_and_hold_all_of_themselves() -> None:
    u = white_steps(6, 40, np.random.default_rng(0))
    rows = list(prefix_capture_rows(u @ u.T, (2, 6), {"basis": "prefix"}))
    assert value(rows, "basis_capture", k=2, of="displacement") == pytest.approx(
        dense_capture(u[:2], u.sum(0))
    )
    assert value(rows, "basis_capture", k=2, of="future") == pytest.approx(
        dense_capture(u[:2], u[2:].sum(0))
    )
    assert value(rows, "basis_capture", k=6, of="displacement") == pytest.approx(1)
    assert len(rows) == 3
    assert all(r.null is None and r.p is None for r in rows)


def test_descent_on_a_quadratic_is_the_models_own_and_another_is_not() -> None:
    rng = np.random.default_rng(0)
    krylov, u = descent(np.linspace(0.2, 3, 20), rng.standard_normal(20), 0.3, 12)
    q = krylov.basis.numpy()
    rows = list(descent_rows(krylov, q @ u.T, u @ u.T, 0.3, (1, 4, 6, 7), {}))
    assert [r.context["t"] for r in rows if r.quantity == "descent_cosine"] == [
        1,
        4,
        6,
    ]  # 7 is beyond the space
    assert all(r.value == pytest.approx(1) for r in rows)
    half = list(descent_rows(krylov, q @ u.T / 2, u @ u.T / 4, 0.3, (4,), {}))
    assert (value(half, "descent_cosine"), value(half, "descent_length")) == (
        pytest.approx(1),
        pytest.approx(0.5),
    )
    noise = white_steps(12, 20, rng)
    other = list(descent_rows(krylov, q @ noise.T, noise @ noise.T, 0.3, (4,), {}))
    assert abs(value(other, "descent_cosine")) < 0.9


def test_the_bound_holds_for_an_exact_descent_whose_premise_holds() -> None:
    rate, times = 0.3, (1, 2, 6, 12, 40)
    krylov, u = descent(
        np.linspace(0.01, 2 / rate, 25), np.random.default_rng(1).standard_normal(25), rate, 40
    )
    q = krylov.basis.numpy()
    captured = captures_until(np.eye(6), q @ u.T, u @ u.T, times)
    rows = list(bound_rows(krylov, captured, u @ u.T, rate, 6, times, {}))
    for t in times:
        d = u[:t].sum(0)
        left = value(rows, "left_over", t=t)
        assert left == pytest.approx(
            np.linalg.norm(d - q.T @ (q @ d)) / np.linalg.norm(d), abs=1e-6
        )
        assert left <= value(rows, "left_over_bound", t=t) + 1e-6


def planted(lowest: float, largest: float) -> Curved:
    """A diagonal Hessian of six eigenvalues, its Krylov space the whole space."""
    values = torch.linspace(lowest, largest, 6).double()
    probes = Probes(forms=np.array([1.0, 3.0]), squares=np.array([4.0, 12.0]))
    nothing = Family(rows=torch.zeros(1, 6), exact=torch.zeros(1, 6))
    return Curved(
        krylov=lanczos(lambda v: values * v, torch.ones(6).double(), 6),
        eigenvalues=np.array([largest, largest / 2]),
        probes=probes,
        families={},
        preconditioned=nothing,
    )


@pytest.mark.parametrize(
    ("lowest", "largest", "holds"),
    [(0.1, 5.0, True), (-1e-6, 5.0, True), (-0.1, 5.0, False), (0.1, 21.0, False)],
)
def test_the_premise_is_a_spectrum_between_zero_and_two_over_the_rate(
    lowest: float, largest: float, holds: bool
) -> None:
    assert premise_row(planted(lowest, largest), 0.1, {}).value == float(holds)


def test_curvature_rows_hold_eigenvalues_ritz_values_and_means_over_probes() -> None:
    rows = list(curvature_rows(planted(0.5, 5.0), 2, {"run": 0}))
    assert values(rows, "eigenvalue") == [5.0, 2.5]
    assert values(rows, "ritz_value") == pytest.approx(np.linspace(5.0, 0.5, 6))
    assert value(rows, "lowest_ritz_value") == values(rows, "ritz_value")[-1]
    assert (value(rows, "trace"), value(rows, "frobenius_norm")) == (2.0, pytest.approx(8**0.5))
    assert value(rows, "gradient_norm") == pytest.approx(6**0.5)
    assert value(rows, "converged_bound", k=2) > 0
    indefinite = list(curvature_rows(planted(-0.5, 5.0), 2, {}))
    assert values(indefinite, "converged_bound") == [None]
