"""The page of a run: its figures by name, its headings, and numbers that stand in the rows."""

import dataclasses

import pytest

from loclin.report.words import number
from loclin.run.rows import Part, summaries
from loclin.studies.recovery.page import sections
from tests.rows import value
from tests.studies.recovery.conftest import LORA, TINY

FIGURES = {
    "recovery-course", "prefix-capture-sgd", "prefix-capture-adamw", "future-capture-sgd",
    "future-capture-adamw", "static-capture-sgd", "static-capture-adamw", "drift-rho",
    "drift-overlap", "projected-bases", "projected-prefix", "capture-score", "capture-score-runs",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["part", "lora_part"])
def test_the_page_says_what_the_rows_say(kind: str, request: pytest.FixtureRequest) -> None:
    part: Part = request.getfixturevalue(kind)
    settings = TINY if kind == "part" else LORA
    model = "sequences" if kind == "part" else "mine"
    made = sections(
        [*part.rows, *summaries(part.rows, 1, settings.scales)],
        {**dataclasses.asdict(settings), "model": model},
    )
    figures = [figure for section in made for figure in section.figures]
    assert {figure.name for figure in figures} == FIGURES
    assert all(figure.svg.startswith("<?xml") for figure in figures)
    prefix, fixed = made[1], made[2]
    assert len(prefix.follows) == (0 if kind == "part" else 2)  # for a model of one's own
    for optimiser, label in (("sgd", "SGD"), ("adamw", "AdamW")):
        here = {"optimiser": optimiser, "k": 3, "space": settings.spaces[0], "run": 0}
        held = number(value(part.rows, "prefix_capture", **here))
        (line,) = [s for s in prefix.sees if s.startswith(f"{label}, k = 3")]
        assert held in line
        follows = f"By {label} the directions of the first 3 updates hold {held} "
        assert any(s.startswith(follows) for s in prefix.follows) == (model == "mine")
        (line,) = [s for s in fixed.sees if s.startswith(f"{label}, k = 3")]
        for basis in ("task vectors", "random"):
            capture = value(part.rows, "basis_capture", basis=basis, of="displacement", **here)
            assert f"{basis} {number(capture)}" in line
    assert ("ΔW" in prefix.question) == (kind == "lora_part")
    assert any("factors" in s for s in prefix.sees) == (kind == "lora_part")
    assert part.rows[0].context["task"] in made[0].sees[0]
