"""What a model knows of its tasks comes first: rows, the page's first section, and which tasks may
be destroyed (measures §16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loclin.models.problem import Problem
from loclin.models.zero_shot import MOST, ZeroShot, zero_shot
from loclin.report.section import Section, Table
from loclin.report.words import estimate_text, number
from loclin.run.rows import Row, estimated, finite
from loclin.search.splits import learned
from loclin.studies.settings import ModelSettings

SCORE, BLIND, AREA, MASS = "zero_shot_score", "blind_score", "zero_shot_auc", "option_mass"
KNOWN = "known"


@dataclass(frozen=True, kw_only=True)
class Known:
    """What one run found; nothing where a built-in model is asked what it was made from.

    Attributes:
        tasks: those that the model knows, in order.
    """

    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()


def known(problem: Problem, settings: ModelSettings, run: int | None = None) -> Known:
    """Ask a model as it was loaded. The numbers are noted in the first run alone."""
    if learned(settings.model, settings.data):
        return Known(tasks=problem.tasks)
    found = zero_shot(problem, seed=settings.seed + (run or 0))
    tasks = tuple(z.task for z in found if z.known)
    scores = ", ".join(f"{z.score.value:.2f} on {z.task} ({z.blind:.2f} blindly)" for z in found)
    notes = [f"zero-shot, before anything is trained: {scores}"] if not run else []
    rows = tuple(row for z in found for row in _rows(z, run))
    return Known(rows=rows, notes=tuple(notes), tasks=tasks)


def _rows(z: ZeroShot, run: int | None) -> list[Row]:
    here = {"of": z.task} if run is None else {"run": run, "of": z.task}
    return [
        estimated(SCORE, z.score, here, null=z.guessing),
        Row(quantity=BLIND, value=z.blind, context=here),
        Row(quantity=AREA, value=finite(z.auc), null=0.5, context=here),
        Row(quantity=MASS, value=finite(z.mass), context=here),
        Row(quantity=KNOWN, value=float(z.known), context=here),
    ]


def section(rows: Sequence[Row]) -> list[Section]:
    """The table of the first run, before everything else; none where nothing was asked."""
    asked = [r for r in rows if r.quantity == SCORE]
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
        f"Zero-shot, on at most {MOST} examples of the train split: score with its 95 % interval "
        "over groups; of a uniform guess; the best without reading, of guessing or always the "
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
