"""The radius of planted lines, of a network's gradient, and of task vectors against the tuned
models themselves.
"""

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from loclin.curvature import NoSecondDerivative
from loclin.errors import LoclinError
from loclin.models import Problem, load, twice_differentiable
from loclin.models.exam import Exam
from loclin.models.lora import Lora, attach
from loclin.parameters import ParameterSpace
from loclin.record import Record, Row
from loclin.report import build
from loclin.report.radius import print_radius
from loclin.report.terminal import print_findings
from loclin.stats import over_runs
from loclin.studies.radius import experiment
from loclin.studies.radius.config import Config
from loclin.studies.radius.experiment import measure_radius, radius_of
from loclin.studies.radius.measure import (
    Scale,
    closed_in,
    jackknifed,
    over_folds,
    radius_rows,
    whole_rows,
)
from loclin.studies.rays import Line, signed_grid
from loclin.window import ray


def planted(
    slopes: Sequence[float],
    curvatures: Sequence[float],
    steps: Sequence[float],
    *,
    dtype: torch.dtype = torch.float64,
) -> tuple[Line, Any]:
    """A line of parabolas, one a fold, of ten items each, and how to ask it for more."""
    s, c = np.array(slopes), np.array(curvatures)

    def ask(at: Sequence[float]) -> np.ndarray:
        e = np.array(at)[:, None]
        losses = 10 * (1.0 + s * e + 0.5 * c * e**2)
        return np.concatenate([losses, np.full_like(losses, 7.0)], axis=1)

    counts = np.full(2 * len(s), 10.0)
    return Line(
        steps=np.array(steps), sums=ask(steps), counts=counts, slopes=s, curvatures=c, dtype=dtype
    ), ask


def one(rows: Sequence[Row], quantity: str, **context: Any) -> Row:
    (found,) = [
        r
        for r in rows
        if r.quantity == quantity and all(r.context.get(k) == v for k, v in context.items())
    ]
    return found


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 7)
    found = jackknifed(float(values.mean()), [float(np.delete(values, i).mean()) for i in range(7)])
    expected = over_runs(values)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert jackknifed(math.nan, [1.0, 2.0]) is None
    assert jackknifed(1.0, [1.0, math.nan]) is None


def test_intervals_over_folds_cover_the_planted_radius() -> None:
    """Five folds, as many as the command takes, their slopes and curvatures scattered about planted
    ones.
    """
    rng, truth, covered = np.random.default_rng(0), 2 * 0.1 * 2.0 / 30.0, 0
    for _ in range(300):
        slopes, curvatures = 2.0 + 0.3 * rng.standard_normal(5), 30.0 + 4 * rng.standard_normal(5)
        line, _ = planted(slopes, curvatures, signed_grid(1e-4, 1.0, 2))
        size = over_folds(line, lambda p: p.window(1, 0.1).size, powers=True)
        assert size is not None
        covered += size.low <= truth <= size.high
    assert 0.92 < covered / 300 < 0.98


@pytest.mark.parametrize("slopes", [(2.0, 2.0, 2.0), (-1.0, -3.0, -2.0)])
def test_an_edge_is_closed_in_on(slopes: tuple[float, ...]) -> None:
    line, ask = planted(slopes, [30.0] * 3, signed_grid(1e-6, 1.0, 1))
    close = closed_in(line, ask, 0.1, precision=1e-4)
    rows = list(radius_rows(close, Scale(weights=50.0, vector=5.0), 0.1))
    expected = 0.2 * 2.0 / 30.0
    for sign in "+−":
        assert one(rows, "radius", sign=sign, **{"as": "‖δ‖/‖θ‖"}).value == pytest.approx(
            expected, rel=1e-4
        )
        assert one(rows, "radius", sign=sign, **{"as": "‖δ‖"}).value == pytest.approx(
            50 * expected, rel=1e-4
        )
        assert one(rows, "radius", sign=sign, **{"as": "λ"}).value == pytest.approx(
            10 * expected, rel=1e-4
        )
    assert one(rows, "predicted_radius", **{"as": "λ"}).value == pytest.approx(
        10 * expected, rel=1e-6
    )
    assert one(rows, "radius", sign="+", **{"as": "λ"}).null == pytest.approx(
        10 * expected, rel=1e-6
    )
    assert len(close.steps) < len(line.steps) + 60


