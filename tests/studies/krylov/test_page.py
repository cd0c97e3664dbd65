"""Claims and page of real runs say what the rows say."""

import dataclasses
from dataclasses import replace

import pytest

from loclin.report.words import number
from loclin.run.rows import Claim, Part, Row, by_run, summaries
from loclin.stats import over_models
from loclin.studies.krylov.claims import decide
from loclin.studies.krylov.names import KRYLOV
from loclin.studies.krylov.page import sections
from loclin.studies.krylov.settings import KrylovSettings
from loclin.studies.names import OPTIMISERS
from tests.studies.krylov.conftest import LORA, TINY

FIGURES = {
    "krylov-capture-sgd", "krylov-capture-adamw", "krylov-until-sgd", "krylov-until-adamw",
    "krylov-descent", "krylov-bound", "krylov-spectrum",
}  # fmt: skip


def claim_of(rows: list[Row], optimiser: str, settings: KrylovSettings) -> Claim:
    label = OPTIMISERS[optimiser]
    return next(c for c in decide(settings, rows) if c.setting.endswith(label))


def several(part: Part) -> list[Row]:
    """Three runs that differ a little, made from one."""
    return [
        replace(
            r,
            value=None if r.value is None else r.value * (1 - 0.01 * run),
            context={**r.context, "run": run},
        )
        for run in range(3)
        for r in part.rows
    ]


@pytest.mark.parametrize("kind", ["part", "lora_part"])
def test_claims_and_page_say_what_the_rows_say(kind: str, request: pytest.FixtureRequest) -> None:
    part = request.getfixturevalue(kind)
    settings = replace(TINY if kind == "part" else LORA, seeds=3)
    rows = several(part)
    sgd, adamw = (claim_of(rows, optimiser, settings) for optimiser in ("sgd", "adamw"))
    here = {"optimiser": "sgd", "basis": KRYLOV, "k": 2, "of": "displacement"}
    held = by_run(rows, "basis_capture", space=settings.spaces[0], **here)
    assert sgd.value == pytest.approx(over_models(held, settings.models, "logit").value)
    assert "the premise of the bound for stopped descent, in" in sgd.note
    assert "AdamW's own space" in adamw.note
    assert ("d in ΔW" in sgd.measured) == (kind == "lora_part")
    kept = [*rows, *summaries(rows, settings.models, settings.scales)]
    made = sections(kept, dataclasses.asdict(settings))
    figures = [figure for section in made for figure in section.figures]
    assert {figure.name for figure in figures} == FIGURES
    assert all(figure.svg.startswith("<?xml") for figure in figures)
    text = "\n".join(line for section in made for line in section.sees)
    assert f"{number(sgd.value)} [" in made[0].sees[0]
    assert "not defined" not in text
    assert ("factors A and B" in text) == (kind == "lora_part")


def test_products_by_finite_differences_are_named(part: Part) -> None:
    rows, settings = several(part), replace(TINY, products="finite differences")
    made = sections([*rows, *summaries(rows)], dataclasses.asdict(settings))
    assert "finite differences" in made[-1].sees[-1]
    assert "finite differences" in claim_of(rows, "sgd", settings).note
