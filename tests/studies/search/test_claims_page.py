import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from loclin.report.section import text_of
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
    assert len(decided) == 7
    law = decided["best-of-n-lawθ_D"]
    errors, alone = (
        by_run(rows, q, point="damaged", over="sizes") for q in ("law_error", "linear_error")
    )
    assert law.value == pytest.approx((errors - alone).mean())
    measured = [c for c in decided.values() if c.verdict == "measurement"]
    assert {c.id for c in measured} == {"plane-overlap-does-not", "signal-density"}
    assert all((c.p_holm is None) == (c in measured) for c in decided.values())
    kept = [*rows, *summaries(rows, scales=settings.scales)]
    sections = claims_page.sections(kept, {**dataclasses.asdict(settings), "model": "mine"})
    (follows,) = [line for s in sections for line in s.follows]
    gain = text_of(kept, "winner_gain", split="test", of="score")
    assert follows.endswith(f"of the reference σ, gains {gain} on test.")
    assert [len(s.figures) for s in sections] == [4, 2, 3, 3, 2]
    assert all(figure.svg.startswith("<?xml") for s in sections for figure in s.figures)
    text = "\n".join(line for s in sections for line in s.sees)
    assert f"the law is off by {errors.mean():.3g} [" in text
    assert f"the slope alone by {alone.mean():.3g} [" in text
    assert "the best candidate" in text
    assert "not defined in score" not in text
