"""An exam along a ray against the same numbers by the plain functions, and windows of a network
against its curvature.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from loclin.errors import LoclinError
from loclin.models import Problem, load, twice_differentiable
from loclin.models.exam import Exam
from loclin.models.pretrained import How
from loclin.parameters import ParameterSpace
from loclin.studies.rays import Line, line_along, signed_grid
from loclin.tasks.batch import answer_loss
from loclin.window import ray


@pytest.fixture(scope="module")
def precise() -> Problem:
    """The small sequence model in float64."""
    return load("sequences-small", seed=0, how=How(dtype="float64"))


def line_of(problem: Problem, exam: Exam, direction: torch.Tensor, steps: list[float]) -> Line:
    space = ParameterSpace(problem.model)
    w = ray(space.read(), direction)
    with twice_differentiable(problem.model):
        folds = range(exam.count)
        slopes = np.array([float(space.gradient(exam.loss, exam.fold(i)) @ w) for i in folds])
        curvatures = np.array(
            [float(w @ space.hessian_product(exam.loss, exam.fold(i), w)) for i in folds]
        )
    return line_along(space, exam, w, steps, slopes=slopes, curvatures=curvatures)


@pytest.mark.parametrize("name", ["trained", "speaking"])
def test_tallies_are_the_loss_and_the_score_of_the_plain_functions(
    name: str, request: pytest.FixtureRequest
) -> None:
    problem: Problem = request.getfixturevalue(name)
    task = problem.tasks[0]
    examples = problem.examples["damage"][task]
    exam = Exam.of(problem, examples, folds=3)
    sums, counts = exam.tallies()
    with torch.no_grad():
        loss, tokens = answer_loss(problem.model, problem.batch("damage", task))
    assert sums[:3].sum() == pytest.approx(float(loss), rel=1e-5)
    assert counts[:3].sum() == tokens
    assert sums[3:].sum() / counts[3:].sum() == pytest.approx(problem.score("damage", task))
    assert counts[3:].sum() == len(examples)
    assert (exam.choices is None) == (name == "trained")
    homes: dict[str, set[int]] = {}
    for e, fold in zip(examples, exam.folds, strict=True):
        homes.setdefault(e.group or e.prompt, set()).add(int(fold))
    assert all(len(found) == 1 for found in homes.values())
    assert (counts[3:] > 0).all()


def test_options_of_one_token_are_scored_from_the_prompts_alone(speaking: Problem) -> None:
    exam = Exam.of(speaking, speaking.examples["test"][speaking.tasks[0]], folds=4)
    assert exam.options is not None
    whole = replace(exam, options=None)
    for quick, slow in zip(exam.tallies(), whole.tallies(), strict=True):
        assert quick == pytest.approx(slow, rel=1e-5)


def test_options_of_several_tokens_or_of_unequal_number_are_scored_whole(speaking: Problem) -> None:
    shown = speaking.examples["test"][speaking.tasks[0]][:6]
    longer = [replace(e, options=(*e.options, " red red")) for e in shown[:3]]
    assert Exam.of(speaking, [*longer, *shown[3:]]).options is None
    more = [replace(e, options=(*e.options, " red")) for e in shown[:3]]
    exam = Exam.of(speaking, [*more, *shown[3:]])
    assert exam.options is not None
    assert (exam.options < 0).sum() == 3
    whole = replace(exam, options=None)
    assert exam.tallies()[0] == pytest.approx(whole.tallies()[0], rel=1e-5)


def test_fewer_groups_than_folds_are_refused(trained: Problem) -> None:
    few = trained.examples["test"][trained.tasks[0]][:3]
    with pytest.raises(
        LoclinError,
        match="one group of examples for each of 5 folds, found 3: give more data or lower",
    ):
        Exam.of(trained, few, folds=5)


def test_leaving_a_fold_out_is_an_exam_on_the_others(precise: Problem) -> None:
    examples = precise.examples["test"][precise.tasks[0]][:12]
    direction = ParameterSpace(precise.model).noise(seed=1).double()
    whole = Exam.of(precise, examples, folds=3, at_once=2)
    steps = [-1e-2, 0.0, 1e-3, 1e-2]
    without = line_of(precise, whole, direction, steps).profile(without=1)
    others = [e for e, fold in zip(examples, whole.folds, strict=True) if fold != 1]
    alone = line_of(precise, Exam.of(precise, others), direction, steps).profile()
    for name in ("changes", "scores", "loss", "score", "slope", "curvature"):
        assert getattr(without, name) == pytest.approx(getattr(alone, name), rel=1e-9), name
    assert without.steps.tolist() == [-1e-2, 1e-3, 1e-2]


def test_the_window_of_a_network_is_what_its_curvature_predicts(precise: Problem) -> None:
    space = ParameterSpace(precise.model)
    before = space.read()
    exam = Exam.of(precise, precise.examples["test"]["halves"][:16])
    line = line_of(precise, exam, space.noise(seed=2).double(), signed_grid(1e-8, 1e-1, 2))
    profile = line.profile()
    assert torch.equal(space.read(), before)
    for sign in (1, -1):
        found = profile.window(sign, 1e-2)
        assert found.size == pytest.approx(profile.predicted(1e-2), rel=0.05)
        assert found.limit < 1e-8
    assert profile.errors[np.abs(profile.steps) < 1e-7].max() < 1e-5
    assert 0 < profile.noise < 1e-13


def test_float32_has_its_round_off_where_the_loss_scatters(
    precise: Problem, trained: Problem
) -> None:
    """Below the limit the float32 line is noise; above it, it is that of float64."""
    examples = trained.examples["test"]["halves"][:16]
    direction = ParameterSpace(trained.model).noise(seed=2)
    steps = signed_grid(1e-8, 1e-2, 3)
    rough = line_of(trained, Exam.of(trained, examples), direction, steps).profile()
    fine = line_of(precise, Exam.of(precise, examples), direction.double(), steps).profile()
    assert rough.floor > 1e4 * fine.floor
    apart = np.abs(rough.changes - fine.changes)
    assert np.median(apart[np.abs(rough.steps) < 1e-5]) < rough.floor * abs(rough.slope)
    above = np.abs(rough.steps) > 10 * rough.floor
    assert above.any()
    assert (apart[above] < 0.3 * np.abs(fine.slope * fine.steps[above])).all()


@pytest.mark.parametrize("steps", [signed_grid(1e-2, 1.0, 1), signed_grid(1e-8, 1.0, 3)])
def test_the_scatter_is_measured_however_coarse_the_grid(
    trained: Problem, steps: list[float]
) -> None:
    examples = trained.examples["test"]["halves"][:16]
    exam, direction = Exam.of(trained, examples), ParameterSpace(trained.model).noise(seed=2)
    line = line_of(trained, exam, direction, steps)
    further = line.profile().further_for_scatter()
    least, pairs = 30 * 2.0**-24, {abs(s) for s in further}
    assert all(-s in further for s in further)
    assert len(pairs) <= 5
    most = max(1e-3 * line.profile().predicted(1.0), 4 * least)
    assert all(0.99 * least <= s <= 1.01 * most for s in pairs)
    assert len(pairs) == 5 or min(map(abs, line.profile().steps)) < 1e-5
    more = line_of(trained, exam, direction, sorted([*further, 0.0]))
    profile = line.joined(
        more.steps[more.steps != 0].tolist(), more.sums[more.steps != 0]
    ).profile()
    assert (
        0.1 < profile.noise / (2.0**-24 * profile.loss) < 100
    )  # some roundings of the loss itself
    assert profile.further_for_scatter() == []
    assert profile.limit(0.1) == max(profile.floor / 0.1, 2.0**-24)
    assert profile.limit(1e9) == 2.0**-24


def test_more_steps_join_in_order(precise: Problem) -> None:
    exam = Exam.of(precise, precise.examples["test"]["halves"][:4], folds=2)
    direction = ParameterSpace(precise.model).noise(seed=2).double()
    outer = line_of(precise, exam, direction, [-1e-2, 0.0, 1e-2])
    inner = line_of(precise, exam, direction, [-1e-3, 0.0, 1e-3])
    joined = outer.joined([-1e-3, 1e-3], inner.sums[[0, 2]])
    assert joined.steps.tolist() == [-1e-2, -1e-3, 0.0, 1e-3, 1e-2]
    assert joined.profile().changes[1:3] == pytest.approx(inner.profile().changes)


def test_a_loss_that_is_not_finite_at_the_point_is_refused(trained: Problem) -> None:
    space = ParameterSpace(trained.model)
    exam = Exam.of(trained, trained.examples["test"]["halves"][:4])
    direction = space.noise(seed=0)
    with space.restored():
        space.write(torch.full_like(space.read(), torch.nan))
        with pytest.raises(
            LoclinError,
            match="a finite loss at the point itself, found nan: check the model, the data",
        ):
            line_along(space, exam, direction, [0.0], slopes=np.ones(1), curvatures=np.ones(1))
    broken = replace(exam, count=1)
    assert np.isfinite(broken.tallies()[0]).all()
