"""Pairs of updates against quadratics in closed form, and a network at shrinking steps."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from loclin import pairs
from loclin.errors import LoclinError
from loclin.pairs import Objective, bracket, interference, order_effect, order_onset
from loclin.parameters import ParameterSpace

D = 6


class Point(nn.Module):
    """A point of R^D, as a module."""

    def __init__(self, at: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(at.clone())


def quadratic(point: Point, H: Tensor, lowest: Tensor) -> Objective[Any]:
    """½(x−c)ᵀH(x−c)."""

    def loss(_: None) -> Tensor:
        away = point.x - lowest
        return away @ H @ away / 2

    return Objective(loss=loss, batches=[None])


def curved(seed: int) -> Tensor:
    """A positive definite matrix."""
    made = torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return made @ made.T / D + torch.eye(D, dtype=torch.float64)


@pytest.fixture
def planted() -> tuple[ParameterSpace, list[Objective[Any]], list[Tensor], list[Tensor]]:
    """A space, two quadratics, their Hessians and their gradients there."""
    rng = torch.Generator().manual_seed(9)
    at, *lowest = torch.randn(3, D, dtype=torch.float64, generator=rng)
    point, Hs = Point(at), [curved(1), curved(2)]
    tasks = [quadratic(point, H, c) for H, c in zip(Hs, lowest, strict=True)]
    return ParameterSpace(point), tasks, Hs, [H @ (at - c) for H, c in zip(Hs, lowest, strict=True)]


def test_the_bracket_of_quadratics(planted: Any) -> None:
    space, (a, b), (H_a, H_b), (g_a, g_b) = planted
    found, exact = bracket(space, a, b), H_b @ g_a - H_a @ g_b
    assert torch.allclose(found.vector, exact, atol=1e-10)
    assert found.kappa == pytest.approx(float(exact.norm() / (g_a + g_b).norm()))
    assert found.kappa_apart == pytest.approx(float(exact.norm() / (g_a.norm() + g_b.norm())))
    assert found.onset == pytest.approx(0.1 / found.kappa)
    assert torch.allclose(bracket(space, b, a).vector, -exact, atol=1e-10)


def test_one_step_of_each_is_the_bracket_exactly(planted: Any) -> None:
    space, (a, b), _, _ = planted
    before, found = space.read(), bracket(space, a, b)
    for eta in (1e-3, 0.1):
        made = order_effect(space, a, b, eta)
        assert made.apart == pytest.approx(eta * found.kappa_apart, rel=1e-9)
    assert torch.equal(space.read(), before)


def test_predictions_tend_to_what_is_measured() -> None:
    """At the rate of the next order, for one step and for five; on a network too."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x, y = torch.randn(2, 20, 3).double(), torch.randn(2, 20, 1).double()
    space = ParameterSpace(network)

    def loss(i: int) -> Tensor:
        return nn.functional.mse_loss(network(x[i]), y[i])

    a, b = (Objective(loss=loss, batches=[i]) for i in (0, 1))
    kappa = bracket(space, a, b).kappa
    for k in (1, 5):
        etas = [1e-2 / k, 1e-3 / k, 1e-4 / k]
        made = [order_effect(space, a, b, eta, k=k) for eta in etas]
        for quantity in (
            [e.relative / (k * e.eta * kappa) for e in made],
            [e.difference / e.predicted for e in made],
        ):
            off = np.abs(np.array(quantity) - 1)
            assert off[0] < 0.2
            assert np.all(off[1:] < 0.15 * off[:-1])


def test_hessians_that_commute_about_one_minimum_have_no_order(planted: Any) -> None:
    space, _, (H, _), _ = planted
    point, lowest = Point(space.read()), torch.ones(D, dtype=torch.float64)
    own = ParameterSpace(point)
    one, other = quadratic(point, H, lowest), quadratic(point, H @ H, lowest)
    assert bracket(own, one, other).kappa < 1e-12
    assert order_effect(own, one, other, 0.05, k=3).relative < 1e-12
    assert order_onset(own, one, other, [0.01, 0.1])[0] is None


def test_at_a_joint_optimum_only_the_second_measure_is_defined() -> None:
    point = Point(torch.zeros(D, dtype=torch.float64))
    e = torch.eye(D, dtype=torch.float64)
    a, b = quadratic(point, e, e[0]), quadratic(point, 2 * e, -e[0] / 2)
    found = bracket(ParameterSpace(point), a, b)  # gradients −e₀ and e₀
    assert found.together == 0
    assert found.kappa == float("inf")
    assert found.kappa_apart == pytest.approx(3 / 2)


