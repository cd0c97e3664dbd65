"""What a model knows of its tasks comes first: its rows, and which tasks may be destroyed (measures
§16).
"""

from __future__ import annotations

from dataclasses import dataclass

from loclin.models.problem import Problem
from loclin.models.zero_shot import ZeroShot
from loclin.progress import ProgressCallback, silent
from loclin.run.rows import Row, estimated, finite
from loclin.search.splits import learned
from loclin.studies.kept_points import kept_zero_shot
from loclin.studies.names import AREA, BLIND, KNOWN, MASS, ZERO_SHOT
from loclin.studies.settings import ModelSettings


@dataclass(frozen=True, kw_only=True)
class Known:
    """What one run found; nothing where a built-in model is asked what it was made from.

    Attributes:
        tasks: those that the model knows, in order.
    """

    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()


def known(
    problem: Problem,
    settings: ModelSettings,
    run: int | None = None,
    *,
    progress: ProgressCallback = silent,
) -> Known:
    """Ask a model as it was loaded. The numbers are noted in the first run alone."""
    if learned(settings.model, settings.data):
        return Known(tasks=problem.tasks)
    found = kept_zero_shot(problem, settings.seed + (run or 0), progress)
    tasks = tuple(z.task for z in found if z.known)
    scores = ", ".join(f"{z.score.value:.2f} on {z.task} ({z.blind:.2f} blindly)" for z in found)
    notes = [f"zero-shot, before anything is trained: {scores}"] if not run else []
    rows = tuple(row for z in found for row in _rows(z, run))
    return Known(rows=rows, notes=tuple(notes), tasks=tasks)


def _rows(z: ZeroShot, run: int | None) -> list[Row]:
    here = {"of": z.task} if run is None else {"run": run, "of": z.task}
    return [
        estimated(ZERO_SHOT, z.score, here, null=z.guessing),
        Row(quantity=BLIND, value=z.blind, context=here),
        Row(quantity=AREA, value=finite(z.auc), null=0.5, context=here),
        Row(quantity=MASS, value=finite(z.mass), context=here),
        Row(quantity=KNOWN, value=float(z.known), context=here),
    ]
