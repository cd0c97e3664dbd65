"""Lines and windows of functions whose windows are known in closed form, and of a network."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loclin.curvature import CurvatureOperator
from loclin.errors import LoclinError
from loclin.line import (
    Line,
    Profile,
    Window,
    additivity_error,
    check_finite,
    evaluation_noise,
    first_order_window,
    line_along,
    losses_along,
    predicted_additivity,
    predicted_window,
    ray,
    relative_error,
    signed_grid,
)
from loclin.models import Problem, load, twice_differentiable
from loclin.models.evaluation import EvalSet
from loclin.options import LoadOptions
from loclin.parameters import ParameterSpace

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

    def tallies(self) -> tuple[np.ndarray, np.ndarray]:
        """As three groups of 1, 2 and 3 items, each of the same mean."""
        counts = np.array([1.0, 2.0, 3.0])
        return counts * float(self.forward().detach()), counts


def changes(module: Quadratic, direction: Tensor, steps: np.ndarray) -> np.ndarray:
    sums, counts = losses_along(ParameterSpace(module), module.tallies, direction, [0.0, *steps])
    means = sums.sum(1) / counts.sum()
    return means[1:] - means[0]


def direction_of(module: Quadratic, seed: int = 5) -> Tensor:
    size = len(module.start)
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ray(module.start, drawn).to(module.x.dtype)


def slope_and_curvature(module: Quadratic, w: Tensor) -> tuple[float, float]:
    return float(module.slope @ w.double()), float(w.double() @ module.hessian @ w.double())


def profile_of(
    steps: np.ndarray, changes: np.ndarray, slope: float, curvature: float, **more: object
) -> Profile:
    """A profile without scores, in float32 unless another dtype is given."""
    fields = {"loss": 1.0, "score": math.nan, "dtype": torch.float32} | more
    scores = np.full(len(steps), math.nan)
    return Profile(
        steps=steps,
        changes=changes,
        scores=scores,
        slope=slope,
        curvature=curvature,
        **fields,  # type: ignore[arg-type]
    )


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
    steps = np.sort(sign * GRID)
    errors = relative_error(changes(module, w, steps), steps, slope)
    window = first_order_window(steps, errors, tolerance, 1e-15, sign=sign)
    assert window.size == pytest.approx(expected, rel=1e-5)
    assert not window.open
    assert window.bracket is not None
    assert window.bracket[0] <= expected <= window.bracket[1]
    assert first_order_window(steps, errors, tolerance, 1e-15, sign=-sign).size is None


def test_a_step_is_relative_to_the_length_of_the_point() -> None:
    point, direction = torch.tensor([3.0, 4.0]), torch.tensor([0.2, 0.0])
    assert torch.allclose(ray(point, direction), torch.tensor([5.0, 0.0]))
    assert torch.allclose(ray(10 * point, direction), 10 * ray(point, 7 * direction))
    module, moved = Quadratic(SPECTRA["flat"]), list[Tensor]()

    def watched() -> tuple[np.ndarray, np.ndarray]:
        moved.append(module.x.detach().clone())
        return module.tallies()

    losses_along(ParameterSpace(module), watched, direction_of(module), [0.25])
    assert float((moved[0] - module.start).norm() / module.start.norm()) == pytest.approx(0.25)


def test_the_two_sides_of_a_cubic_have_the_windows_of_its_roots() -> None:
    """ΔL = ε + ε² + 10ε³: the error is |ε + 10ε²|, which passes τ at (±√(1 + 40τ) ∓ 1)/20 where it
    has one sign.
    """
    tolerance, fine = 0.3, np.logspace(-6, 0, 6001)
    sides = {
        1: (math.sqrt(1 + 40 * tolerance) - 1) / 20,
        -1: (math.sqrt(1 + 40 * tolerance) + 1) / 20,
    }  # at −ε: |−ε + 10ε²| dips to zero at ε = 0.1, and stays within τ up to the larger root
    steps = np.concatenate([-fine[::-1], fine])
    errors = relative_error(steps + steps**2 + 10 * steps**3, steps, 1.0)
    for sign, expected in sides.items():
        size = first_order_window(steps, errors, tolerance, 0.0, sign=sign).size
        assert size == pytest.approx(expected, rel=1e-5)


def test_the_first_of_several_crossings_counts() -> None:
    steps = np.array([0.01, 0.1, 1.0, 10.0, 100.0])
    window = first_order_window(steps, np.array([0.01, 0.09, 0.5, 0.05, 0.9]), 0.1, 0.0)
    assert window.bracket == (0.1, 1.0)
    assert 0.1 < window.size < 0.2  # type: ignore[operator]


def test_an_open_window_is_told_from_a_measured_one_and_from_none() -> None:
    steps = np.array([0.01, 0.1, 1.0])
    fine, never = np.array([0.0, 0.001, 0.01]), np.array([0.5, 0.6, 0.7])
    none = Window(size=None, open=False)
    assert first_order_window(steps, fine, 0.1, 0.0) == Window(size=1.0, open=True)
    assert first_order_window(steps, never, 0.1, 0.0) == none
    assert first_order_window(steps, fine, 0.1, 1.0) == none
    assert first_order_window(steps, fine, 0.1, math.inf) == none
    assert first_order_window(steps, fine, 0.1, 0.0, sign=-1) == none
    drowned = first_order_window(steps, np.array([9.0, 0.01, 0.5]), 0.1, 0.002)
    assert drowned.bracket == (0.1, 1.0)  # 0.01 is round-off's
    assert first_order_window(steps, np.array([0.01, np.inf, np.inf]), 0.1, 0.0).size == 0.01
    assert first_order_window(steps, np.array([0.0, 0.1, 0.2]), 0.1, 0.0).size == pytest.approx(0.1)


def test_no_window_lies_below_the_unit_round_off_of_the_weights() -> None:
    steps, errors = np.array([1e-9, 1e-7, 1e-3]), np.array([0.9, 0.01, 0.01])
    # the weights cannot move by 1e-9 of themselves
    assert first_order_window(steps, errors, 0.1, 1e-12).size is None
    window = first_order_window(steps, errors, 0.1, 1e-12, unit=2.0**-24)
    assert window == Window(size=1e-3, open=True)
    profile = profile_of(steps, steps, 1.0, 0.0, loss=1e-9)
    assert profile.limit(0.1) == profile.unit == 2.0**-24


@pytest.mark.parametrize("order", [[0.1, 0.01], [0.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
def test_steps_out_of_order_are_refused(order: list[float]) -> None:
    with pytest.raises(LoclinError, match="steps in rising order, none 0"):
        first_order_window(np.array(order), np.zeros(2), 0.1, 0.0)


def test_round_off_begins_where_it_is_said_to() -> None:
    """The loss rounded to float32: the error leaves the quadratic's line near the floor, and
    nowhere above the limit.
    """
    module = Quadratic(SPECTRA["flat"], constant=6.7)
    w = direction_of(module)
    slope, curvature = slope_and_curvature(module, w)
    fine = np.logspace(-10, -1, 400)
    steps = np.concatenate([-fine[::-1], fine])
    rounded = np.asarray(changes(module, w, steps) + 6.7, dtype=np.float32).astype(float)
    profile = profile_of(steps, rounded - float(np.float32(6.7)), slope, curvature, loss=6.7)
    floor = 2.0**-24 * 6.7 / abs(slope)
    errors = profile.errors[steps > 0]
    assert errors[-1] < 0.9
    drowned = fine[np.flatnonzero(errors > 0.9)[-1]]
    assert floor / 4 < drowned < 4 * floor
    assert floor <= profile.floor < 4 * floor
    plus, minus = profile.changes[steps > 0], profile.changes[steps < 0][::-1]
    straight = (fine > floor) & (fine < 1e-5)
    spread = evaluation_noise(plus[straight], minus[straight], fine[straight], curvature)
    # the scatter of one rounding, h/√12 with h = 2⁻²¹, is 0.34 of the bound
    assert 0.05 < spread / (2**-24 * 6.7) < 1
    expected = predicted_window(slope, curvature, 0.1)
    assert profile.window(1, 0.1).size == pytest.approx(expected, rel=0.02)
    assert profile.predicted(0.1) == expected
    assert math.isinf(replace(profile, slope=0.0).floor)


def test_planted_scatter_is_measured() -> None:
    rng = np.random.default_rng(0)
    steps = np.logspace(-6, -4, 4000)
    plus, minus = (s * steps + 30 * steps**2 + rng.normal(0, 1e-7, 4000) for s in (2.0, -2.0))
    base = 1e-7 * math.sqrt(2 / 6)  # the loss at zero is exact here: two errors of the three
    assert evaluation_noise(plus, minus, steps, 60.0) == pytest.approx(base, rel=0.05)
    plus[-1000:] += 1e-2 * steps[-1000:] ** 1.5  # a quarter of the steps bend it further
    assert evaluation_noise(plus, minus, steps, 60.0) < 2 * base
    assert evaluation_noise(np.array([]), np.array([]), np.array([]), 60.0) == 0
    assert evaluation_noise(np.array([np.nan]), np.array([0.0]), np.array([1.0]), 60.0) == 0


def test_a_slope_of_zero_has_no_window_and_no_curvature_an_infinite_one() -> None:
    errors = relative_error(np.array([1e-8, 1e-2]), np.array([1e-4, 1e-1]), 0.0)
    assert np.isinf(errors).all()
    assert predicted_window(0.0, 1.0, 0.1) == 0
    assert math.isinf(predicted_window(1.0, 0.0, 0.1))
    assert math.isinf(predicted_additivity((1.0, 1.0), 0.0, 0.1))


def test_two_steps_at_once_miss_the_sum_of_their_effects_by_mixed_curvature() -> None:
    module = Quadratic(SPECTRA["indefinite"])
    v, w = (direction_of(module, seed) for seed in (5, 6))
    both, first, second = (changes(module, d, GRID) for d in (v + w, v, w))
    mixed = float(v @ module.hessian @ w)
    off = additivity_error(both, first, second) * (np.abs(first) + np.abs(second))
    assert np.allclose(off, np.abs(GRID**2 * mixed), rtol=1e-6, atol=1e-14)
    slopes = tuple(slope_and_curvature(module, d)[0] for d in (v, w))
    near = np.logspace(-6, -3, 60)
    small = additivity_error(*(changes(module, d, near) for d in (v + w, v, w)))
    size = first_order_window(near, small, 1e-4, 0.0).size
    assert size == pytest.approx(predicted_additivity(slopes, mixed, 1e-4), rel=1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_point_is_restored_bit_for_bit_even_when_measuring_raises(dtype: torch.dtype) -> None:
    module = Quadratic(SPECTRA["steep"], dtype=dtype)
    space, seen = ParameterSpace(module), list[float]()
    start, w = space.read(), direction_of(module)

    def failing() -> tuple[np.ndarray, np.ndarray]:
        seen.append(float(module.forward().detach()))
        if len(seen) > 2:
            raise RuntimeError
        return module.tallies()

    with pytest.raises(RuntimeError):
        losses_along(space, failing, w, [0.1, -0.3, 2.0])
    assert len(set(seen)) == 3
    assert torch.equal(space.read(), start)
    losses_along(space, module.tallies, w, [0.1, -0.3, 2.0])
    assert torch.equal(space.read(), start)


def test_groups_add_up_to_the_whole() -> None:
    module, steps = Quadratic(SPECTRA["flat"]), [0.0, 1e-3]
    space, w = ParameterSpace(module), direction_of(module)
    sums, counts = losses_along(space, module.tallies, w, steps)
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
        losses_along(ParameterSpace(module), module.tallies, direction_of(module), [])


@pytest.fixture(scope="module")
def precise() -> Problem:
    """The small sequence model in float64."""
    return load(LoadOptions(model="sequences-small", dtype="float64"))


def line_of(problem: Problem, eval_set: EvalSet, direction: Tensor, steps: list[float]) -> Line:
    space = ParameterSpace(problem.model)
    w, folds = ray(space.read(), direction), [list(eval_set.fold(i)) for i in range(eval_set.count)]
    slopes = np.array([float(space.gradient(eval_set.loss, fold) @ w) for fold in folds])
    with twice_differentiable(problem.model):
        products = [CurvatureOperator(space, eval_set.loss, fold) @ w for fold in folds]
    curvatures = np.array([float(w @ product) for product in products])
    return line_along(space, eval_set.tallies, w, steps, slopes=slopes, curvatures=curvatures)


def test_leaving_a_fold_out_is_an_eval_set_of_the_others(precise: Problem) -> None:
    examples = precise.examples["test"][precise.tasks[0]][:12]
    direction = ParameterSpace(precise.model).noise(seed=1).double()
    whole = EvalSet.of(precise, examples, folds=3, at_once=2)
    steps = [-1e-2, 0.0, 1e-3, 1e-2]
    without = line_of(precise, whole, direction, steps).profile(without=1).on(steps)
    others = [e for e, fold in zip(examples, whole.folds, strict=True) if fold != 1]
    alone = line_of(precise, EvalSet.of(precise, others), direction, steps).profile().on(steps)
    for name in ("changes", "scores", "loss", "score", "slope", "curvature"):
        assert getattr(without, name) == pytest.approx(getattr(alone, name), rel=1e-9), name
    assert without.steps.tolist() == [-1e-2, 1e-3, 1e-2]
    assert without.at(1e-3) == (without.changes[1], without.errors[1], without.scores[1])


def test_the_window_of_a_network_is_what_its_curvature_predicts(precise: Problem) -> None:
    space = ParameterSpace(precise.model)
    before = space.read()
    eval_set = EvalSet.of(precise, precise.examples["test"]["halves"][:16])
    line = line_of(precise, eval_set, space.noise(seed=2).double(), signed_grid(1e-8, 1e-1, 2))
    profile = line.profile()
    assert torch.equal(space.read(), before)
    for sign in (1, -1):
        window = profile.window(sign, 1e-2)
        assert window.size == pytest.approx(profile.predicted(1e-2), rel=0.05)
    assert profile.limit(1e-2) < 1e-8
    assert profile.errors[np.abs(profile.steps) < 1e-7].max() < 1e-5
    assert 0 < profile.noise < 1e-13


def test_float32_has_its_round_off_where_the_loss_scatters(
    precise: Problem, trained: Problem
) -> None:
    """Below the limit the float32 line is noise; above it, it is that of float64."""
    examples = trained.examples["test"]["halves"][:16]
    direction = ParameterSpace(trained.model).noise(seed=2)
    steps = signed_grid(1e-8, 1e-2, 3)
    rough = line_of(trained, EvalSet.of(trained, examples), direction, steps).profile().on(steps)
    fine = line_of(precise, EvalSet.of(precise, examples), direction.double(), steps)
    exact = fine.profile().on(steps)
    assert rough.floor > 1e4 * exact.floor
    apart = np.abs(rough.changes - exact.changes)
    assert np.median(apart[np.abs(rough.steps) < 1e-5]) < rough.floor * abs(rough.slope)
    above = np.abs(rough.steps) > 10 * rough.floor
    assert above.any()
    assert (apart[above] < 0.3 * np.abs(exact.slope * exact.steps[above])).all()


@pytest.mark.parametrize("steps", [signed_grid(1e-2, 1.0, 1), signed_grid(1e-8, 1.0, 3)])
def test_the_scatter_is_measured_however_coarse_the_grid(
    trained: Problem, steps: list[float]
) -> None:
    examples = trained.examples["test"]["halves"][:16]
    eval_set, direction = EvalSet.of(trained, examples), ParameterSpace(trained.model).noise(seed=2)
    line = line_of(trained, eval_set, direction, steps)
    further = line.profile().on(steps).further_for_scatter()
    least, pairs = 30 * 2.0**-24, {abs(s) for s in further}
    assert set(line.steps) == {*steps, *further}
    assert all(-s in further for s in further)
    assert len(pairs) <= 5
    most = max(1e-3 * line.profile().predicted(1.0), 4 * least)
    assert all(0.99 * least <= s <= 1.01 * most for s in pairs)
    assert len(pairs) == 5 or min(abs(s) for s in steps if s) < 1e-5
    profile = line.profile()
    assert 0.1 < profile.noise / (2.0**-24 * profile.loss) < 100  # some roundings of the loss
    assert profile.further_for_scatter() == []
    assert profile.limit(0.1) == max(profile.floor / 0.1, 2.0**-24)
    assert profile.limit(1e9) == 2.0**-24


def test_further_steps_join_in_order_and_none_is_asked_twice(precise: Problem) -> None:
    eval_set = EvalSet.of(precise, precise.examples["test"]["halves"][:4], folds=2)
    direction = ParameterSpace(precise.model).noise(seed=2).double()
    line = line_of(precise, eval_set, direction, [-1e-2, 0.0, 1e-2])
    inner = line_of(precise, eval_set, direction, [-1e-3, 0.0, 1e-3]).profile()
    more = line.further([1e-2, 1e-3, 1e-3, -1e-3])
    assert (np.diff(more.steps) > 0).all()
    assert len(more.steps) == len(line.steps) + 2
    assert more.further([1e-3]) is more
    for step in (-1e-3, 1e-3):
        assert more.profile().at(step)[0] == pytest.approx(inner.at(step)[0])


def test_a_loss_that_is_not_finite_at_the_point_is_refused(trained: Problem) -> None:
    space = ParameterSpace(trained.model)
    eval_set = EvalSet.of(trained, trained.examples["test"]["halves"][:4])
    direction, one = space.noise(seed=0), np.ones(1)
    with space.restored():
        space.write(torch.full_like(space.read(), torch.nan))
        with pytest.raises(
            LoclinError, match="a finite loss at the point itself, found nan: check the model, the"
        ):
            line_along(space, eval_set.tallies, direction, [0.0], slopes=one, curvatures=one)
    check_finite(*eval_set.tallies(), 1)
