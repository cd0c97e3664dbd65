"""One independent run of the recovery study: destroy a task, fix bases, train it back, measure the
way (measures §1-5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from loclin.geometry.gramian import cross_capture, prefix_capture
from loclin.geometry.subspace import Subspace
from loclin.run.rows import Part, Row
from loclin.run.runner import Session
from loclin.seeds import derived
from loclin.studies.captures import family_rows, prefix_rows
from loclin.studies.context import Requirements, RunContext, make_context
from loclin.studies.damage import damage, destroyed, recovery
from loclin.studies.families import Family, products, steps_family
from loclin.studies.names import PREFIX
from loclin.studies.recovery.bases import control_families, static_families
from loclin.studies.recovery.drift import DriftMeter
from loclin.studies.recovery.names import FULL
from loclin.studies.recovery.settings import RecoverySettings
from loclin.training import Trajectory, make_optimiser, minibatches, train

#: Capture of d by a basis, by the basis, its size and the space.
Captured = dict[tuple[str, int], dict[str, float]]


def measure(settings: RecoverySettings, run: int, session: Session) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: whatever `make_context` refuses, a task that is not destroyed, a loss that is
            not finite.
    """
    ctx = make_context(settings, run, requirements(settings), session.progress)
    session.progress("destroying the task", 0.0)
    start, rows = destroyed(ctx, ctx.problem.tasks)
    damaged = {ctx.task: start} | ({ctx.other: damage(ctx, ctx.other)} if ctx.other else {})
    session.progress("fixing bases beforehand", 0.25)
    statics = dict(static_families(ctx, start))
    with ctx.space.restored():
        ctx.space.write(start)
        meter = DriftMeter(ctx)
    arrays: dict[str, np.ndarray] = {}
    for done, optimiser in enumerate(settings.learning_rates()):
        session.progress(f"training it back with {optimiser}", 0.5 + done / 4)
        more, found = _recovered(ctx, optimiser, damaged, statics, meter)
        rows += more
        arrays |= {f"{key}/{run}": value for key, value in found.items()}
    return Part(rows=rows, arrays=arrays, notes=ctx.notes)


def requirements(settings: RecoverySettings) -> Requirements:
    """What the study asks of data and memory."""
    gradients = 2 * settings.gradients * settings.gradient_batch
    return Requirements(
        examples={
            "gradients": (gradients, "--gradients or --gradient-batch"),
            "recovery": (settings.batch, "--batch"),
            "damage": (settings.batch, "--batch"),
        },
        vectors=(
            4 * settings.head + 2 * settings.gradients + 5 * settings.k,
            "--ks and --gradients",
        ),
        rows=(settings.steps, "updates"),
    )


