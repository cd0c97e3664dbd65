import re

import pytest

from loclin.report.section import number_of, text_of
from loclin.run.rows import summaries
from loclin.studies.steering import claims_page as page
from loclin.studies.steering import names
from tests.studies.steering.conftest import TINY

FIGURES = ["cosine-layers", "cosine-eta", "beyond-e1", "beyond-e3", "dose", "effects",
           "two-routes", "search-layers", "frozen"]  # fmt: skip


@pytest.mark.parametrize("kind", ["rows", "paired_rows"])
def test_the_page_holds_what_the_rows_do(kind: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(kind)
    every = [*found, *summaries(found)]
    shown = page.sections(every, {**vars(TINY), "model": "mine"})
    slope = text_of(every, "slope", condition=names.CAA, at=names.MIDDLE)
    (follows,) = [line for s in shown for line in s.follows]
    assert follows.startswith("The vector from labels belongs at the output of block ")
    assert follows.endswith(f"one unit moves the logit difference by {slope}.")
    drawn = [d.name for s in shown for d in s.figures]
    assert drawn == [n for n in FIGURES if kind == "rows" or n != "beyond-e3"]
    assert not any(re.search(r"\bnan\b", line) for s in shown for line in s.sees)
    tables = {t.header[0] or "angles": t for s in shown for t in s.tables}
    assert tables.keys() == {"angles", "of", "condition"}
    assert sum(t.header[0] == "condition" for s in shown for t in s.tables) == 2
    for table in tables.values():
        assert all(len(row) == len(table.header) and "nan" not in row for row in table.rows)
    angles = {row[0]: dict(zip(tables["angles"].header, row, strict=True)) for row in
              tables["angles"].rows}  # fmt: skip
    for label, quantity, context in (
        ("cosine with CAA", "cosine_at", {"removed": names.NOTHING}),
        (names.REMOVED[names.READOUT], "cosine_at", {"removed": names.READOUT}),
        ("97.5 % of random steps without the readout", "null_at", {"null": names.BEYOND}),
        (
            "there, in whitened activations",
            "cosine_at",
            {"removed": names.WHITENED, "at": names.MIDDLE},
        ),
        ("ceiling of the cosine by both reliabilities", "ceiling_at", {}),
    ):
        assert angles[label]["E1"] == text_of(
            every, quantity, **{"of": "E1", "at": "late", **context}
        )
    share = angles["share of runs and blocks whose reliability is not above 0"]["E1"]
    assert share == number_of(every, "unreliable", of="E1", at="late") != "not defined"
    assert ("E2" in tables["angles"].header) == (kind == "rows")
    conditions = {row[0]: row[2] for row in tables["condition"].rows}
    late = {"condition": names.STEP, "at": names.CHOSEN}
    assert conditions[names.STEP] == text_of(every, "slope_ratio", **late)
    assert any("CAA with permuted labels stay below" in line for s in shown for line in s.sees)
    text = " ".join(line for s in shown for line in s.sees)
    assert ("E3 is not defined" in text) == (kind == "paired_rows")
