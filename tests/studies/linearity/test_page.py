"""The page of the linearity study holds its figures and the numbers of the rows."""

import dataclasses
import math
import re

import numpy as np
import pytest

from loclin.run.rows import Part, Row, summaries
from loclin.studies.linearity import page
from loclin.studies.linearity.rows import curve_rows, line_rows, of_defined_tasks, whole_rows
from loclin.studies.linearity.settings import LinearitySettings
from tests.studies.linearity.planted import (
    COARSE,
    at_both,
    number,
    planted,
    six_runs,
    world,
)
from tests.studies.linearity.test_measure import AT_DAMAGE


def text(rows: list[Row], settings: LinearitySettings) -> str:
    kept = [
        dataclasses.replace(r, low=None, high=None)
        if r.low is not None and math.isinf(r.low)
        else r
        for r in [*rows, *summaries(rows, scales=settings.scales)]
    ]  # as a record writes them
    sections = page.sections(kept, {**dataclasses.asdict(settings), "model": "mine"})
    assert all(figure.svg.startswith("<?xml") for s in sections for figure in s.figures)
    lines = [line for s in sections for line in (*s.follows, *s.sees)]
    for table in (t for s in sections for t in s.tables):
        assert all(len(row) == len(table.header) for row in table.rows)
        lines += [" | ".join(row) for row in table.rows]
    return "\n".join(lines)


@pytest.fixture
def single(tiny: LinearitySettings) -> LinearitySettings:
    """With one tolerance."""
    return dataclasses.replace(tiny, tolerances=(0.1,))


def test_a_step_is_safe_to_the_low_end_of_its_interval() -> None:
    here = {"point": "pretrained", "tolerance": 0.1, "direction": "gradient", "sign": "both"}
    row = Row(quantity="window", value=0.01, low=0.005, high=0.02, n=6, context=here)
    (line,) = page._safe([row], {"space": "full"}, 0.1)
    assert "safe up to ε = 0.005 of the weights' length" in line
    assert "(largest such step 0.01 [0.005, 0.02])" in line


@pytest.mark.parametrize("kind", ["part", "by_lora"])
def test_the_page_says_what_the_rows_say(kind: str, request: pytest.FixtureRequest) -> None:
    rows = list(request.getfixturevalue(kind).rows)
    settings = request.getfixturevalue("tiny" if kind == "part" else "tiny_lora")
    said = text(rows, settings)
    here = {"point": "damaged", "sign": "both"}
    window = 10 ** number(rows, "log10_window", direction="gradient", tolerance=0.1, **here)
    assert f"gradient at θ_D | {window:.3g} (no interval) | " in said
    first = {"point": "pretrained", "direction": "gradient", "tolerance": 0.1, "sign": "both"}
    safe = 10 ** number(rows, "log10_window", **first)
    moved = "factors" if kind == "by_lora" else "weights"
    assert f"A step along the gradient is safe up to ε = {safe:.3g} of the {moved}' length" in said
    assert f"(largest such step {safe:.3g} (no interval))." in said
    assert re.search(r"A task vector is \S+ \(no interval\) windows long: merged with a", said)
    for direction in AT_DAMAGE:
        wide = 10 ** number(rows, "log10_window", direction=direction, tolerance=0.5, **here)
        (row,) = [line for line in said.splitlines() if line.startswith(f"{direction} at θ_D | ")]
        assert f"{wide:.3g} (no interval)" in row
    assert "evaluated in float64, on 12 examples that no training saw" in said
    assert "Recovery, AdamW at θ_D: ‖δ‖/‖θ‖ = " in said
    assert "Two task vectors at θ₀: they add up to within τ = 0.1 until ε = " in said
    assert ("what moves are the factors A and B" in said) == (kind == "by_lora")
    assert "nan" not in said


def test_every_figure_is_drawn(part: Part, tiny: LinearitySettings) -> None:
    rows = [dataclasses.replace(r, low=None, high=None) for r in summaries(part.rows)]
    sections = page.sections(rows, dataclasses.asdict(tiny))
    names = [{figure.name for figure in section.figures} for section in sections]
    sided = [f"{q}-{p}-{s}" for q in ("error", "score") for p in ("pretrained", "damaged") for s in
             ("forward", "backward")]  # fmt: skip
    changes = [f"loss-change-{p}-forward" for p in ("pretrained", "damaged")]
    assert names == [
        {*sided, *changes},
        {"windows-pretrained", "windows-damaged"},
        {"whole"},
        {"additivity"},
    ]


def test_of_a_model_that_was_brought_nobody_knows_what_it_saw(
    part: Part, tiny: LinearitySettings
) -> None:
    said = text(list(part.rows), dataclasses.replace(tiny, data=("mine.jsonl",)))
    assert "what the model was trained on before is not known" in said


def test_a_task_without_a_window_is_counted(single: LinearitySettings) -> None:
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for run in range(4):
        rows += world(5.0, 5.0, 0.0, curves=True)(rng, run)
        for on, decades in (("a", 4.0), ("b", -2.0)):
            here = {"run": run, "task": "t", "on": on, "point": "pretrained"}
            here["direction"] = "task vector"
            profile = planted(rng, decades=decades, steps=COARSE)
            made = [*line_rows(profile, (0.1,), here), *curve_rows(profile, here)]
            made += whole_rows(profile, 0.1, (1.0, 0.5, 0.5), 0.1, here)
            rows += of_defined_tasks(made)
    said = text(at_both(rows), single)
    assert (
        "Task vector at θ₀: in 50% of the tasks of all runs there is no window above round-off; "
        "ε_τ is of the others." in said
    )
    assert (
        "(none forward in 50% of the tasks of all runs), inside in 0% of the tasks of all runs"
        in said
    )


def test_runs_without_a_window_are_counted(single: LinearitySettings) -> None:
    rng, rows = np.random.default_rng(0), list[Row]()
    for run, decades in enumerate((5.0, -2.0, 5.0, 5.0)):
        rows += world(decades, 5.0, 0.0, curves=True)(rng, run)
    assert (
        "Gradient at θ₀: in 25% of the runs there is no window above round-off; ε_τ is of the "
        "others." in text(at_both(rows), single)
    )


def test_windows_that_are_not_there_or_not_closed_are_told(single: LinearitySettings) -> None:
    bent = text(six_runs(world(-2.0, -2.0, curves=True)), single)
    assert "Gradient at θ₀: no window above round-off (ε = " in bent
    assert "gradient at θ₀ | none above round-off | none | none | " in bent
    opened = text(six_runs(world(12.0, 12.0, curves=True)), single)
    assert (
        "Gradient at θ₀: in 100% of the runs the window reaches beyond the last step tried."
        in opened
    )
    assert "gradient at θ₀ | ≥ " in opened
    assert "up to ε = ≥ " in opened
    assert "(not closed within the steps tried)" in opened
