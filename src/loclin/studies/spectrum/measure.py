"""One independent run of the spectrum study: gradients of every task at θ₀ and at θ_D, and what
they share (measures §5, §6).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loclin.geometry.gramian import gramian
from loclin.run.rows import Part, Row
from loclin.run.runner import Session
from loclin.seeds import derived
from loclin.studies.context import Requirements, RunContext, make_context
from loclin.studies.damage import damage
from loclin.studies.directions import disjoint_batches
from loclin.studies.names import points
from loclin.studies.spectrum.gradients import Gradients, controls, gather, tensor_gramians
from loclin.studies.spectrum.names import PER_TENSOR
from loclin.studies.spectrum.rows import (
    crossfit_rows,
    layer_rows,
    overlap_rows,
    rank_rows,
    spectrum_rows,
)
from loclin.studies.spectrum.settings import SpectrumSettings
from loclin.tasks.batch import Batch

SHOWN = 64  # shares of a spectrum that the record keeps
Sets = dict[str, tuple[slice, slice]]


def measure(settings: SpectrumSettings, run: int, session: Session) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: whatever `make_context` refuses, a task that is not destroyed, a loss that is
            not finite.
    """
    progress = session.progress
    ctx = make_context(settings, run, requirements(settings), progress, session.kept)
    rows: list[Row] = [*ctx.known.rows, ctx.row("dimension", float(ctx.space.dimension))]
    arrays: dict[str, np.ndarray] = {}
    batches, sets, notes = _batches(ctx)
    model, space, storage = ctx.problem.model, ctx.space, ctx.storage
    for point in points(untouched=settings.untouched):
        with space.restored():
            if point == "damaged":
                progress("destroying the task", 0.0)
                space.write(damage(ctx, ctx.task))
            stage = f"gradients at the {point} point"
            gradients = gather(model, space, storage, batches, progress=progress, stage=stage)
        more, grams = _rows(ctx, gradients, sets, {**ctx.context, "point": point})
        rows += more
        arrays |= {f"{name}/{point}/{run}": gram for name, gram in grams.items()}
    return Part(rows=rows, arrays=arrays, notes=(*ctx.notes, *notes))


def requirements(settings: SpectrumSettings) -> Requirements:
    """What the study asks of data and memory: points and gradients in hand, beside those kept."""
    count = max(*settings.counts, 2 * settings.overlap_gradients)
    options = "--counts, --overlap-gradients or --gradient-batch"
    return Requirements(
        examples={
            "gradients": (count * settings.gradient_batch, options),
            "damage": (settings.batch, "--batch"),
        },
        vectors=(6, "--space"),
        rows=(count, "gradients"),
    )


def _batches(ctx: RunContext[SpectrumSettings]) -> tuple[list[Batch], Sets, list[str]]:
    """Batches of the run's task, then two sets of every other task; where the sets of each task
    are; what is left out.
    """
    settings, problem, n = ctx.settings, ctx.problem, ctx.settings.overlap_gradients
    batches, sets, short = list[Batch](), Sets(), list[str]()
    for task in (ctx.task, *(t for t in problem.tasks if t != ctx.task)):
        count = max(*settings.counts, 2 * n) if task == ctx.task else 2 * n
        if len(problem.examples["gradients"][task]) < count * settings.gradient_batch:
            short.append(task)
            continue
        start, seed = len(batches), derived(ctx.seed, "ranks", task)
        sets[task] = (slice(start, start + n), slice(start + n, start + 2 * n))
        data = problem.batch("gradients", task)
        batches += disjoint_batches(data, settings.gradient_batch, count, seed=seed)
    text = f"too few examples for two sets of {n} gradients, left out of the overlaps: "
    notes = [text + ", ".join(short)] if short else []
    return batches, {task: sets[task] for task in problem.tasks if task in sets}, notes


def _rows(
    ctx: RunContext[SpectrumSettings], gradients: Gradients, sets: Sets, context: dict[str, Any]
) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Rows of one point, and the Gramians of the run's task and of its controls."""
    settings, n = ctx.settings, max(ctx.settings.counts)
    seed = derived(ctx.seed, "spectrum", str(context["point"]))
    random = controls(gradients, seed=seed)
    drawn = {name: gram[:n, :n] for name, gram in random.items()}
    tensors = tensor_gramians(gradients) if gradients.whole else {}
    products = np.sum(list(tensors.values()), axis=0) if tensors else gramian(gradients.rows)
    own = products[:n, :n]
    rows = list(rank_rows(own, drawn, settings.counts, context))
    rows += spectrum_rows(own, drawn, SHOWN, context)
    rows += crossfit_rows(own, drawn[PER_TENSOR], settings.ks, gradients.columns, context)
    rows += overlap_rows(products, random[PER_TENSOR], sets, settings.k, context)
    if tensors:
        within = {name: g[:n, :n] for name, g in tensors.items()}
        rows += layer_rows(gradients.first(n), within, context, seed=seed)
    grams = {f"control_gramian/{name}": gram for name, gram in drawn.items()}
    return rows, {"gradient_gramian": own, **grams}
