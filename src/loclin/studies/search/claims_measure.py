"""One independent run of the claims about random search: searches around the damaged and the
halfway point (measures §10, §11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from loclin.geometry.krylov import Product
from loclin.geometry.subspace import Subspace
from loclin.progress import ProgressCallback
from loclin.run.rows import Part, Row
from loclin.run.runner import Session
from loclin.search.local_law import LocalLaw, second_order
from loclin.search.noise import Noise
from loclin.seeds import derived
from loclin.studies.context import Requirements, make_context
from loclin.studies.damage import damage
from loclin.studies.search import claims_names as names
from loclin.studies.search.claims_data import (
    RecoveryPath,
    SearchData,
    SearchRun,
    recover,
    score_of,
    search_data,
)
from loclin.studies.search.claims_settings import SearchClaimsSettings
from loclin.studies.search.law_rows import error_rows, noise_rows, point_rows, sweep
from loclin.studies.search.point import PointContext
from loclin.studies.search.relations import Plane, relation_rows
from loclin.studies.search.subspaces import search_spaces, space_rows, static_plane, subspaces
from loclin.studies.search.votes import table_rows

Keep = Callable[[str, np.ndarray], None]


def measure(settings: SearchClaimsSettings, run: int, session: Session) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: noise that there is not, whatever `make_context` refuses, splits too small, a
            task that is not destroyed, a loss that is not finite.
    """
    for name in settings.noises:
        Noise.parse(name)
    progress = session.progress
    ctx = make_context(settings, run, requirements(settings), progress)
    arrays: dict[str, np.ndarray] = {}

    def keep(name: str, values: np.ndarray) -> None:
        arrays[f"{name}/{run}"] = values

    data = search_data(ctx)
    rows = [*ctx.known.rows]
    rows.append(ctx.row("dimension", float(ctx.space.dimension), space=names.ALL))
    progress("making the static plane", 0.0)
    plane, known = static_plane(ctx, data.batches), score_of(data.validate)
    rows.append(ctx.row("score", ctx.score(), point="pretrained"))
    progress("destroying the task", 0.0)
    damaged = damage(ctx, ctx.task)
    progress("training it back", 0.0)
    path = recover(ctx, data.validate, known, damaged)
    step = None if path.step is None else float(path.step)
    rows.append(Row(quantity="halfway_step", value=step, context=ctx.context))
    with ctx.space.restored():
        ctx.space.write(damaged)
        rows += _at_damaged(ctx, data, path, plane, progress, keep)
        ctx.space.write(path.halfway)
        rows += _at_halfway(ctx, data, plane, progress, keep)
    return Part(rows=rows, arrays=arrays, notes=(*ctx.notes, *_notes(ctx, path)))


def requirements(settings: SearchClaimsSettings) -> Requirements:
    """What the study asks of data and memory."""
    gradients = settings.select_examples + settings.gradients * settings.gradient_batch
    recovering = max(settings.select_examples, settings.batch)
    vectors = 8 * settings.k + settings.gradients + 8  # seven bases, gradients, points
    return Requirements(
        examples={
            "gradients": (gradients, "--select-examples, --gradients or --gradient-batch"),
            "recovery": (recovering, "--select-examples or --batch"),
            "damage": (settings.batch, "--batch"),
        },
        vectors=(vectors, "--k or --gradients"),
        rows=(settings.steps, "updates"),
    )


def _notes(ctx: SearchRun, path: RecoveryPath) -> Iterator[str]:
    if path.step is None:
        yield (
            f"in a run half of the score on {ctx.task} was not back after {ctx.settings.steps} "
            "steps: the halfway point is the end"
        )
    if ctx.settings.products == "finite differences":
        yield "curvature is taken by finite differences of gradients, a fallback"


@contextmanager
def _standing(
    ctx: SearchRun, data: SearchData, point: str, progress: ProgressCallback, keep: Keep
) -> Iterator[tuple[PointContext, Product]]:
    """The point where the space stands, and v ↦ Hv of the scored loss until something moves."""
    settings, space, loss = ctx.settings, ctx.space, data.select.loss
    progress("measuring the curvature", 0.0)
    scored = list(data.select.fold(0))
    gradient, recovery_gradient = (space.gradient(loss, of) for of in (scored, data.recovery))
    with second_order(ctx.problem, space, loss, scored, settings.method) as product:
        seed = derived(ctx.seed, "curvature", point)
        here = PointContext(
            ctx=ctx,
            eval_set=data.select,
            point=point,
            gradient=gradient,
            recovery_gradient=recovery_gradient,
            law=LocalLaw.by_probes(
                product, gradient, settings.probes, seed=seed, noise=space.noise
            ),
            progress=progress,
            keep=keep,
        )
        yield here, product


def _at_damaged(
    ctx: SearchRun,
    data: SearchData,
    path: RecoveryPath,
    plane: Subspace,
    progress: ProgressCallback,
    keep: Keep,
) -> list[Row]:
    """All products before anything moves; then the searches."""
    settings, folded = ctx.settings, None
    made = subspaces(ctx, data, path.prefix, plane)
    with _standing(ctx, data, "damaged", progress, keep) as (here, product):
        spaces = search_spaces(here, made, product)
        if names.TIED in settings.noises:
            seed, probes = derived(ctx.seed, "curvature", "damaged"), settings.probes
            folded = LocalLaw.of_tied_noise(product, ctx.space, here.gradient, probes, seed=seed)
    del product  # with the graph that it keeps
    swept_rows, swept = sweep(here, settings.candidates)
    rows = [*point_rows(here), *swept_rows, *space_rows(here, spaces)]
    rows += error_rows(here, rows, names.OVER_SPACES)
    rows += noise_rows(here, folded)
    traces = {where.name: where.law.trace for where in spaces}
    shown = {
        names.STATIC: plane,
        names.GRADIENTS: made[names.GRADIENTS],
        names.RANDOM: made[names.RANDOM],
    }
    planes = {name: Plane(space=of, trace=traces[name]) for name, of in shown.items()}
    return [*rows, *relation_rows(here, swept, planes, each=True)]


def _at_halfway(
    ctx: SearchRun, data: SearchData, plane: Subspace, progress: ProgressCallback, keep: Keep
) -> list[Row]:
    """The law again, and the table."""
    with _standing(ctx, data, "halfway", progress, keep) as (here, product):
        del product  # with the graph that it keeps
    swept_rows, swept = sweep(here, ctx.settings.others)
    relations = relation_rows(here, swept, {names.STATIC: Plane(space=plane)}, each=False)
    return [*point_rows(here), *swept_rows, *relations, *table_rows(here, swept, data.test)]
