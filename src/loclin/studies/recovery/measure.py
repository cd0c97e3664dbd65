"""One independent run of the recovery study: destroy a task, fix bases, train it back, measure the
way (measures §1-5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from loclin.geometry.gramian import cross_capture, prefix_capture
from loclin.geometry.subspace import Subspace
from loclin.run.rows import Part, Row
from loclin.run.runner import Session
from loclin.seeds import derived
from loclin.studies.captures import family_rows, prefix_rows, step_response
from loclin.studies.context import Requirements, RunContext, make_context
from loclin.studies.damage import damage, destroyed, recovery
from loclin.studies.families import Family, products, steps_family
from loclin.studies.names import PREFIX
from loclin.studies.recovery.bases import control_families, static_families
from loclin.studies.recovery.drift import DriftMeter
from loclin.studies.recovery.names import FULL, STATIC
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
    ctx = make_context(settings, run, requirements(settings), session.progress, session.kept)
    session.progress("destroying the task", 0.0)
    start, rows = destroyed(ctx, ctx.problem.tasks)
    damaged = {ctx.task: start} | ({ctx.other: damage(ctx, ctx.other)} if ctx.other else {})
    session.progress("fixing bases beforehand", 0.25)
    statics = dict(static_families(ctx, start))
    with ctx.space.restored():
        ctx.space.write(start)
        meter = DriftMeter(ctx)
    here = {"quantity": "score", "point": "damaged", "on": ctx.task}
    lost = [r.value for r in rows if here.items() <= {"quantity": r.quantity, **r.context}.items()]
    arrays = {f"damaged_score/{run}": np.array(lost, dtype=float)}
    arrays |= {f"dimension/{s}/{run}": np.array([ctx.dimension(s)]) for s in settings.spaces}
    for done, optimiser in enumerate(settings.learning_rates()):
        session.progress(f"training it back with {optimiser}", 0.5 + done / 4)
        more, found = _recovered(ctx, optimiser, damaged, statics, meter)
        rows += more
        arrays |= {f"{key}/{run}": value for key, value in found.items()}
    return Part(rows=[*ctx.known.rows, *rows], arrays=arrays, notes=ctx.notes)


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
    rows: list[Row] = []
    arrays: dict[str, np.ndarray] = {}

    def watch(t: int) -> None:
        if t in settings.times or t == settings.steps:
            there = {"optimiser": optimiser, "point": "recovery", "t": t, "on": ctx.task}
            rows.append(ctx.row("score", ctx.score(), **there))
        if t in settings.times:
            held = meter.products()
            rows.extend(meter.rows(t, held, context))
            arrays.update({f"drift_products/{optimiser}/{t}/{n}": p for n, p in held.items()})

    steps, head = settings.steps, settings.head
    real = recovery(
        ctx, optimiser, ctx.task, start, steps, order="recovery", head=head, after_step=watch
    )
    way = steps_family(ctx, real)
    updates, seed = products(ctx, way), derived(ctx.seed, "shuffle")
    response = step_response(optimiser, steps)
    for space, gram in updates.items():
        ks, here, size = settings.all_ks, {**context, "space": space}, ctx.dimension(space)
        shuffles = settings.shuffles
        rows += prefix_rows(gram, ks, size, shuffles, here, seed=seed, response=response)
        arrays[f"update_gramian/{space}/{optimiser}"] = gram
    families = {**statics, **dict(control_families(ctx, optimiser, damaged, real))}
    captured = _prefix_captured(ctx, updates)
    for name, family in families.items():
        there = {**context, "basis": name}
        more, shares, grams = _family_captures(ctx, family, way, updates, there)
        rows, captured[name, settings.k] = rows + more, shares
        arrays |= {f"{key}/{optimiser}/{name}": gram for key, gram in grams.items()}
    if ctx.run < settings.first_runs:
        rows += _reset_rows(ctx, optimiser, start, context)
    scores = _confined_scores(ctx, optimiser, real, families, captured)
    rows += _confined_rows(scores, captured, settings.spaces, context)
    for (name, k), repeats in scores.items():
        arrays[f"regained_score/{optimiser}/{name}/{k}"] = np.array(repeats)
    return rows, {**arrays, f"losses/{optimiser}": real.losses.double().cpu().numpy()}


def _family_captures(
    ctx: RunContext[RecoverySettings],
    family: Family,
    way: Family,
    updates: Mapping[str, np.ndarray],
    context: Mapping[str, Any],
) -> tuple[list[Row], dict[str, float], dict[str, np.ndarray]]:
    """Captures by a family as rows; of d by its first k directions in every space; and the inner
    products from which that of the deciding space can be computed again.
    """
    own, cross, k = products(ctx, family), products(ctx, family, way), ctx.settings.k
    rows: list[Row] = []
    shares: dict[str, float] = {}
    for space, gram in updates.items():
        here, held = {**context, "space": space}, (own[space], cross[space], gram)
        rows += family_rows(*held, ctx.settings.ks, ctx.dimension(space), here)
        shares[space] = float(cross_capture(*held, [k])[0])
    decides = ctx.settings.spaces[0]
    grams = {"basis_gramian": own[decides][:k, :k], "basis_products": cross[decides][:k]}
    return rows, shares, grams


def _prefix_captured(
    ctx: RunContext[RecoverySettings], updates: Mapping[str, np.ndarray]
) -> Captured:
    ks = ctx.settings.project_ks if ctx.run < ctx.settings.first_runs else ()
    return {
        (PREFIX, k): {s: float(prefix_capture(gram, [k])[0]) for s, gram in updates.items()}
        for k in sorted({*ks, ctx.settings.k})
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


def _confined_scores(
    ctx: RunContext[RecoverySettings],
    optimiser: str,
    real: Trajectory,
    families: Mapping[str, Family],
    captured: Captured,
) -> dict[tuple[str, int], list[float]]:
    """Score regained when every update is confined to a basis, at equal steps (measures §3); in
    several data orders where a claim is about the difference of two.

    The data orders are new ones: the steps that made the prefix are not simply taken again. With
    LoRA the factors are confined.
    """
    k, scores = ctx.settings.k, dict[tuple[str, int], list[float]]()
    for name, size in ((FULL, k), *captured):
        basis = None
        if name != FULL:
            basis = (real.head if name == PREFIX else families[name].exact)[:size]
        decides = size == k and name in (FULL, PREFIX, *STATIC)
        orders = range(ctx.settings.project_repeats if decides else 1)
        scores[name, size] = [
            _confined_score(ctx, optimiser, real.start, basis, order) for order in orders
        ]
    return scores


def _confined_rows(
    scores: Mapping[tuple[str, int], list[float]],
    captured: Captured,
    spaces: Sequence[str],
    context: Mapping[str, Any],
) -> Iterator[Row]:
    """Every basis's score beside its capture of d; unconfined training is beside them all."""
    full = {name: float(np.mean(repeats)) for (name, _), repeats in scores.items()}[FULL]
    for (name, k), repeats in scores.items():
        here = {**context, "basis": name, **({} if name == FULL else {"k": k})}
        score = float(np.mean(repeats))
        yield Row(quantity="regained_score", value=score, null=full, context=here)
        for space in spaces:
            share = 1.0 if name == FULL else captured[name, k][space]
            there = {**here, "space": space}
            yield Row(quantity="regained_by_capture", value=share, context=there)


def _confined_score(
    ctx: RunContext[RecoverySettings],
    optimiser: str,
    start: Tensor,
    spanning: Tensor | None,
    order: int,
) -> float:
    settings, space = ctx.settings, ctx.space
    basis = None if spanning is None else Subspace.spanned_by(spanning.to(start.device))
    data = ctx.problem.batch("recovery", ctx.task)
    seed = derived(ctx.seed, "order", "projected", order)
    rate = settings.learning_rates(ctx.run)[optimiser]
    with space.restored():
        space.write(start)
        train(
            ctx.problem.model,
            space,
            minibatches(data, settings.batch, seed=seed),
            make_optimiser(optimiser, space, rate),  # type: ignore[arg-type]
            settings.project_steps,
            confine_to=basis,
            dropout_seed=ctx.dropout("projected", order),
        )
        return ctx.score()
