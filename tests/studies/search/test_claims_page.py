import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from loclin.run.rows import Part, Row, by_run, summaries
from loclin.studies.search import claims, claims_page
from tests.studies.search.claims_small import LORA, TINY


def several(part: Part) -> list[Row]:
    """Three runs that differ a little, made from one."""
    rng = np.random.default_rng(0)
    return [
        replace(
            r, value=None if r.value is None else r.value * luck, context={**r.context, "run": run}
        )
        for run in range(3)
        for r, luck in zip(part.rows, 1 + 0.01 * rng.standard_normal(len(part.rows)), strict=True)
    ]


@pytest.mark.parametrize("kind", ["part", "lora_part"])
def test_claims_and_page_say_what_the_rows_say(kind: str, request: pytest.FixtureRequest) -> None:
    part, settings = request.getfixturevalue(kind), TINY if kind == "part" else LORA
    rows = several(part)
    decided = {c.id + c.setting[-3:]: c for c in claims.decide(settings, rows)}
    assert len(decided) == 6
    law = decided["best-of-n-lawθ_D"]
    assert law.value == pytest.approx(
        by_run(rows, "law_error", point="damaged", over="sizes").mean()
    )
    assert all(c.p_holm is not None for c in decided.values())
    kept = [*rows, *summaries(rows)]
    sections = claims_page.sections(kept, dataclasses.asdict(settings))
    assert [len(s.figures) for s in sections] == [4, 2, 3, 2, 2]
    assert all(figure.svg.startswith("<?xml") for s in sections for figure in s.figures)
    text = "\n".join(line for s in sections for line in s.sees)
    assert f"gains within {law.value:.3g} [" in text
    assert "the best candidate" in text
    assert "not defined in score" not in text
