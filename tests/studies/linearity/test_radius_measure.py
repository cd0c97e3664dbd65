"""The radius of a network's gradient, and of task vectors against the tuned models themselves."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from loclin import cli, updates
from loclin.curvature import NoSecondDerivative
from loclin.errors import LoclinError
from loclin.line import signed_grid
from loclin.models import Problem, load, twice_differentiable
from loclin.models.evaluation import EvalSet
from loclin.options import LoadOptions
from loclin.parameters import ParameterSpace
from loclin.report.page import SO_FAR
from loclin.run.pieces import Pieces
from loclin.run.record import Record
from loclin.run.rows import Part
from loclin.run.runner import Session
from loclin.studies.linearity import radius_measure as module
from loclin.studies.linearity.radius_measure import examples_drawn, measure
from loclin.studies.linearity.radius_settings import RadiusSettings
from loclin.window import linear_window
from tests.run.killed import assert_same, measured_through_kills
from tests.studies.linearity.planted import number, one

SMALL: dict[str, Any] = {"examples": 40, "folds": 4, "per_decade": 1, "batch": 7, "smallest": 1e-5}


def settings(folders: Path, direction: str, **change: Any) -> RadiusSettings:
    own = {"model": str(folders / "base"), "data": ("sequences-small",), "dtype": "float64"}
    return RadiusSettings(direction=direction, **{**own, **SMALL, **change}).checked()


def radius(asked: RadiusSettings) -> Part:
    return measure(asked, 0, Session())


def problem_of(asked: RadiusSettings, folder: Path) -> Problem:
    return load(LoadOptions(model=str(folder), data=asked.data, dtype="float64"))


def loss_of(asked: RadiusSettings, folder: Path) -> float:
    """Mean loss of another model on the very examples that were asked."""
    problem = problem_of(asked, folder)
    (loss, _), (tokens, _) = EvalSet.of(problem, examples_drawn(asked, problem)[0]).tallies()
    return float(loss / tokens)


@pytest.mark.parametrize("direction", ["{0}/base..{0}/tuned", "{0}/adapter"])
def test_the_whole_vector_does_what_the_tuned_model_is(folders: Path, direction: str) -> None:
    asked = settings(folders, direction.format(folders))
    part = radius(asked)
    end = folders / ("merged" if direction.endswith("adapter") else "tuned")
    before, after = loss_of(asked, folders / "base"), loss_of(asked, end)
    assert number(part.rows, "loss") == pytest.approx(before, rel=1e-6)
    assert number(part.rows, "whole_loss_change") == pytest.approx(after - before, rel=1e-3)
    step = number(part.rows, "whole_step")
    size = number(part.rows, "radius", sign="+", **{"as": "‖δ‖/‖θ‖"})
    weights = number(part.rows, "weights_length")
    assert number(part.rows, "radius", sign="+", **{"as": "λ"}) == pytest.approx(size / step)
    assert number(part.rows, "radius", sign="+", **{"as": "‖δ‖"}) == pytest.approx(size * weights)
    assert number(part.rows, "whole_inside") == (step <= size)
    assert any("the model's 28 tensors" in n for n in part.notes)
    base, tuned = (
        ParameterSpace(problem_of(asked, folder).model).read() for folder in (folders / "base", end)
    )
    assert step == pytest.approx(float((tuned - base).norm() / base.norm()), rel=1e-4)


def test_a_plain_step_of_the_largest_learning_rate_is_off_by_the_tolerance(folders: Path) -> None:
    """The descent step: θ ← θ − λg changes the loss by −λ‖g‖² to within τ, and no better."""
    asked = settings(folders, "gradient", task="halves", tolerance=0.2, precision=1e-3)
    rows = radius(asked).rows
    rate = number(rows, "radius", sign="−", **{"as": "λ"})
    problem = problem_of(asked, folders / "base")
    eval_set = EvalSet.of(problem, examples_drawn(asked, problem)[0], at_once=9)
    space = ParameterSpace(problem.model)
    gradient = space.gradient(eval_set.loss, eval_set.fold(0))
    (before, _), (tokens, _) = eval_set.tallies()
    space.add(gradient, scale=-rate)
    (after, _), _ = eval_set.tallies()
    change, line = (after - before) / tokens, -rate * float(gradient @ gradient)
    assert abs(change / line - 1) == pytest.approx(0.2, abs=2e-3)
    assert number(rows, "edge_loss_change", sign="−") == pytest.approx(change, rel=1e-2)
    assert one(rows, "edge_loss_change", sign="−").low is not None
    assert not [r for r in rows if r.quantity.startswith("whole")]
    assert number(rows, "predicted_radius", **{"as": "λ"}) == pytest.approx(rate, rel=0.5)


def test_both_ways_of_taking_curvature_agree_and_a_pattern_moves_what_it_names(
    folders: Path,
) -> None:
    text = f"{folders}/base..{folders}/tuned"
    exact, differences = (
        radius(settings(folders, text, space="*mlp*", curvature=c))
        for c in ("double backward", "finite differences")
    )
    bent = number(differences.rows, "curvature")
    assert number(exact.rows, "curvature") == pytest.approx(bent, rel=1e-4)
    assert "curvature is taken by finite differences of gradients" in differences.notes
    assert exact.notes[-1] == "attention is switched from sdpa to eager for second derivatives"
    assert any(n.endswith("of these lie outside '*mlp*' and stay") for n in exact.notes)
    model = problem_of(settings(folders, text), folders / "base").model
    assert number(exact.rows, "dimension") == ParameterSpace(model, "*mlp*").dimension


def test_only_the_tensors_that_move_are_differentiated_and_nothing_else_changes(
    folders: Path, tmp_path: Path
) -> None:
    """A file that moves two tensors, against the window along the same vector, with zeros for all
    others, in the whole space.
    """
    asked = settings(folders, str(tmp_path / "change.safetensors"))
    problem = problem_of(asked, folders / "base")
    space = ParameterSpace(problem.model)
    vector = torch.zeros_like(space.read())
    pieces = dict(list(space.by_tensor(vector).items())[3:9:5])
    for i, piece in enumerate(pieces.values()):
        piece.copy_(torch.randn(piece.shape, generator=torch.Generator().manual_seed(i)))
    save_file({n: t.clone() for n, t in pieces.items()}, asked.direction)
    rows = radius(asked).rows
    eval_set = EvalSet.of(problem, examples_drawn(asked, problem)[0], folds=4, at_once=7)
    whole = linear_window(
        space,
        eval_set.loss,
        chunks := [b for i in range(4) for b in eval_set.fold(i)],
        vector,
        steps=signed_grid(asked.smallest, asked.largest, asked.per_decade),
        whole=True,
        groups=[i for i in range(4) for _ in eval_set.fold(i)],
        tallies=eval_set.tallies,
        differentiable=lambda: twice_differentiable(problem.model),
    )
    assert len(chunks) > 4
    profile = whole.line.profile()
    assert number(rows, "weights_length") == pytest.approx(float(space.read().norm()), rel=1e-12)
    assert number(rows, "direction_length") == pytest.approx(float(vector.norm()), rel=1e-12)
    assert number(rows, "dimension") == space.dimension
    assert number(rows, "slope") == pytest.approx(profile.slope, rel=1e-9)
    assert number(rows, "curvature") == pytest.approx(profile.curvature, rel=1e-9)
    for sign, reach in (("+", whole.forward), ("−", whole.backward)):
        assert reach.size is not None
        found = one(rows, "radius", sign=sign, **{"as": "λ"})
        assert found.value == pytest.approx(reach.size["multiple"].value, rel=1e-6)
        assert found.high == pytest.approx(reach.size["multiple"].high, rel=1e-6)


def test_a_model_without_second_derivatives_falls_back_and_says_so(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention stays fused, as where the switch does nothing: torch itself refuses the second
    derivative.
    """
    exact = radius(settings(folders, "gradient"))
    monkeypatch.setattr(module, "twice_differentiable", lambda model: nullcontext())
    part = radius(settings(folders, "gradient"))
    assert part.notes[-1].startswith(
        "curvature is taken by finite differences of gradients (expected a model that can be "
        "differentiated twice, found a kernel that cannot (aten::_scaled_dot"
    )
    assert number(part.rows, "curvature") == pytest.approx(
        number(exact.rows, "curvature"), rel=1e-4
    )
    with pytest.raises(
        NoSecondDerivative,
        match="a model that can be differentiated twice, found a kernel that cannot",
    ):
        radius(settings(folders, "gradient", curvature="double backward"))


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
        (empty_adapter, {}, "found IA3 "),
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
        radius(settings(folders, make(folders), **change))
    assert "\n" not in str(error.value)


