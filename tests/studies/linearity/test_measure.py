"""One small run of each kind against direct evaluation."""

import dataclasses
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from loclin.curvature import NoSecondDerivative
from loclin.errors import LoclinError
from loclin.line import signed_grid
from loclin.models import Problem
from loclin.progress import silent
from loclin.run.rows import Part, by_run, summaries
from loclin.run.runner import Session
from loclin.studies.context import make_context
from loclin.studies.damage import damage, recovery
from loclin.studies.linearity import claims
from loclin.studies.linearity.measure import examples_followed, measure, requirements
from loclin.studies.linearity.page import sections
from loclin.studies.linearity.settings import LinearitySettings
from tests.run.killed import assert_same, measured_through_kills
from tests.studies.linearity.planted import number, one

AT_START = {
    "gradient",
    "norm-matched noise",
    "random",
    "top curvature 1",
    "top curvature 2",
    "task vector",
}
AT_DAMAGE = (AT_START - {"task vector"}) | {
    f"{way}, {o}"
    for way in ("recovery", "first updates", "prefix 1", "prefix 3")
    for o in ("SGD", "AdamW")
}


@pytest.mark.parametrize("kind", ["part", "by_lora"])
def test_every_direction_is_followed_at_both_points(
    kind: str, request: pytest.FixtureRequest
) -> None:
    rows = request.getfixturevalue(kind).rows
    slopes = [r.context for r in rows if r.quantity == "slope"]
    for point, names in (("pretrained", AT_START), ("damaged", AT_DAMAGE)):
        assert {c["direction"] for c in slopes if c["point"] == point} == names
    tasks = {c["on"] for c in slopes if "on" in c}
    assert len(tasks) == (6 if kind == "part" else 2)
    steps = {r.context["step"] for r in rows if r.quantity == "loss_change"}
    assert sorted(steps) == [s for s in signed_grid(1e-5, 1.0, 1) if s > 0]
    assert {r.context["pair"] for r in rows if "pair" in r.context} == {
        "two task vectors", "two random directions", "gradient and recovery, AdamW",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["part", "by_lora"])
def test_built_in_models_are_followed_in_float64(kind: str, request: pytest.FixtureRequest) -> None:
    rows = request.getfixturevalue(kind).rows
    limits = [r.value for r in rows if r.quantity == "log10_limit" and r.value is not None]
    assert max(limits) < -8
    widths = [r for r in rows if r.quantity == "window_width"]
    assert min(r.value or 0.0 for r in widths if r.context["direction"] == "gradient") > 3
    errors = [r for r in rows if r.quantity == "log10_error" and r.context["step"] == 1e-5]
    assert np.median([r.value for r in errors if r.value]) < -2


