"""What a model knows of its tasks on a page, before what a study says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loclin.report.page import Sections
from loclin.report.section import Missing, Section, Table
from loclin.report.words import estimate_text, number
from loclin.run.rows import Row
from loclin.studies.names import AREA, BLIND, KNOWN, MASS, ZERO_SHOT


def with_known(sections: Sections) -> Sections:
    """What the model knows before a study's own sections, which see none of its rows."""
    own = (ZERO_SHOT, BLIND, AREA, MASS, KNOWN)

    def every(
        rows: Sequence[Row], settings: Mapping[str, Any], skip: Missing = ()
    ) -> list[Section]:
        others = [r for r in rows if r.quantity not in own]
        return [*section(rows), *sections(others, settings, skip)]

    return every


def section(rows: Sequence[Row]) -> list[Section]:
    """The table of the first run, before everything else; none where nothing was asked."""
    asked = [r for r in rows if r.quantity == ZERO_SHOT]
    first = [r for r in asked if r.context.get("run") == 0] or asked
    if not first:
        return []
    cells, unknown = [], []
    for row in first:
        there = {r.quantity: r.value for r in rows if r.context == row.context}
        unknown += [] if there[KNOWN] else [row.context["of"]]
        score = estimate_text(row.value, row.low, row.high)
        texts = map(number, (row.null, *(there[quantity] for quantity in (BLIND, AREA, MASS))))
        words = (f"{row.n}", "yes" if there[KNOWN] else "no")
        cells.append((row.context["of"], score, *texts, *words))
    header = ("task", "score", "guessing", "blind", "AUC", "mass", "n", "known")
    caption = (
        "Zero-shot, on n examples of the train split: score with its 95 % interval over groups; "
        "score of a uniform guess; the best without reading (blind), of guessing or always the "
        "commonest answer; area under the curve of the options' log-odds; mean probability of all "
        "options together. Known: clearly above the best without reading, its interval too."
    )
    sees = [f"Not known without teaching: {', '.join(unknown)}."] if unknown else []
    return [
        Section(
            title="What the model knows",
            question="How well are the tasks answered before anything is trained or added?",
            figures=[],
            sees=sees,
            tables=[Table(caption=caption, header=header, rows=cells)],
            brief=True,
        )
    ]
