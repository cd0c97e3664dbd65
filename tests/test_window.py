"""Linear windows of planted lines, of quadratics in closed form, and of a network's gradient."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from loclin.curvature import NoSecondDerivative
from loclin.errors import LoclinError
from loclin.line import Line, signed_grid
from loclin.models import Problem, twice_differentiable
from loclin.models.evaluation import EvalSet
from loclin.parameters import ParameterSpace
from loclin.stats import over_runs
from loclin.window import LinearWindow, _closed_in, _effect, linear_window, over_groups


def planted(
    slopes: Sequence[float],
    curvatures: Sequence[float],
    steps: Sequence[float],
    *,
    dtype: torch.dtype = torch.float64,
) -> Line:
    """A line of parabolas, one a group, of ten items each, with a score of 0.7."""
    s, c = np.array(slopes), np.array(curvatures)

    def measure(at: Sequence[float]) -> np.ndarray:
        e = np.array(at)[:, None]
        losses = 10 * (1.0 + s * e + 0.5 * c * e**2)
        return np.concatenate([losses, np.full_like(losses, 7.0)], axis=1)

    return Line(
        steps=np.array(steps),
        sums=measure(steps),
        counts=np.full(2 * len(s), 10.0),
        slopes=s,
        curvatures=c,
        dtype=dtype,
        measure=measure,
    )


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 7)
    estimate = over_groups(planted(values, values, [-1.0, 0.0, 1.0]), lambda p: p.slope)
    expected = over_runs(values)
    assert estimate is not None
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))
    assert estimate.value == pytest.approx(expected.value)


def test_numbers_that_are_not_defined_have_no_estimate_or_no_interval() -> None:
    line = planted([1.0, 2.0], [1.0, 1.0], [-1.0, 0.0, 1.0])
    assert over_groups(line, lambda p: None) is None
    assert over_groups(line, lambda p: -1.0, scale="log") is None
    half = over_groups(line, lambda p: p.slope if p.slope != 2.0 else None)
    assert half is not None
    assert (half.value, half.low, half.high, half.n) == (1.5, -math.inf, math.inf, 1)
    alone = over_groups(planted([2.0], [1.0], [-1.0, 0.0, 1.0]), lambda p: p.slope, scale="log")
    assert alone is not None
    assert (alone.value, alone.low) == (pytest.approx(2.0), -math.inf)


@pytest.mark.parametrize("right", [[0, 0, 0], [10, 10, 9], [2, 7, 5]])
def test_no_interval_of_a_score_or_an_error_leaves_its_range(right: list[float]) -> None:
    steps = [-1.0, 0.0, 1.0]
    line = planted([1.0, 2.0, 5.0], [1.0, 9.0, 2.0], steps)
    sums = np.hstack([line.sums[:, :3], np.tile(np.array(right, float), (3, 1))])
    effect = _effect(replace(line, sums=sums), 1.0)
    assert effect.score is not None
    assert effect.error is not None
    assert 0 <= effect.score.low <= effect.score.value <= effect.score.high <= 1
    assert effect.score.value == pytest.approx(sum(right) / 30)
    assert 0 < effect.error.low < effect.error.value < effect.error.high
    assert effect.error.value == pytest.approx(0.75)


def test_intervals_over_groups_cover_the_planted_window() -> None:
    """Five groups, as many as the command takes, their slopes and curvatures scattered about
    planted ones.
    """
    rng, truth, covered = np.random.default_rng(0), 2 * 0.1 * 2.0 / 30.0, 0
    for _ in range(300):
        slopes, curvatures = 2.0 + 0.3 * rng.standard_normal(5), 30.0 + 4 * rng.standard_normal(5)
        line = planted(slopes, curvatures, signed_grid(1e-4, 1.0, 2))
        size = over_groups(line, lambda p: p.window(1, 0.1).size, scale="log")
        assert size is not None
        covered += size.low <= truth <= size.high
    assert 0.92 < covered / 300 < 0.98


@pytest.mark.parametrize("slopes", [(2.0, 2.0, 2.0), (-1.0, -3.0, -2.0)])
def test_an_edge_is_closed_in_on(slopes: tuple[float, ...]) -> None:
    line = planted(slopes, [30.0] * 3, signed_grid(1e-6, 1.0, 1))
    close = _closed_in(line, 0.1, 1e-4)
    for sign in (1, -1):
        window = close.profile().window(sign, 0.1)
        assert window.size == pytest.approx(0.2 * 2.0 / 30.0, rel=1e-4)
        assert window.bracket is not None
        assert window.bracket[1] / window.bracket[0] <= 1 + 1e-4
    assert len(close.steps) < len(line.steps) + 60


def test_steps_below_the_grid_are_tried_until_round_off() -> None:
    line = planted([1e-4] * 3, [200.0] * 3, signed_grid(1e-5, 1.0, 1))
    assert line.profile().window(1, 0.1).size is None
    close = _closed_in(line, 0.1, 1e-3).profile()
    assert close.window(1, 0.1).size == pytest.approx(0.2 * 1e-4 / 200, rel=1e-2)
    rough = planted([1e-4] * 3, [200.0] * 3, signed_grid(1e-5, 1.0, 1), dtype=torch.float32)
    profile = _closed_in(rough, 0.1, 1e-3).profile()
    assert profile.window(1, 0.1).size is None
    assert profile.limit(0.1) == pytest.approx(2.0**-24 / 1e-4 / 0.1, rel=0.2)


class Bowls:
    """Batches whose losses are quadratics ½c‖x − a‖² about one point a, each of its own c."""

    def __init__(self, *, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)
        self.module = torch.nn.Linear(9, 1, bias=False).to(dtype)
        torch.nn.init.normal_(self.module.weight, generator=generator)
        self.centre = torch.randn(9, generator=generator, dtype=torch.float64).to(dtype)
        self.space = ParameterSpace(self.module)

    def loss(self, batch: tuple[float, int]) -> tuple[Tensor, int]:
        bend, items = batch
        away = self.module.weight[0] - self.centre
        return items * (1.0 + 0.5 * bend * away @ away), items

    def window(self, batches: Sequence[tuple[float, int]], **options: object) -> LinearWindow:
        """Towards the centre, as far as it is: L = 1 + ½c(1 − λ)²‖a − x‖², whatever c."""
        direction = self.centre - self.space.read()
        return linear_window(self.space, self.loss, batches, direction, **options)  # type: ignore[arg-type]


def test_the_window_towards_the_centre_of_a_bowl_is_twice_the_tolerance() -> None:
    """ΔL/c‖a − x‖² = −λ + ½λ²: the error is λ/2, forward and backward, in every group."""
    bowls = Bowls()
    window = bowls.window([(1.0, 3), (2.0, 1), (5.0, 2)], tolerance=0.05, whole=True)
    weights = float(bowls.space.read().norm())
    for reach in (window.forward, window.backward):
        assert reach.size is not None
        assert reach.edge is not None
        for unit, factor in window.units.items():
            e, expected = reach.size[unit], 0.1 * factor / window.units["multiple"]
            assert (e.value, e.low, e.high) == pytest.approx((expected,) * 3, rel=1e-6)
        assert reach.size["length"].value == pytest.approx(reach.size["relative"].value * weights)
        assert reach.size["length"].value == pytest.approx(0.1 * window.length)
        assert reach.edge.error is not None
        assert reach.edge.error.value == pytest.approx(0.05, rel=1e-6)
        assert reach.edge.score is None
        assert not reach.open
    assert window.predicted is not None
    assert window.predicted["multiple"].value == pytest.approx(0.1)
    assert window.whole is not None
    assert window.whole.change is not None
    assert window.whole.change.value == pytest.approx(window.whole.predicted / 2)
    assert window.whole.step == pytest.approx(window.length / weights)
    assert window.inside is False
    assert window.limit < 1e-13
    assert (window.method, window.refused) == ("double backward", "")


def test_the_vector_is_inside_or_outside_or_nobody_knows() -> None:
    batches, short = [(1.0, 1), (1.0, 1)], signed_grid(1e-6, 1e-4, 1)
    assert Bowls().window(batches, tolerance=0.6, whole=True).inside is True
    assert Bowls().window(batches, tolerance=0.4, whole=True).inside is False
    assert Bowls().window(batches, tolerance=0.4).inside is None
    assert Bowls().window(batches, tolerance=0.4).whole is None
    open_one = Bowls().window(batches, steps=short, tolerance=0.1)
    assert open_one.forward.open
    assert open_one.forward.size is not None
    assert open_one.forward.size["relative"].value == pytest.approx(1e-4)


def test_groups_are_those_that_are_named_and_each_batch_is_its_own_otherwise() -> None:
    batches = [(1.0, 1), (4.0, 2), (2.0, 1), (3.0, 5)]
    alone = Bowls().window(batches, precision=0.5).line
    assert alone.counts.tolist() == [1, 2, 1, 5]
    together = Bowls().window(batches, precision=0.5, groups=[0, 1, 0, 1]).line
    assert together.counts.tolist() == [2, 7]
    assert together.profile().slope == pytest.approx(alone.profile().slope)
    assert together.profile().loss == pytest.approx(alone.profile().loss)
    one = Bowls().window(batches, precision=0.5, groups=[0] * 4)
    assert one.forward.size is not None
    assert math.isinf(one.forward.size["relative"].high)
    for wrong in ([], [0, 1]):
        with pytest.raises(LoclinError, match="expected batches, with one group each, found 4 of"):
            Bowls().window(batches, groups=wrong)
    with pytest.raises(LoclinError, match="expected batches, with one group each, found 0 of 0"):
        Bowls().window([])


def test_the_space_is_left_where_it_was_and_a_step_is_told() -> None:
    bowls, seen = Bowls(dtype=torch.float32), list[tuple[str, float]]()
    before = bowls.space.read()
    bowls.window([(1.0, 1), (2.0, 1)], progress=lambda stage, share: seen.append((stage, share)))
    assert torch.equal(bowls.space.read(), before)
    stages = list(dict.fromkeys(stage for stage, _ in seen))
    assert stages == [
        "taking slopes",
        "taking curvature",
        "following the loss",
        "closing in on the edges",
    ]
    assert all(0 <= share < 1 for _, share in seen)


def test_a_network_by_its_loss_alone_or_with_scores(trained: Problem) -> None:
    """Plain batches and an EvalSet give one window; the latter has scores too."""
    space, examples = ParameterSpace(trained.model), trained.examples["test"]["halves"][:16]
    eval_set = EvalSet.of(trained, examples, folds=4)
    batches = [batch for i in range(4) for batch in eval_set.fold(i)]
    direction = space.gradient(eval_set.loss, batches)

    @contextmanager
    def switched() -> Iterator[None]:
        with twice_differentiable(trained.model):
            yield

    plain, scored = (
        linear_window(
            space, eval_set.loss, batches, direction, differentiable=switched, tallies=tallies
        )
        for tallies in (None, eval_set.tallies)
    )
    assert plain.forward.size is not None
    assert scored.forward.size is not None
    value = plain.forward.size["multiple"].value
    assert scored.forward.size["multiple"].value == pytest.approx(value, rel=0.1)
    assert scored.forward.edge is not None
    assert scored.forward.edge.score is not None
    assert plain.forward.edge is not None
    assert plain.forward.edge.score is None
    profile = scored.line.profile()
    assert profile.slope == pytest.approx(float(direction.norm() * space.read().norm()), rel=1e-4)


def test_a_model_without_second_derivatives_falls_back_and_says_so(trained: Problem) -> None:
    """Attention stays fused: torch itself refuses the second derivative."""
    space = ParameterSpace(trained.model)
    eval_set = EvalSet.of(trained, trained.examples["test"]["halves"][:8], folds=2)
    batches = [batch for i in range(2) for batch in eval_set.fold(i)]
    coarse = signed_grid(1e-5, 1e-2, 1)

    def window(curvature: str) -> LinearWindow:
        direction = space.noise(seed=0)
        return linear_window(
            space,
            eval_set.loss,
            batches,
            direction,
            steps=coarse,
            curvature=curvature,  # type: ignore[arg-type]
        )

    fallback = window("auto")
    assert fallback.method == "finite differences"
    assert "found a kernel that cannot (aten::_scaled_dot" in fallback.refused
    chosen = window("finite differences")
    assert (chosen.method, chosen.refused) == ("finite differences", "")
    assert chosen.line.profile().curvature == fallback.line.profile().curvature
    with pytest.raises(NoSecondDerivative, match="found a kernel that cannot"):
        window("double backward")


def test_other_errors_do_not_fall_back() -> None:
    def broken() -> object:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Bowls().window([(1.0, 1)], differentiable=broken)