def test_a_kernel_that_stays_fused_is_named_and_differences_do_without(
    part: Part, tiny: LinearitySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    differences = measure(dataclasses.replace(tiny, products="finite differences"), 0, Session())
    assert differences.notes[-1] == (
        "curvature is taken by finite differences of gradients, a fallback"
    )
    for point in ("pretrained", "damaged"):
        for direction in ("gradient", "random", "norm-matched noise"):
            here = {"point": point, "direction": direction}
            assert number(differences.rows, "curvature", **here) == pytest.approx(
                number(part.rows, "curvature", **here), rel=1e-4
            )
    switched = "loclin.search.local_law.twice_differentiable"
    monkeypatch.setattr(switched, lambda model: nullcontext())
    with pytest.raises(
        NoSecondDerivative,
        match=r"found a kernel that cannot .*: switch attention to eager, or choose finite",
    ):
        measure(tiny, 0, Session())


def test_chunks_change_nothing_but_how_many_are_differentiated_at_once(
    part: Part, tiny: LinearitySettings
) -> None:
    chunked = measure(dataclasses.replace(tiny, curvature_chunk=5), 0, Session())
    for name in ("slope", "curvature"):
        here = {"point": "pretrained", "direction": "random"}
        assert number(chunked.rows, name, **here) == pytest.approx(
            number(part.rows, name, **here), rel=1e-6
        )


def test_the_switch_of_attention_is_told(part: Part) -> None:
    assert part.notes[-1] == "attention is switched from sdpa to eager for second derivatives"


def test_what_is_said_of_a_recovery_is_what_it_does(part: Part, tiny: LinearitySettings) -> None:
    ctx = make_context(tiny, 0, requirements(tiny), silent)
    eval_set, start, space = examples_followed(ctx), damage(ctx, ctx.task), ctx.space
    way = recovery(ctx, "adamw", ctx.task, start, tiny.steps, order="recovery", head=1)
    losses, scores = [], []
    ctx.problem.model.double()
    with space.restored():
        for point in (start, start + way.displacement):
            space.write(point)
            (loss, right), (tokens, count) = eval_set.tallies()
            losses.append(loss / tokens)
            scores.append(right / count)
        space.write(start)
        slope = float(space.gradient(eval_set.loss, eval_set.fold(0)) @ way.displacement.double())
    here = {"point": "damaged", "direction": "recovery, AdamW"}
    assert number(part.rows, "loss", point="damaged") == pytest.approx(losses[0])
    change = one(part.rows, "whole_loss_change", **here)
    assert change.value == pytest.approx(losses[1] - losses[0], rel=1e-4)
    assert change.null == pytest.approx(slope, rel=1e-4)
    assert number(part.rows, "whole_score", **here) == scores[1]
    length = float(way.displacement.norm() / start.norm())
    assert 10 ** number(part.rows, "log10_whole_step", **here) == pytest.approx(length)
    error = abs((losses[1] - losses[0] - slope) / slope)
    assert 10 ** number(part.rows, "log10_whole_error", **here) == pytest.approx(error)
    window = number(part.rows, "log10_window", **here, tolerance=0.1, sign="+")
    inside = number(part.rows, "whole_inside", **here, tolerance=0.1)
    assert inside == (math.log10(length) <= window)


def test_at_the_edge_of_a_window_the_change_is_off_by_the_tolerance(part: Part) -> None:
    off = []
    for r in part.rows:
        if r.quantity == "edge_loss_change" and r.value is not None and "on" not in r.context:
            here = {k: r.context[k] for k in ("point", "direction")}
            at = {"tolerance": 0.1, "sign": r.context["sign"]}
            size = 10 ** number(part.rows, "log10_window", **here, **at)
            loss = number(part.rows, "loss", point=here["point"])
            line = abs(size * number(part.rows, "slope", **here)) / loss
            off.append(abs(r.value / line - 1))
    assert len(off) > 20
    assert np.median(off) == pytest.approx(0.1, abs=1e-4)
    # where the error dips, steps a decade apart miss the edge
    assert np.mean(np.abs(np.array(off) - 0.1) < 0.01) > 0.85


def test_too_few_examples_are_refused_before_anything_is_taught(
    trained: Problem, tiny: LinearitySettings
) -> None:
    wanted = dataclasses.replace(tiny, window_examples=10_000)
    with pytest.raises(
        LoclinError,
        match=r"at least 10000 examples of .* in the test split, found .* lower --window-examples",
    ):
        measure(wanted, 0, Session())


def test_lines_are_kept(part: Part) -> None:
    for point, names in (("pretrained", AT_START), ("damaged", AT_DAMAGE)):
        keys = [k for k in part.arrays if k.startswith(f"line/{point}/")]
        assert {k.split("/")[2] for k in keys} == names
        for key in keys:
            loss, slope, _ = part.arrays[key.replace("line", "start")]
            assert loss == number(part.rows, "loss", point=point)
            step, change, _ = part.arrays[key][np.argmin(np.abs(part.arrays[key][:, 0]))]
            if "random" not in key:  # nearly flat
                assert change == pytest.approx(step * slope, rel=0.05)
    assert len([k for k in part.arrays if k.startswith("pair/")]) == 3


def test_there_is_one_number_for_every_run(part: Part) -> None:
    here = {"point": "pretrained", "direction": "gradient", "tolerance": 0.1, "sign": "both"}
    assert by_run(part.rows, "window_width", **here).shape == (1,)


def test_a_run_that_is_killed_goes_on_with_the_same_results(
    by_lora: Part, tiny_lora: LinearitySettings, tmp_path: Path
) -> None:
    part, counts = measured_through_kills(
        tmp_path / "out", "loclin.studies.linearity.measure", tiny_lora
    )
    assert counts == sorted(counts)
    assert counts
    assert_same(part, by_lora)


def test_a_model_measured_as_it_is_has_one_point(
    trained: Problem, tiny: LinearitySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loclin.studies.context.train", lambda *_, **__: pytest.fail("trained"))
    settings = dataclasses.replace(tiny, untouched=True)
    part = measure(settings, 0, Session())
    assert {r.context["point"] for r in part.rows if "point" in r.context} == {"pretrained"}
    assert [c.setting for c in claims.decide(settings, part.rows)] == ["sequences-small, θ₀"]
    titles = [
        s.title for s in sections([*part.rows, *summaries(part.rows)], dataclasses.asdict(settings))
    ]
    assert "Do steps add up?" in titles