def test_steps_below_the_grid_are_tried_until_round_off() -> None:
    line, ask = planted([1e-4] * 3, [200.0] * 3, signed_grid(1e-5, 1.0, 1))
    assert line.profile().window(1, 0.1).size is None
    close = closed_in(line, ask, 0.1, precision=1e-3)
    assert close.profile().window(1, 0.1).size == pytest.approx(0.2 * 1e-4 / 200, rel=1e-2)
    rough, ask = planted([1e-4] * 3, [200.0] * 3, signed_grid(1e-5, 1.0, 1), dtype=torch.float32)
    rows = list(
        radius_rows(closed_in(rough, ask, 0.1, precision=1e-3), Scale(weights=1.0, vector=1.0), 0.1)
    )
    assert one(rows, "radius", sign="+", **{"as": "λ"}).value is None
    assert one(rows, "limit").value == pytest.approx(2.0**-24 / 1e-4 / 0.1, rel=0.2)


def test_a_radius_beyond_every_step_is_a_lower_bound_and_the_whole_vector_may_be_unknown() -> None:
    line, ask = planted([2.0] * 3, [1e-3] * 3, signed_grid(1e-6, 1.0, 1))
    close = closed_in(line, ask, 0.1, precision=1e-3)
    rows = list(radius_rows(close, Scale(weights=1.0, vector=0.1), 0.1))
    assert one(rows, "radius_open", sign="+").value == 1
    assert one(rows, "radius", sign="+", **{"as": "‖δ‖/‖θ‖"}).value == 1.0
    inside = line.joined([0.3], ask([0.3]))
    assert (
        one(list(whole_rows(inside, Scale(weights=1.0, vector=0.3), 0.1)), "whole_inside").value
        == 1
    )
    bent, ask = planted([2.0] * 3, [30.0] * 3, [*signed_grid(1e-6, 1.0, 1)])
    outside = list(whole_rows(bent, Scale(weights=1.0, vector=0.1), 0.1))
    assert one(outside, "whole_inside").value == 0
    change = one(outside, "whole_loss_change")
    assert (change.value, change.null) == (pytest.approx(0.2 + 0.15), pytest.approx(0.2))
    assert one(outside, "whole_error").value == pytest.approx(0.75)


SMALL: dict[str, Any] = {"examples": 40, "folds": 4, "per_decade": 1, "batch": 7, "smallest": 1e-5}


