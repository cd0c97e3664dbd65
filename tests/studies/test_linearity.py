"""The linearity study: one small run of each kind against direct evaluation, its rows on planted
lines, its claim's calibration.
"""

import dataclasses
import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from loclin.curvature import NoSecondDerivative
from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.models.exam import Exam
from loclin.record import Claim, Part, Row
from loclin.report import linearity as page
from loclin.studies.bench import make_bench
from loclin.studies.course import damage, recovery
from loclin.studies.linearity import claims, experiment
from loclin.studies.linearity.config import Config, preset, settings
from loclin.studies.linearity.rows import (
    curve_rows,
    line_rows,
    of_defined_tasks,
    pair_rows,
    whole_rows,
)
from loclin.studies.rays import Profile, signed_grid
from loclin.studies.table import by_run, summaries
from tests.properties import World, share_supported

SMALL: dict[str, Any] = {
    "seeds": 1,
    "steps": 10,
    "k": 3,
    "prefix_vectors": (1, 3),
    "hessian_directions": 2,
    "window_examples": 12,
    "per_decade": 1,
    "smallest": 1e-5,
    "task_vector_steps": 2,
}
TINY = dataclasses.replace(preset("smoke"), **SMALL).checked()
BY_LORA = dataclasses.replace(preset("smoke", "statements-small"), ranks=(2,), **SMALL).checked()
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


def silent(stage: str, share: float) -> None:
    pass


@pytest.fixture(scope="module")
def part(trained: Problem) -> Part:
    return experiment.run_one(TINY, 0, silent)


@pytest.fixture(scope="module")
def by_lora(speaking: Problem) -> Part:
    return experiment.run_one(BY_LORA, 0, silent)


def one(rows: list[Row], quantity: str, **context: Any) -> Row:
    (found,) = [
        r
        for r in rows
        if r.quantity == quantity and all(r.context.get(k) == v for k, v in context.items())
    ]
    return found


def number(rows: list[Row], quantity: str, **context: Any) -> float:
    value = one(rows, quantity, **context).value
    assert value is not None
    return value


@pytest.mark.parametrize("kind", ["part", "by_lora"])
def test_every_direction_is_followed_at_both_points(
    kind: str, request: pytest.FixtureRequest
) -> None:
    found: Part = request.getfixturevalue(kind)
    for point, names in (("pretrained", AT_START), ("damaged", AT_DAMAGE)):
        assert {
            r.context["direction"]
            for r in found.rows
            if r.quantity == "slope" and r.context["point"] == point
        } == names
    tasks = {r.context["on"] for r in found.rows if r.quantity == "slope" and "on" in r.context}
    assert len(tasks) == (6 if kind == "part" else 2)
    steps = {r.context["step"] for r in found.rows if r.quantity == "loss_change"}
    assert sorted(steps) == [s for s in signed_grid(1e-5, 1.0, 1) if s > 0]
    assert {r.context["pair"] for r in found.rows if "pair" in r.context} == {
        "two task vectors", "two random directions", "gradient and recovery, AdamW",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["part", "by_lora"])
def test_built_in_models_are_followed_in_float64(kind: str, request: pytest.FixtureRequest) -> None:
    found: Part = request.getfixturevalue(kind)
    for r in found.rows:
        if r.quantity == "log10_limit" and r.value is not None:
            assert r.value < -8, r
        if r.quantity == "window_width" and r.context["direction"] == "gradient":
            assert r.value is not None
            assert r.value > 3
    errors = [
        r.value
        for r in found.rows
        if r.quantity == "log10_error" and r.context["step"] == 1e-5 and r.value
    ]
    assert np.median(errors) < -2


