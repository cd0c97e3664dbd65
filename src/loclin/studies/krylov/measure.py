"""One independent run of the Krylov study: curvature at the damaged point, then the way back held
against it (measures §8, §9).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from loclin.run.rows import Part, Row
from loclin.run.runner import Session
from loclin.studies.captures import family_rows
from loclin.studies.context import Requirements, RunContext, make_context
from loclin.studies.damage import destroyed, recovery
from loclin.studies.directions import curvature_notes
from loclin.studies.families import products, steps_family
from loclin.studies.krylov.curved import Curved, curved_at
from loclin.studies.krylov.names import KRYLOV, PRECONDITIONED
from loclin.studies.krylov.rows import (
    bound_rows,
    captures_until,
    curvature_rows,
    descent_rows,
    excess_rows,
    prefix_capture_rows,
    premise_row,
    time_rows,
)
from loclin.studies.krylov.settings import KrylovSettings
from loclin.studies.names import PREFIX


def measure(settings: KrylovSettings, run: int, session: Session) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: whatever `make_context` refuses, a task that is not destroyed, a loss that is
            not finite, eigenvectors that do not converge.
    """
    ctx = make_context(settings, run, requirements(settings), session.progress, session.kept)
    session.progress("destroying the task", 0.0)
    damaged, rows = destroyed(ctx, [ctx.task])
    session.progress("measuring the curvature", 0.25)
    found = curved_at(ctx, damaged)
    rows += curvature_rows(found, settings.k, ctx.context)
    arrays = {
        f"tridiagonal/{run}": found.krylov.tridiagonal,
        f"probes/forms/{run}": found.probes.forms,
        f"probes/squares/{run}": found.probes.squares,
    }
    families = {**found.families, PRECONDITIONED: found.preconditioned}
    grams = {name: products(ctx, family) for name, family in families.items()}
    for name, of in grams.items():
        arrays |= {f"basis_gramian/{space}/{name}/{run}": g for space, g in of.items()}
    for done, optimiser in enumerate(settings.learning_rates()):
        session.progress(f"training it back with {optimiser}", 0.5 + done / 4)
        more, kept = _recovered(ctx, optimiser, damaged, found, grams)
        rows += more
        arrays |= {f"{name}/{optimiser}/{run}": array for name, array in kept.items()}
    rows = [*ctx.known.rows, *rows]
    return Part(
        rows=rows, arrays=arrays, notes=(*ctx.notes, *curvature_notes(ctx.problem, settings.method))
    )


def requirements(settings: KrylovSettings) -> Requirements:
    """What the study asks of data and memory."""
    examples, most = max(settings.curvature_examples, settings.batch), settings.most
    return Requirements(
        examples={
            "recovery": (examples, "--curvature-examples or --batch"),
            "damage": (settings.batch, "--batch"),
        },
        # five bases, the turned one of the preconditioned space, what finding eigenvectors keeps
        vectors=(6 * most + 4 * most + 5, "--ks"),
        rows=(settings.steps, "updates"),
    )


def _recovered(
    ctx: RunContext[KrylovSettings],
    optimiser: str,
    damaged: Tensor,
    found: Curved,
    grams: Mapping[str, Mapping[str, np.ndarray]],
) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Train the task back from θ_D and hold the way against every basis, of which `grams` has the
    Gramians by space.

    Returns:
        The rows; in every space the Gramian of the updates, and their inner products with bases.
    """
    settings, context, k = ctx.settings, {**ctx.context, "optimiser": optimiser}, ctx.settings.k
    rows: list[Row] = []

    def watch(t: int) -> None:
        if t == settings.steps:
            there = {"optimiser": optimiser, "point": "recovery", "t": t, "on": ctx.task}
            rows.append(ctx.row("score", ctx.score(), **there))

    steps, head = settings.steps, settings.most
    real = recovery(
        ctx, optimiser, ctx.task, damaged, steps, order="recovery", head=head, after_step=watch
    )
    way = steps_family(ctx, real)
    updates = products(ctx, way)
    arrays = {f"update_gramian/{space}": gram for space, gram in updates.items()}
    for space, gram in updates.items():
        here = {**context, "basis": PREFIX, "space": space}
        rows += prefix_capture_rows(gram, settings.ks, here)
        rows += time_rows(gram[:k, :k], gram[:k], gram, settings.times, {**here, "k": k})
    own_space = {PRECONDITIONED: found.preconditioned} if optimiser == "adamw" else {}
    for name, family in (found.families | own_space).items():
        own, cross = grams[name], products(ctx, family, way)
        for space, gram in updates.items():
            here = {**context, "basis": name, "space": space}
            basis, between = own[space], cross[space]
            arrays[f"basis_updates/{space}/{name}"] = between
            rows += family_rows(basis, between, gram, settings.ks, ctx.dimension(space), here)
            rows += time_rows(basis[:k, :k], between[:k], gram, settings.times, {**here, "k": k})
        if name == KRYLOV and optimiser == "sgd":
            trained = settings.spaces[-1]
            rows += _model_rows(ctx, found, own[trained], cross[trained], updates[trained], context)
    return rows + [e for space in updates for e in excess_rows(rows, k, context, space)], arrays


def _model_rows(
    ctx: RunContext[KrylovSettings],
    found: Curved,
    own: np.ndarray,
    cross: np.ndarray,
    updates: np.ndarray,
    context: Mapping[str, Any],
) -> Iterator[Row]:
    """What gradient descent on the quadratic model would do, in the trained coordinates, and the
    bound that holds for it.
    """
    k, times, rate = ctx.settings.k, ctx.settings.times, ctx.settings.learning_rates(ctx.run)["sgd"]
    yield from descent_rows(found.krylov, cross, updates, rate, times, context)
    captured = captures_until(own[:k, :k], cross[:k], updates, times)
    yield from bound_rows(found.krylov, captured, updates, rate, k, times, context)
    yield premise_row(found, rate, context)