@pytest.fixture(scope="module")
def folders(trained: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, a tuned one, an adapter and its merged model, as others would bring them."""
    place = tmp_path_factory.mktemp("radius")
    base = copy.deepcopy(trained.model)
    tuned = copy.deepcopy(base)
    space = ParameterSpace(tuned)
    space.add(ray(space.read(), space.noise(seed=1)), scale=0.02)
    adapted = attach(copy.deepcopy(base), Lora(rank=2), seed=0)
    factors = ParameterSpace(adapted)
    factors.add(factors.noise(seed=2), scale=0.02)
    adapted.save_pretrained(place / "adapter")
    for name, model in (("base", base), ("tuned", tuned), ("merged", adapted.merge_and_unload())):
        model.save_pretrained(place / name)
        trained.tokenizer.save_pretrained(place / name)
    return place


def config(folders: Path, direction: str, **change: Any) -> Config:
    settings = {
        "model": str(folders / "base"),
        "data": "sequences-small",
        "dtype": "float64",
        **SMALL,
        **change,
    }
    return Config(direction=direction, **settings).checked()


def silent(text: str) -> None:
    pass


def numbers(asked: Config) -> tuple[list[Row], list[str]]:
    return radius_of(asked, "cpu", silent)


def loss_of(asked: Config, folder: Path) -> float:
    """Mean loss of another model on the very examples that were asked."""
    problem = load(
        str(folder), data=asked.data, seed=asked.seed, how=experiment.How(dtype="float64")
    )
    exam = Exam.of(problem, experiment._examples(asked, problem)[0])
    (loss, _), (tokens, _) = exam.tallies()
    return float(loss / tokens)


@pytest.mark.parametrize("direction", ["{0}/base..{0}/tuned", "{0}/adapter"])
def test_the_whole_vector_does_what_the_tuned_model_is(folders: Path, direction: str) -> None:
    asked = config(folders, direction.format(folders))
    rows, notes = numbers(asked)
    end = folders / ("merged" if direction.endswith("adapter") else "tuned")
    before, after = loss_of(asked, folders / "base"), loss_of(asked, end)
    assert one(rows, "loss").value == pytest.approx(before, rel=1e-6)
    assert one(rows, "whole_loss_change").value == pytest.approx(after - before, rel=1e-3)
    step, size = (
        one(rows, "whole_step").value,
        one(rows, "radius", sign="+", **{"as": "‖δ‖/‖θ‖"}).value,
    )
    assert step is not None
    assert size is not None
    assert one(rows, "radius", sign="+", **{"as": "λ"}).value == pytest.approx(size / step)
    assert one(rows, "whole_inside").value == (step <= size)
    assert any("the model's 28 tensors" in n for n in notes)
    problem = load(str(folders / "base"), data=asked.data)
    whole, tuned = (
        ParameterSpace(m).read() for m in (problem.model, load(str(end), data=asked.data).model)
    )
    assert step == pytest.approx(float((tuned - whole).norm() / whole.norm()), rel=1e-4)


def test_a_plain_step_of_the_largest_learning_rate_is_off_by_the_tolerance(folders: Path) -> None:
    """The descent step: θ ← θ − λg changes the loss by −λ‖g‖² to within τ, and no more than that."""
    asked = config(folders, "gradient", task="halves", tolerance=0.2, precision=1e-3)
    rows, _ = numbers(asked)
    rate = one(rows, "radius", sign="−", **{"as": "λ"}).value
    assert rate is not None
    problem = load(asked.model, data=asked.data, how=experiment.How(dtype="float64"))
    exam = Exam.of(problem, experiment._examples(asked, problem)[0], at_once=9)
    space = ParameterSpace(problem.model)
    gradient = space.gradient(exam.loss, exam.fold(0))
    (before, _), (tokens, _) = exam.tallies()
    space.add(gradient, scale=-rate)
    (after, _), _ = exam.tallies()
    change, line = (after - before) / tokens, -rate * float(gradient @ gradient)
    assert abs(change / line - 1) == pytest.approx(0.2, abs=2e-3)
    assert one(rows, "edge_loss_change", sign="−").value == pytest.approx(change, rel=1e-2)
    assert one(rows, "edge_loss_change", sign="−").low is not None
    assert not [r for r in rows if r.quantity.startswith("whole")]
    assert one(rows, "predicted_radius", **{"as": "λ"}).value == pytest.approx(rate, rel=0.5)


def test_both_ways_of_taking_curvature_agree_and_a_pattern_moves_what_it_names(
    folders: Path,
) -> None:
    text = f"{folders}/base..{folders}/tuned"
    exact, differences = (
        numbers(config(folders, text, space="*mlp*", curvature=c))
        for c in ("double backward", "finite differences")
    )
    assert one(exact[0], "curvature").value == pytest.approx(
        one(differences[0], "curvature").value, rel=1e-4
    )
    assert "curvature is taken by finite differences of gradients" in differences[1]
    assert not any("finite differences" in n for n in exact[1])
    assert exact[1][-1] == "attention is switched from sdpa to eager for second derivatives"
    assert any(n.endswith("of these lie outside '*mlp*' and stay") for n in exact[1])
    problem = load(str(folders / "base"), data="sequences-small")
    assert one(exact[0], "dimension").value == ParameterSpace(problem.model, "*mlp*").dimension


def test_a_model_without_second_derivatives_falls_back_and_says_so(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention stays fused, as where the switch does nothing: torch itself refuses the second
    derivative.
    """
    monkeypatch.setattr(experiment, "twice_differentiable", lambda model: nullcontext())
    rows, notes = numbers(config(folders, "gradient"))
    assert notes[-1].startswith(
        "curvature is taken by finite differences of gradients (expected a model that can be "
        "differentiated twice, found a kernel "
        "that cannot (aten::_scaled_dot"
    )
    with pytest.raises(
        NoSecondDerivative,
        match="a model that can be differentiated twice, found a kernel that cannot",
    ):
        numbers(config(folders, "gradient", curvature="double backward"))
    monkeypatch.undo()
    exact, _ = numbers(config(folders, "gradient"))
    assert one(rows, "curvature").value == pytest.approx(one(exact, "curvature").value, rel=1e-4)


def test_other_errors_do_not_fall_back(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(experiment, "hessian_operator", refuse)
    with pytest.raises(RuntimeError, match="out of memory"):
        numbers(config(folders, "gradient"))


def test_the_model_is_left_where_it_was(folders: Path) -> None:
    problem = load(str(folders / "base"), data="sequences-small")
    space = ParameterSpace(problem.model)
    before, exam = space.read(), Exam.of(problem, problem.examples["test"]["halves"][:8], folds=2)
    w = ray(before, space.noise(seed=0))
    with twice_differentiable(problem.model):
        asked = config(folders, "gradient", curvature="finite differences")
        experiment._derivatives(asked, space, exam, w, silent)
    assert torch.equal(space.read(), before)


def test_a_record_a_page_and_a_table_are_written(
    folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    asked = config(folders, f"{folders}/base..{folders}/tuned", dtype="float32")
    measure_radius(asked, out=tmp_path / "run")
    text = build(tmp_path / "run").read_text()
    assert text.count("<figure>") == 3
    assert "How far along base..tuned?" in text
    assert "Largest predictable step as a multiple of the direction, λ: " in text
    capsys.readouterr()
    print_radius(tmp_path / "run")
    said = capsys.readouterr().out
    for words in (
        "largest step",
        "forward",
        "backward",
        "‖δ‖/‖θ‖ by curvature",
        "The whole vector, λ = 1",
        "Round-off begins",
    ):
        assert words in said
    assert max(map(len, said.splitlines())) <= 80
    with pytest.raises(
        LoclinError,
        match=r"belongs to another configuration of radius \(tolerance is 0\.1 there, 0\.3 here\)",
    ):
        measure_radius(dataclasses.replace(asked, tolerance=0.3), out=tmp_path / "run")
    capsys.readouterr()
    record = Record(tmp_path / "other")
    record.open_study("recovery", {}, device="test")
    print_radius(record.folder)
    record.open_study("radius", {}, device="test")  # begun, and failed before there were results
    print_radius(record.folder)
    record.open_study("trajectory", {}, device="test")
    print_findings(record.folder, "trajectory")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, "expected --data with the model"),
        ({"folds": 1}, "at least 2 folds, found 1: raise --folds"),
        ({"tolerance": 0.0}, "a tolerance between 0 and 1, found 0.0"),
        ({"precision": 2.0}, "a precision between 0 and 1, found 2.0"),
        ({"smallest": 2.0}, "0 < smallest < largest, found 2.0 and 1.0"),
        ({"examples": 0}, "examples of at least 1, found 0"),
    ],
)
def test_bad_settings_are_named_with_their_remedy(
    folders: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(LoclinError, match=message):
        config(folders, "gradient", **change)


def empty_adapter(folders: Path) -> str:
    place = folders / "empty"
    place.mkdir(exist_ok=True)
    save_file({"x.lora_A.weight": torch.ones(2, 3)}, place / "adapter_model.safetensors")
    (place / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    return str(place)


def delta(folders: Path, **tensors: torch.Tensor) -> str:
    save_file(tensors, folders / "delta.safetensors")
    return str(folders / "delta.safetensors")


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (lambda f: delta(f, nowhere=torch.ones(2)), {}, r"found nowhere \(no such tensor in the "
                                                        r"model\)"),
        (lambda f: f"{f}/base..{f}/base", {}, "a direction that moves something, found zeros"),
        (empty_adapter, {}, "found one of kind IA3"),
        (lambda f: f"{f}/adapter", {"space": "*ln*"}, r"found none of its \d+ tensors in '\*ln\*': "
                                                      r"change --space"),
        (lambda f: "gradient", {"task": "divide"}, "unknown task 'divide': expected one of copy, "),
        (lambda f: "gradient", {"folds": 50}, "each of 50 folds, found 40: give more data or lower "
                                              "--folds"),
        (lambda f: "gradient", {"space": "nothing"}, "a pattern that matches a trainable tensor, "
                                                     "found 'nothing'"),
        (lambda f: "gradient", {"model": "nowhere/at/all"}, "expected a model folder, found "
                                                            "nothing at nowhere/at/all"),
        (lambda f: "sideways", {}, r"expected PATH\.safetensors, BASE\.\.TUNED or the folder of an "
                                   r"adapter, found nothing at sideways"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_says_why(
    folders: Path, make: Any, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(LoclinError, match=message) as error:
        numbers(config(folders, make(folders), **change))
    assert "\n" not in str(error.value)


def test_a_loss_that_is_not_finite_is_refused_before_anything_is_taken(
    folders: Path, tmp_path: Path, trained: Problem
) -> None:
    broken = copy.deepcopy(trained.model)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    broken.save_pretrained(tmp_path / "broken")
    trained.tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(LoclinError, match="a finite loss at the point itself, found nan"):
        numbers(config(folders, "gradient", model=str(tmp_path / "broken")))


def test_too_little_memory_is_said_before_it_is_used(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "free_memory", lambda device: 1000)
    with pytest.raises(
        LoclinError,
        match=r"room for about 6 directions of 26336 coordinates .*: move fewer weights by --space",
    ):
        numbers(config(folders, "gradient"))