def test_a_kernel_that_stays_fused_is_named_and_differences_do_without(
    part: Part, trained: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_differences = experiment.run_one(
        dataclasses.replace(TINY, products="finite differences"), 0, silent
    )
    assert (
        by_differences.notes[-1]
        == "curvature is taken by finite differences of gradients, a fallback"
    )
    for point in ("pretrained", "damaged"):
        for direction in ("gradient", "random", "norm-matched noise"):
            here = {"point": point, "direction": direction}
            assert number(by_differences.rows, "curvature", **here) == pytest.approx(
                number(part.rows, "curvature", **here), rel=1e-4
            )
    monkeypatch.setattr(experiment, "twice_differentiable", lambda model: nullcontext())
    with pytest.raises(
        NoSecondDerivative,
        match=r"found a kernel that cannot .*: switch attention to eager, or choose finite",
    ):
        experiment.run_one(TINY, 0, silent)


def test_chunks_change_nothing_but_how_many_are_differentiated_at_once(part: Part) -> None:
    chunked = experiment.run_one(dataclasses.replace(TINY, curvature_chunk=5), 0, silent)
    for name in ("slope", "curvature"):
        here = {"point": "pretrained", "direction": "random"}
        assert number(chunked.rows, name, **here) == pytest.approx(
            number(part.rows, name, **here), rel=1e-6
        )


def test_noise_has_the_norms_of_the_gradient_at_both_points(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[Any, Any]] = []
    common = experiment.aims.common_aims

    def watched(bench: Any, gradient: Any, product: Any, *, seed: int) -> Any:
        found = common(bench, gradient, product, seed=seed)
        seen.append(
            (bench.space, [a.vector for a in found if a.name in ("gradient", "norm-matched noise")])
        )
        return found

    monkeypatch.setattr(experiment.aims, "common_aims", watched)
    experiment.run_one(TINY, 0, silent)
    assert len(seen) == 2
    for space, (gradient, noise) in seen:
        for g, z in zip(
            space.by_tensor(gradient).values(), space.by_tensor(noise).values(), strict=True
        ):
            assert float(z.norm()) == pytest.approx(float(g.norm()))


def test_a_task_without_a_window_is_counted_and_leaves_the_others_mean() -> None:
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for run in range(4):
        rows += world(5.0, 5.0, 0.0, curves=True)(rng, run)
        for on, decades in (("a", 4.0), ("b", -2.0)):
            here = {
                "run": run,
                "task": "t",
                "point": "pretrained",
                "direction": "task vector",
                "on": on,
            }
            profile = planted(rng, decades=decades, steps=COARSE)
            made = [*line_rows(profile, (0.1,), here), *curve_rows(profile, here)]
            made += whole_rows(profile, 0.1, 1.0, 0.5, profile.window(1, 0.1), 0.1, here)
            rows += of_defined_tasks(made)
    rows = at_both(rows)
    here = {"point": "pretrained", "direction": "task vector", "tolerance": 0.1, "sign": "both"}
    mean = one(summaries(rows), "log10_window", **here)
    assert mean.value == pytest.approx(4.0 + math.log10(2.0**-24 / 3.0 / 0.1), abs=1e-2)
    assert one(summaries(rows), "no_window", **here).value == 0.5
    said = text(rows, dataclasses.replace(TINY, tolerances=(0.1,)))
    assert (
        "Task vector at θ₀: in 50% of the tasks of all runs there is no window above round-off; "
        "ε_τ is of the others." in said
    )
    assert (
        "(none forward in 50% of the tasks of all runs), inside in 0% of the tasks of all runs"
        in said
    )


def test_runs_without_a_window_are_counted_on_the_page_and_in_the_claim() -> None:
    rng = np.random.default_rng(0)
    rows = [
        r
        for run, decades in enumerate((5.0, -2.0, 5.0, 5.0))
        for r in world(decades, 5.0, 0.0, curves=True)(rng, run)
    ]
    rows = at_both(rows)
    said = text(rows, dataclasses.replace(TINY, tolerances=(0.1,)))
    assert (
        "Gradient at θ₀: in 1 of 4 runs there is no window above round-off; ε_τ is of the others."
        in said
    )
    assert "in 1 of 4 runs there is no window along the gradient;" in rule(rows).note


def test_with_lora_a_share_is_of_the_factors(by_lora: Part, part: Part) -> None:
    assert claims.decide(BY_LORA, by_lora.rows)[0].measured.endswith(
        "as a share of the factors' length"
    )
    assert claims.decide(TINY, part.rows)[0].measured.endswith("as a share of the weights' length")
    assert "what moves are the factors A and B" in text(list(by_lora.rows), BY_LORA)
    assert "what moves are the factors A and B" not in text(list(part.rows), TINY)


def test_of_a_model_that_was_brought_nobody_knows_what_it_saw(part: Part) -> None:
    said = text(list(part.rows), dataclasses.replace(TINY, data="mine.jsonl"))
    assert "what the model was trained on before is not known" in said


def test_the_switch_of_attention_is_said(part: Part) -> None:
    assert part.notes[-1] == "attention is switched from sdpa to eager for second derivatives"


def test_what_is_said_of_a_recovery_is_what_it_does(part: Part) -> None:
    bench = make_bench(TINY, 0, experiment._demand(TINY), silent)
    shown = bench.problem.examples["test"][bench.task]
    chosen = experiment.aims.chosen_examples(
        12, len(shown), seed=experiment.derived(bench.seed, "window examples")
    )
    exam = Exam.of(bench.problem, [shown[i] for i in chosen])
    start, space = damage(bench, bench.task), bench.space
    losses, scores, points = [], [], [start]
    way = recovery(bench, "adamw", bench.task, start, TINY.steps, order="recovery", exactly=1)
    points.append(start + way.displacement)
    bench.problem.model.double()
    with space.restored():
        for point in points:
            space.write(point)
            (loss, right), (tokens, count) = exam.tallies()
            losses.append(loss / tokens)
            scores.append(right / count)
        space.write(start)
        slope = float(space.gradient(exam.loss, exam.fold(0)) @ way.displacement.double())
    here = {"point": "damaged", "direction": "recovery, AdamW"}
    assert number(part.rows, "loss", point="damaged") == pytest.approx(losses[0])
    found = one(part.rows, "whole_loss_change", **here)
    assert found.value == pytest.approx(losses[1] - losses[0], rel=1e-4)
    assert found.null == pytest.approx(slope, rel=1e-4)
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
            size = 10 ** number(
                part.rows, "log10_window", **here, tolerance=0.1, sign=r.context["sign"]
            )
            line = abs(size * number(part.rows, "slope", **here)) / number(
                part.rows, "loss", point=here["point"]
            )
            off.append(abs(r.value / line - 1))
    assert len(off) > 20
    assert np.median(off) == pytest.approx(0.1, abs=1e-4)
    assert (
        np.mean(np.abs(np.array(off) - 0.1) < 0.01) > 0.85
    )  # where the error dips, steps a decade apart miss the edge


COARSE = signed_grid(1e-8, 1e2, 1)


def planted(
    rng: np.random.Generator,
    *,
    decades: float,
    slope: float = 3.0,
    noise: float = 0.0,
    steps: list[float] | None = None,
) -> Profile:
    """A parabola in float32 whose window at τ = 0.1 lies so many decades above its round-off limit."""
    grid = np.array([s for s in steps or signed_grid(1e-9, 1e6, 3) if s])
    limit = 2.0**-24 / slope / 0.1
    curvature = 2 * 0.1 * slope / (limit * 10**decades)
    changes = slope * grid + 0.5 * curvature * grid**2 + noise * rng.standard_normal(len(grid))
    return Profile(
        steps=grid,
        changes=changes,
        scores=np.ones(len(grid)),
        loss=1.0,
        score=1.0,
        slope=slope,
        curvature=curvature,
        dtype=torch.float32,
    )


def world(gradient: float, noise: float, spread: float = 0.4, *, curves: bool = False) -> World:
    """Runs whose windows lie so many decades above round-off, give or take `spread`, on their
    gradient and on noise.
    """

    def make(rng: np.random.Generator, run: int) -> list[Row]:
        rows: list[Row] = []
        for direction, decades in ((claims.GRADIENT, gradient), (claims.MATCHED, noise)):
            profile = planted(rng, decades=decades + spread * rng.standard_normal(), steps=COARSE)
            here = {"run": run, "task": "t", "point": "pretrained", "direction": direction}
            rows += [
                *line_rows(profile, (0.1,), here),
                *(curve_rows(profile, here) if curves else ()),
            ]
        return rows

    return make


def rule(rows: list[Row]) -> Claim:
    return claims.window(Config(), rows, "pretrained")


@pytest.mark.parametrize(("gradient", "noise"), [(1.0, 1.0), (1.0, 6.0), (6.0, 1.0), (0.3, 0.3)])
def test_a_range_of_a_decade_or_less_is_not_supported(gradient: float, noise: float) -> None:
    assert share_supported(world(gradient, noise), rule, 200) <= 0.05


@pytest.mark.parametrize(("gradient", "noise"), [(2.0, 2.0), (6.0, 3.0)])
def test_a_range_of_more_is_supported(gradient: float, noise: float) -> None:
    assert share_supported(world(gradient, noise), rule, 60) >= 0.95


def test_a_gradient_without_a_range_is_refuted_and_noise_alone_decides_nothing() -> None:
    rng = np.random.default_rng(0)

    def decided(gradient: float, noise: float) -> Claim:
        return claims.decide(Config(), [*both_points(world(gradient, noise), rng)])[0]

    assert decided(0.3, 5.0).verdict == "refuted"
    assert decided(5.0, 0.3).verdict == "inconclusive"
    claim = decided(5.0, 5.0)
    assert claim.verdict == "supported"
    assert claim.p_holm is not None
    assert claim.p_holm < 0.05
    size = 10 ** float(claim.value or 0)
    assert f"ε_τ {size:.3g} [" in claim.note
    assert "curvature predicts 1 [" in claim.note
    assert claim.note.endswith("the radius, not the verdict, is the number to use")


def both_points(made: World, rng: np.random.Generator) -> list[Row]:
    return at_both([row for run in range(6) for row in made(rng, run)])


def at_both(rows: list[Row]) -> list[Row]:
    return rows + [dataclasses.replace(r, context={**r.context, "point": "damaged"}) for r in rows]


def test_the_verdict_of_a_real_run_has_no_interval(part: Part) -> None:
    found = claims.decide(TINY, part.rows)
    assert [c.setting for c in found] == ["sequences-small, θ₀", "sequences-small, θ_D"]
    assert all(c.verdict == "inconclusive" and c.low is None for c in found)  # one run
    assert "a task vector of the same task is" in found[0].note
    assert "the recovery by SGD is" in found[1].note
    assert "the recovery by AdamW is" in found[1].note


def test_planted_windows_come_out_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    rows = list(line_rows(planted(rng, decades=4.0), (0.1, 0.5), {"run": 0}))
    assert number(rows, "window_width", tolerance=0.1) == pytest.approx(4.0, abs=1e-3)
    assert number(rows, "log10_limit", tolerance=0.5) == pytest.approx(
        math.log10(2.0**-24)
    )  # not floor/τ, which is less
    wider = math.log10(5) + math.log10(2.0**-24 / 3.0 / 0.1 / 2.0**-24)
    assert number(rows, "window_width", tolerance=0.5) == pytest.approx(4.0 + wider, abs=1e-3)
    assert number(rows, "log10_prediction_ratio", tolerance=0.1) == pytest.approx(0.0, abs=1e-3)
    assert number(rows, "window_open", tolerance=0.1) == 0
    straight = list(line_rows(planted(rng, decades=30.0), (0.1,), {"run": 0}))
    assert one(straight, "log10_prediction_ratio", tolerance=0.1).value is None
    assert number(straight, "window_open", tolerance=0.1) == 1
    assert number(straight, "log10_window", tolerance=0.1, sign="both") == 6
    bent = list(line_rows(planted(rng, decades=-2.0), (0.1,), {"run": 0}))
    assert one(bent, "log10_window", tolerance=0.1, sign="both").value is None
    assert number(bent, "window_width", tolerance=0.1) == 0


def test_scatter_raises_the_limit_and_leaves_the_window() -> None:
    quiet, loud = (
        list(line_rows(planted(np.random.default_rng(1), decades=5.0, noise=n), (0.1,), {"run": 0}))
        for n in (0.0, 1e-6)
    )
    sizes = [number(rows, "log10_window", tolerance=0.1, sign="both") for rows in (quiet, loud)]
    assert sizes[1] == pytest.approx(sizes[0], abs=0.05)
    assert number(loud, "log10_limit") > number(quiet, "log10_limit") + 0.5


def test_pairs_that_add_up_and_pairs_that_do_not() -> None:
    rng = np.random.default_rng(0)
    first, second = planted(rng, decades=5.0), planted(rng, decades=4.0, slope=1.0)
    for mixed in (1e-3, 50.0):
        both = first.changes + second.changes + mixed * first.steps**2
        rows = list(pair_rows(first.steps, both, (first, second), mixed, (0.01,), {"run": 0}))
        window = one(rows, "log10_additivity_window")
        if mixed > 1:
            assert window.value == pytest.approx(window.null, abs=0.02)
        assert number(rows, "additivity_open") == (mixed < 1 and window.value == 6)


def text(rows: list[Row], config: Config) -> str:
    kept = [
        dataclasses.replace(r, low=None, high=None)
        if r.low is not None and math.isinf(r.low)
        else r
        for r in [*rows, *summaries(rows)]
    ]  # as a record writes them
    sections = page.sections(kept, dataclasses.asdict(config))
    assert all(figure.svg.startswith("<?xml") for s in sections for figure in s.figures)
    lines = [line for s in sections for line in s.sees]
    for table in (t for s in sections for t in s.tables):
        assert all(len(row) == len(table.header) for row in table.rows)
        lines += [" | ".join(row) for row in table.rows]
    return "\n".join(lines)


@pytest.mark.parametrize("kind", ["part", "by_lora"])
def test_the_page_says_what_the_rows_say(kind: str, request: pytest.FixtureRequest) -> None:
    found: Part = request.getfixturevalue(kind)
    rows, said = list(found.rows), text(list(found.rows), TINY if kind == "part" else BY_LORA)
    window = 10 ** number(
        rows, "log10_window", point="damaged", direction="gradient", tolerance=0.1, sign="both"
    )
    assert f"gradient at θ_D | {window:.3g} (no interval) | " in said
    for direction in AT_DAMAGE:
        wide = 10 ** number(
            rows, "log10_window", point="damaged", direction=direction, tolerance=0.5, sign="both"
        )
        (row,) = [line for line in said.splitlines() if line.startswith(f"{direction} at θ_D | ")]
        assert f"{wide:.3g} (no interval)" in row
    assert "evaluated in float64, on 12 examples that no training saw" in said
    assert "Recovery, AdamW at θ_D: ‖δ‖/‖θ‖ = " in said
    assert "Two task vectors at θ₀: they add up to within τ = 0.1 until ε = " in said
    assert "nan" not in said


def test_windows_that_are_not_there_or_not_closed_are_said_so() -> None:
    def made(decades: float) -> str:
        rows = both_points(world(decades, decades, curves=True), np.random.default_rng(0))
        return text(rows, dataclasses.replace(TINY, tolerances=(0.1,)))

    bent = made(-2.0)
    assert "Gradient at θ₀: no window above round-off (ε = " in bent
    assert "gradient at θ₀ | none above round-off | none | none | " in bent
    opened = made(12.0)
    assert "Gradient at θ₀: in 6 of 6 runs the window reaches beyond the last step tried." in opened
    assert "gradient at θ₀ | ≥ " in opened
    assert "up to ε = ≥ " in opened
    assert "(not closed within the steps tried)" in opened


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
def test_every_profile_can_be_run(profile: Any) -> None:
    for config in settings(profile):
        assert config.checked().profile == profile
        assert config.precision == ("float64" if config.data is None else "float32")
    assert len({config.entry for config in settings(profile)}) == len(settings(profile))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smallest": 0.0}, r"0 < smallest < largest, found 0\.0 and 1\.0"),
        (
            {"smallest": 2.0},
            r"0 < smallest < largest, found 2\.0 and 1\.0: change --smallest or --largest",
        ),
        ({"tolerances": ()}, r"tolerances between 0 and 1, found \[\]"),
        (
            {"tolerances": (0.1, 1.0)},
            r"tolerances between 0 and 1, found \[0\.1, 1\.0\]: change --tolerances",
        ),
        ({"curvature_chunk": 0}, "curvature-chunk of at least 1, found 0"),
        ({"per_decade": 0}, "per-decade of at least 1, found 0"),
        ({"k": 300}, r"k from 1 to T = 200, found \[300\]"),
        (
            {"prefix_vectors": (1, 11)},
            r"prefix-vectors from 1 to k = 10, found \[1, 11\]: change --prefix-vectors or raise "
            r"--k",
        ),
        ({"hessian_directions": 0}, "hessian-directions of at least 1, found 0"),
        (
            {"dtype": "auto"},
            "float32 or float64, whose round-off leaves a window to be seen, found --dtype auto",
        ),
        (
            {"dtype": "bfloat16", "space": "lora"},
            "float32 or float64, whose round-off leaves a window",
        ),
        ({"window_examples": 0}, "window-examples of at least 1, found 0"),
    ],
)
def test_bad_settings_are_named_with_their_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        dataclasses.replace(Config(), **change).checked()


def test_too_few_examples_are_refused_before_anything_is_taught(trained: Problem) -> None:
    wanted = dataclasses.replace(TINY, window_examples=10_000)
    with pytest.raises(
        LoclinError,
        match=r"at least 10000 examples of .* in the test split, found .* lower --window-examples",
    ):
        experiment.run_one(wanted, 0, silent)


def test_the_numbers_of_a_run_are_in_the_table_of_runs(part: Part) -> None:
    widths = by_run(
        part.rows,
        "window_width",
        point="pretrained",
        direction="gradient",
        tolerance=0.1,
        sign="both",
    )
    assert widths.shape == (1,)