def test_a_loss_that_is_not_finite_is_refused_before_anything_is_taken(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **more: Any) -> Problem:
        problem = load(*given, **more)
        with torch.no_grad():  # in files they would be refused earlier
            next(problem.model.parameters()).fill_(torch.nan)
        return problem

    monkeypatch.setattr(module, "load", broken)
    with pytest.raises(LoclinError, match="a finite loss at the point itself, found nan"):
        radius(settings(folders, "gradient"))


def test_too_little_memory_is_told_before_it_is_used(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "free_memory", lambda device: 1000)
    with pytest.raises(
        LoclinError,
        match=r"room for about 6 directions of 26336 coordinates .*: move fewer weights by --space",
    ):
        radius(settings(folders, "gradient"))


def test_a_model_is_loaded_once(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loclin.models import loading

    calls, read = [], loading.read_pretrained
    monkeypatch.setattr(loading, "read_pretrained", lambda *a: calls.append(a) or read(*a))
    radius(settings(folders, f"{folders}/base..{folders}/tuned", precision=0.5))
    assert len(calls) == 1


def test_a_radius_that_is_killed_goes_on_with_the_same_results(
    folders: Path, tmp_path: Path
) -> None:
    asked = settings(folders, f"{folders}/base..{folders}/tuned")
    where = "loclin.studies.linearity.radius_measure"
    part, counts = measured_through_kills(tmp_path / "out", where, asked)
    assert counts == sorted(counts)
    assert counts
    assert_same(part, radius(asked))


def test_a_page_of_what_is_there_can_be_had_at_any_time(folders: Path, tmp_path: Path) -> None:
    asked = settings(folders, "gradient")
    record = Record(tmp_path / "out")
    record.open_study(asked.entry, asked.fingerprint(), device="cpu", kind="radius")
    kept = Pieces(record, asked.entry, "run-000")
    measure(asked, 0, Session(pieces=kept, kept=kept.arrays))
    cli.main(["report", str(tmp_path / "out")])
    page = (tmp_path / "out" / "report.md").read_text()
    assert SO_FAR in page
    assert "radius" in page.lower()
    assert not record.finished(asked.entry)
