"""Windows of functions whose windows are known in closed form."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loclin.errors import LoclinError
from loclin.parameters import ParameterSpace
from loclin.window import (
    Window,
    additivity_error,
    along,
    bisected,
    evaluation_noise,
    first_order_window,
    losses_along,
    predicted_additivity,
    predicted_window,
    ray,
    relative_error,
    round_off,
)

GRID = np.logspace(-6, 1, 22)
SPECTRA = {
    "flat": np.full(12, 3.0),
    "steep": np.logspace(0, 5, 12),
    "indefinite": np.linspace(-7, 9, 12),
}


class Quadratic(nn.Module):
    """L(x) = c + gᵀ(x − x₀) + ½(x − x₀)ᵀH(x − x₀), H of a chosen spectrum in a random frame,
    standing at x₀.
    """

    def __init__(
        self, spectrum: np.ndarray, *, constant: float = 2.0, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        size = len(spectrum)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        frame, _ = torch.linalg.qr(drawn(size, size))
        self.hessian = frame @ torch.diag(torch.from_numpy(spectrum)) @ frame.T
        self.start, self.slope, self.constant = drawn(size), drawn(size), constant
        self.x = nn.Parameter(self.start.clone().to(dtype))

    def forward(self) -> Tensor:
        away = self.x.double() - self.start.to(self.x.dtype).double()
        return self.constant + self.slope @ away + 0.5 * away @ self.hessian @ away

    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """As three groups of 1, 2 and 3 items, each of the same mean."""
        counts = np.array([1.0, 2.0, 3.0])
        return counts * float(self.forward().detach()), counts


def changes(module: Quadratic, direction: Tensor, steps: np.ndarray) -> np.ndarray:
    sums, counts = losses_along(ParameterSpace(module), module.groups, direction, [0.0, *steps])
    means = sums.sum(1) / counts.sum()
    return means[1:] - means[0]


def direction_of(module: Quadratic, seed: int = 5) -> Tensor:
    size = len(module.start)
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ray(module.start, drawn).to(module.x.dtype)


def slope_and_curvature(module: Quadratic, w: Tensor) -> tuple[float, float]:
    return float(module.slope @ w.double()), float(w.double() @ module.hessian @ w.double())


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("tolerance", [0.1, 0.5])
def test_the_window_of_a_quadratic_is_what_its_curvature_predicts(
    name: str, sign: int, tolerance: float
) -> None:
    module = Quadratic(SPECTRA[name])
    w = direction_of(module)
    slope, curvature = slope_and_curvature(module, w)
    expected = predicted_window(slope, curvature, tolerance)
    found = first_order_window(
        GRID, relative_error(changes(module, w, sign * GRID), sign * GRID, slope), tolerance, 1e-15
    )
    assert found.size == pytest.approx(expected, rel=1e-5)
    assert not found.open
    assert found.bracket is not None
    assert found.bracket[0] <= expected <= found.bracket[1]

    def error(step: float) -> float:
        return float(
            relative_error(
                changes(module, w, np.array([sign * step])), np.array([sign * step]), slope
            )[0]
        )

    assert bisected(error, found.bracket, tolerance, precision=1e-7) == pytest.approx(
        expected, rel=1e-5
    )


def test_a_step_is_relative_to_the_length_of_the_point() -> None:
    point, direction = torch.tensor([3.0, 4.0]), torch.tensor([0.2, 0.0])
    assert torch.allclose(ray(point, direction), torch.tensor([5.0, 0.0]))
    assert torch.allclose(ray(10 * point, direction), 10 * ray(point, 7 * direction))
    module = Quadratic(SPECTRA["flat"])
    with torch.no_grad():
        there = along(
            ParameterSpace(module), direction_of(module), [0.25], lambda: module.x.clone()
        )
        (moved,) = there
    assert float((moved - module.start).norm() / module.start.norm()) == pytest.approx(0.25)


def test_the_two_sides_of_a_cubic_have_the_windows_of_its_roots() -> None:
    """ΔL = ε + ε² + 10ε³: the error is |ε + 10ε²|, which passes τ at (±√(1 + 40τ) ∓ 1)/20 where it
    has one sign.
    """
    tolerance = 0.3
    fine = np.logspace(-6, 0, 6001)
    sides = {
        1: (math.sqrt(1 + 40 * tolerance) - 1) / 20,
        -1: (math.sqrt(1 + 40 * tolerance) + 1) / 20,
    }  # at −ε: |−ε + 10ε²| dips to nought at ε = 0.1, and stays within τ up to the larger root
    for sign, expected in sides.items():
        steps = sign * fine
        found = first_order_window(
            fine, relative_error(steps + steps**2 + 10 * steps**3, steps, 1.0), tolerance, 0.0
        ).size
        assert found == pytest.approx(expected, rel=1e-5)


def test_the_first_of_several_crossings_counts() -> None:
    steps = np.array([0.01, 0.1, 1.0, 10.0, 100.0])
    found = first_order_window(steps, np.array([0.01, 0.09, 0.5, 0.05, 0.9]), 0.1, 0.0)
    assert found.bracket == (0.1, 1.0)
    assert 0.1 < found.size < 0.2  # type: ignore[operator]


def test_an_open_window_is_told_from_a_measured_one_and_from_none() -> None:
    steps = np.array([0.01, 0.1, 1.0])
    fine, never = np.array([0.0, 0.001, 0.01]), np.array([0.5, 0.6, 0.7])
    assert first_order_window(steps, fine, 0.1, 0.0) == Window(size=1.0, open=True, limit=0.0)
    assert first_order_window(steps, never, 0.1, 0.0) == Window(size=None, open=False, limit=0.0)
    assert first_order_window(steps, fine, 0.1, 1.0) == Window(size=None, open=False, limit=10.0)
    assert first_order_window(steps, fine, 0.1, math.inf).size is None
    assert first_order_window(steps, np.array([9.0, 0.01, 0.5]), 0.1, 0.002).bracket == (
        0.1,
        1.0,
    )  # 0.01 is round-off's
    assert first_order_window(steps, np.array([0.01, np.inf, np.inf]), 0.1, 0.0).size == 0.01
    assert first_order_window(steps, np.array([0.0, 0.1, 0.2]), 0.1, 0.0).size == pytest.approx(0.1)


def test_no_window_lies_below_the_unit_round_off_of_the_weights() -> None:
    steps, errors = np.array([1e-9, 1e-7, 1e-3]), np.array([0.9, 0.01, 0.01])
    assert (
        first_order_window(steps, errors, 0.1, 1e-12).size is None
    )  # the weights cannot move by 1e-9 of themselves
    found = first_order_window(steps, errors, 0.1, 1e-12, unit=2.0**-24)
    assert found == Window(size=1e-3, open=True, limit=2.0**-24)
    assert first_order_window(steps, errors, 0.1, 1e-5, unit=2.0**-24).limit == pytest.approx(1e-4)


@pytest.mark.parametrize("order", [[0.1, 0.01], [0.0, 1.0], [-1.0, 1.0], [1.0, 1.0]])
def test_steps_out_of_order_are_refused(order: list[float]) -> None:
    with pytest.raises(LoclinError, match="steps above 0 in rising order"):
        first_order_window(np.array(order), np.zeros(2), 0.1, 0.0)


def test_round_off_begins_where_it_is_said_to() -> None:
    """The loss rounded to float32: the error leaves the quadratic's line near the floor, and
    nowhere above the limit.
    """
    module = Quadratic(SPECTRA["flat"], constant=6.7)
    w = direction_of(module)
    slope, curvature = slope_and_curvature(module, w)
    steps = np.logspace(-10, -1, 400)
    base = np.float32(6.7)

    def rounded(sign: int) -> np.ndarray:
        return np.asarray(changes(module, w, sign * steps) + 6.7, dtype=np.float32).astype(
            float
        ) - float(base)

    plus, minus = rounded(1), rounded(-1)
    floor = round_off(6.7, slope, torch.float32)
    errors = relative_error(plus, steps, slope)
    drowned = steps[np.flatnonzero(errors > 0.9)[-1]] if errors[-1] < 0.9 else math.nan
    assert floor / 4 < drowned < 4 * floor
    straight = (steps > floor) & (steps < 1e-5)
    spread = evaluation_noise(plus[straight], minus[straight], steps[straight], curvature)
    assert (
        0.05 < spread / (2**-24 * 6.7) < 1
    )  # the scatter of one rounding, h/√12 with h = 2⁻²¹, is 0.34 of the bound
    found = first_order_window(
        steps, errors, 0.1, round_off(6.7, slope, torch.float32, noise=spread)
    )
    assert found.size == pytest.approx(predicted_window(slope, curvature, 0.1), rel=0.02)
    assert math.isinf(round_off(6.7, 0.0, torch.float32))


def test_planted_scatter_is_measured() -> None:
    rng = np.random.default_rng(0)
    steps = np.logspace(-6, -4, 4000)
    plus, minus = (s * steps + 30 * steps**2 + rng.normal(0, 1e-7, 4000) for s in (2.0, -2.0))
    base = 1e-7 * math.sqrt(2 / 6)  # the loss at nought is exact here: two errors of the three
    assert evaluation_noise(plus, minus, steps, 60.0) == pytest.approx(base, rel=0.05)
    plus[-1000:] += 1e-2 * steps[-1000:] ** 1.5  # a quarter of the steps bend it further
    assert evaluation_noise(plus, minus, steps, 60.0) < 2 * base
    assert evaluation_noise(np.array([]), np.array([]), np.array([]), 60.0) == 0
    assert evaluation_noise(np.array([np.nan]), np.array([0.0]), np.array([1.0]), 60.0) == 0


def test_a_slope_of_nought_has_no_window_and_no_curvature_an_infinite_one() -> None:
    errors = relative_error(np.array([1e-8, 1e-2]), np.array([1e-4, 1e-1]), 0.0)
    assert np.isinf(errors).all()
    assert predicted_window(0.0, 1.0, 0.1) == 0
    assert math.isinf(predicted_window(1.0, 0.0, 0.1))
    assert math.isinf(predicted_additivity((1.0, 1.0), 0.0, 0.1))


def test_the_sum_of_two_directions_on_a_quadratic_misses_the_sum_of_effects_by_their_mixed_curvature() -> (
    None
):
    module = Quadratic(SPECTRA["indefinite"])
    v, w = (direction_of(module, seed) for seed in (5, 6))
    both, first, second = (changes(module, d, GRID) for d in (v + w, v, w))
    mixed = float(v @ module.hessian @ w)
    errors = additivity_error(both, first, second)
    assert np.allclose(
        errors * (np.abs(first) + np.abs(second)), np.abs(GRID**2 * mixed), rtol=1e-6, atol=1e-14
    )
    slopes = tuple(slope_and_curvature(module, d)[0] for d in (v, w))
    near = np.logspace(-6, -3, 60)
    small = additivity_error(*(changes(module, d, near) for d in (v + w, v, w)))
    found = first_order_window(near, small, 1e-4, 0.0).size
    assert found == pytest.approx(predicted_additivity(slopes, mixed, 1e-4), rel=1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_point_is_restored_bit_for_bit_even_when_measuring_raises(dtype: torch.dtype) -> None:
    module = Quadratic(SPECTRA["steep"], dtype=dtype)
    space = ParameterSpace(module)
    start = space.read()

    def failing(after: int) -> Callable[[], float]:
        seen: list[Tensor] = []

        def measure() -> float:
            seen.append(space.read())
            if len(seen) > after:
                raise RuntimeError
            return 0.0

        return measure

    with pytest.raises(RuntimeError):
        list(along(space, direction_of(module), [0.1, -0.3, 2.0], failing(2)))
    assert torch.equal(space.read(), start)
    assert list(along(space, direction_of(module), [0.1, -0.3, 2.0], failing(9))) == [0.0] * 3
    assert torch.equal(space.read(), start)
    left = along(space, direction_of(module), [0.1, 0.2], failing(9))
    next(left)
    left.close()
    assert torch.equal(space.read(), start)


def test_groups_add_up_to_the_whole() -> None:
    module = Quadratic(SPECTRA["flat"])
    sums, counts = losses_along(
        ParameterSpace(module), module.groups, direction_of(module), [0.0, 1e-3]
    )
    assert sums.shape == (2, 3)
    assert counts.tolist() == [1, 2, 3]
    assert np.allclose(sums / counts, (sums.sum(1) / counts.sum())[:, None])


def test_directions_and_steps_that_lead_nowhere_are_refused() -> None:
    point = torch.ones(3)
    with pytest.raises(LoclinError, match="a direction that is not zero, found zeros"):
        ray(point, torch.zeros(3))
    with pytest.raises(LoclinError, match="a finite direction, found NaN or infinity"):
        ray(point, torch.tensor([1.0, math.inf, 0.0]))
    with pytest.raises(LoclinError, match="a point that is not zero, found zeros"):
        ray(torch.zeros(3), point)
    module = Quadratic(SPECTRA["flat"])
    with pytest.raises(LoclinError, match="at least one step, found none"):
        losses_along(ParameterSpace(module), module.groups, direction_of(module), [])
    with pytest.raises(LoclinError, match=r"a bracket 0 < low < high, found \(0\.0, 1\.0\)"):
        bisected(lambda step: step, (0.0, 1.0), 0.1)