def test_the_onset_is_where_it_is_predicted(planted: Any) -> None:
    """To first order; exactly it is where η²‖b‖ is a tenth of the way to the midpoint."""
    space, (a, b), (H_a, H_b), (g_a, g_b) = planted
    found = bracket(space, a, b)
    measured, effects = order_onset(space, a, b, list(found.onset * np.geomspace(0.1, 10, 41)))
    assert measured == pytest.approx(found.onset, rel=0.2)
    assert len(effects) == 41
    second = (H_b @ g_a + H_a @ g_b) / 2
    exact = brentq(
        lambda eta: eta * found.length - 0.1 * float((g_a + g_b - eta * second).norm()), 0, 0.3
    )
    assert measured == pytest.approx(exact, rel=1e-3)


def test_interference_and_coefficients_of_quadratics(planted: Any) -> None:
    space, (a, _), (H, _), (g, _) = planted
    t, u = torch.randn(2, D, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    before, found = space.read(), interference(space, a, t, u, (0.1, 1.0))
    assert torch.equal(space.read(), before)
    assert found.measured == pytest.approx(found.predicted, abs=1e-8)
    assert found.predicted[1] == pytest.approx(float(t @ H @ u))
    own = float(t @ H @ t), float(u @ H @ u)
    assert found.normalised == pytest.approx(found.predicted[1] / np.sqrt(np.prod(own)))
    tau = t + u
    assert found.coefficient == pytest.approx(float(-(g @ tau) / (tau @ H @ tau)), abs=1e-8)
    span = torch.stack([t, u])
    exact = -torch.linalg.solve(span @ H @ span.T, span @ g)
    assert found.plane == pytest.approx(exact.tolist(), abs=1e-8)
    assert found.trusted  # a quadratic has no cubic part
    fine = interference(space, a, 1e-3 * t, 1e-3 * u, list(np.geomspace(0.01, 1000, 60)))
    assert fine.radius is not None
    assert fine.predicted_radius is not None


def test_a_radius_within_which_slopes_rule(planted: Any) -> None:
    space, (a, _), _, (g, _) = planted
    t = u = g / g.norm()
    found = interference(space, a, t, u, list(np.geomspace(1e-3, 1, 40)))
    assert found.radius == pytest.approx(found.predicted_radius, rel=0.1)


def test_a_cubic_loss_is_not_to_be_trusted_nor_one_that_bends_down() -> None:
    point = Point(torch.zeros(2, dtype=torch.float64))

    def cubic(_: None) -> Tensor:
        s = point.x.sum()
        return -s + s**2 / 4 + 5 * s**3

    a, b = torch.eye(2, dtype=torch.float64) / 2
    found = interference(ParameterSpace(point), Objective(loss=cubic, batches=[None]), a, b)
    assert found.coefficient == pytest.approx(2)
    assert not found.trusted

    def down(_: None) -> Tensor:
        return -point.x.square().sum()

    found = interference(ParameterSpace(point), Objective(loss=down, batches=[None]), a, b)
    assert (found.coefficient, found.plane, found.normalised) == (None, None, None)
    assert not found.trusted
    assert found.predicted_radius is None  # no slope


def test_bad_input_is_one_line(planted: Any) -> None:
    space, (a, b), _, _ = planted
    with pytest.raises(LoclinError, match="above 0 and one step or more, found eta=0"):
        order_effect(space, a, b, 0.0)
    with pytest.raises(LoclinError, match="growing step sizes"):
        order_onset(space, a, b, [0.2, 0.1])
    with pytest.raises(LoclinError, match="found one of no length"):
        interference(space, a, space.zeros(), space.read())
    with pytest.raises(LoclinError, match="growing scales above 0"):
        interference(space, a, space.read(), space.read(), (0.0, 1.0))
    endless = Objective(loss=lambda _: space.parameters[0].sum() * torch.inf, batches=[None])
    with pytest.raises(LoclinError, match="finite loss"):
        bracket(space, endless, b)


def test_what_is_public_is_here() -> None:
    import loclin

    for name in ("bracket", "interference", "order_onset"):
        assert getattr(loclin, name) is getattr(pairs, name)