def _recovered(
    ctx: RunContext[RecoverySettings],
    optimiser: str,
    damaged: Mapping[str, Tensor],
    statics: Mapping[str, Family],
    meter: DriftMeter,
) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Train the task back from θ_D with one optimiser; hold the way against everything else."""
    settings, start = ctx.settings, damaged[ctx.task]
    context = {**ctx.context, "optimiser": optimiser}
    rows = [meter.floor_row(context)]

    def watch(t: int) -> None:
        if t in settings.times or t == settings.steps:
            there = {"optimiser": optimiser, "point": "recovery", "t": t, "on": ctx.task}
            rows.append(ctx.row("score", ctx.score(), **there))
        if t in settings.times:
            rows.extend(meter.rows(t, context))

    steps, head = settings.steps, settings.head
    real = recovery(
        ctx, optimiser, ctx.task, start, steps, order="recovery", head=head, after_step=watch
    )
    way = steps_family(ctx, real)
    updates, shuffle = products(ctx, way), derived(ctx.seed, "shuffle")
    for space, gram in updates.items():
        ks, here, size = settings.all_ks, {**context, "space": space}, ctx.dimension(space)
        rows += prefix_rows(gram, ks, size, settings.shuffles, here, seed=shuffle)
    families = {**statics, **dict(control_families(ctx, optimiser, damaged, real))}
    captured = _prefix_captured(updates, settings.project_ks)
    for name, family in families.items():
        own, cross = products(ctx, family), products(ctx, family, way)
        captured[name, settings.k] = {}
        for space, gram in updates.items():
            here, held = {**context, "basis": name, "space": space}, (own[space], cross[space])
            rows += family_rows(*held, gram, settings.ks, ctx.dimension(space), here)
            captured[name, settings.k][space] = cross_capture(*held, gram, [settings.k])[0]
    rows += _reset_rows(ctx, optimiser, start, context)
    rows += _confined_rows(ctx, optimiser, real, families, captured, context)
    arrays = {f"update_gramian/{space}/{optimiser}": gram for space, gram in updates.items()}
    return rows, {**arrays, f"losses/{optimiser}": real.losses.double().cpu().numpy()}


def _prefix_captured(updates: Mapping[str, np.ndarray], ks: tuple[int, ...]) -> Captured:
    return {
        (PREFIX, k): {s: float(prefix_capture(gram, [k])[0]) for s, gram in updates.items()}
        for k in ks
    }


def _reset_rows(
    ctx: RunContext[RecoverySettings], optimiser: str, start: Tensor, context: Mapping[str, Any]
) -> Iterator[Row]:
    """Captures of a recovery whose optimiser forgets its state at step k, same data order. Plain
    SGD has no state to forget.
    """
    if optimiser == "sgd":
        return
    k, head, steps = ctx.settings.k, ctx.settings.head, ctx.settings.steps
    reset = recovery(
        ctx, optimiser, ctx.task, start, steps, order="recovery", head=head, reset_at=k
    )
    for space, gram in products(ctx, steps_family(ctx, reset)).items():
        here = {**context, "reset_at": k, "space": space}
        for row in prefix_rows(gram, (k,), ctx.dimension(space), 1, here, seed=0):
            if row.quantity in ("prefix_capture", "future_capture"):
                yield replace(row, quantity=f"reset_{row.quantity}", p=None)


def _confined_rows(
    ctx: RunContext[RecoverySettings],
    optimiser: str,
    real: Trajectory,
    families: Mapping[str, Family],
    captured: Captured,
    context: Mapping[str, Any],
) -> Iterator[Row]:
    """Score regained when every update is confined to a basis, at equal steps (measures §3).

    The data order is a new one: the steps that made the prefix are not simply taken again. With
    LoRA the factors are confined.
    """
    full = _confined_score(ctx, optimiser, real.start, None)
    here = {**context, "basis": FULL}
    yield Row(quantity="regained_score", value=full, null=full, context=here)
    for space in ctx.settings.spaces:
        there = {**here, "space": space}
        yield Row(quantity="regained_by_capture", value=1.0, context=there)
    for (name, k), shares in captured.items():
        basis = (real.head if name == PREFIX else families[name].exact)[:k]
        score = _confined_score(ctx, optimiser, real.start, basis)
        here = {**context, "basis": name, "k": k}
        yield Row(quantity="regained_score", value=score, null=full, context=here)
        for space, share in shares.items():
            there = {**here, "space": space}
            yield Row(quantity="regained_by_capture", value=share, context=there)


def _confined_score(
    ctx: RunContext[RecoverySettings], optimiser: str, start: Tensor, spanning: Tensor | None
) -> float:
    settings, space = ctx.settings, ctx.space
    basis = None if spanning is None else Subspace.spanned_by(spanning.to(start.device))
    data, seed = ctx.problem.batch("recovery", ctx.task), derived(ctx.seed, "order", "projected")
    with space.restored():
        space.write(start)
        train(
            ctx.problem.model,
            space,
            minibatches(data, settings.batch, seed=seed),
            make_optimiser(optimiser, space, settings.learning_rates(ctx.run)[optimiser]),  # type: ignore[arg-type]
            settings.project_steps,
            confine_to=basis,
            dropout_seed=ctx.dropout("projected"),
        )
        return ctx.score()
