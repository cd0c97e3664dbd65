"""One independent run of the steering claims: labels, one gradient step and random search, compared
and tried (measures §13).
"""

from __future__ import annotations

from dataclasses import replace

from loclin.models import load
from loclin.run.rows import Part, Row
from loclin.run.runner import Session
from loclin.studies.steering import claims_names as names
from loclin.studies.steering.claims_conditions import choose_layer, condition_rows
from loclin.studies.steering.claims_context import SteeringContext, make_context
from loclin.studies.steering.claims_nulls import null_rows
from loclin.studies.steering.claims_settings import SteeringClaimsSettings
from loclin.studies.steering.claims_vectors import (
    angle_rows,
    frozen_rows,
    make_vectors,
    reliability_rows,
    search_rows,
    size_rows,
)


def measure(settings: SteeringClaimsSettings, run: int, session: Session) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: whatever is wrong with model or data, too few examples, options that are not
            told apart by one token, a step or a vector that is zero or not finite.
    """
    # the seed is not the run's: all runs divide the same examples
    problem = load(settings, seed=settings.seed, progress=session.progress)
    ctx = make_context(problem, settings, run, session.progress)
    neutral = (f"damage is seen on {ctx.neutral.source}", *ctx.neutral.notes)
    return Part(rows=measure_rows(ctx), arrays={}, notes=(*problem.notes, *neutral))


def measure_rows(ctx: SteeringContext) -> list[Row]:
    """All rows; the model is afterwards what it was."""
    ctx.progress("making vectors", 0.0)
    v = make_vectors(ctx)
    chosen, rows = choose_layer(ctx, v.caa)
    ctx = replace(ctx, chosen=chosen)
    rows.append(ctx.row("layer", float(chosen)))
    rows.append(ctx.row("class_form", float(ctx.class_form)))
    lengths = v.caa.double().norm(dim=-1) / v.origin.double().norm(dim=-1).mean(1)
    rows += ctx.both("caa_length", lengths)
    measures = (angle_rows, search_rows, reliability_rows, size_rows, frozen_rows)
    for measured in (*measures, null_rows, condition_rows):
        rows += measured(ctx, v)
    if not ctx.class_form:  # E2 is E1 there, and E3 is not defined
        undefined = {"removed": names.NOTHING, "at": "chosen"}
        rows += [ctx.row("cosine_at", None, of=of, **undefined) for of in ("E2", "E3")]
    return rows
