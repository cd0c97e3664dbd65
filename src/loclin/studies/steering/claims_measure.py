"""One independent run of the steering claims: labels, one gradient step and random search, compared
and tried (measures §13).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from loclin.models import load
from loclin.run.rows import Part
from loclin.run.runner import Session
from loclin.studies.known import known
from loclin.studies.steering import names
from loclin.studies.steering.claims_conditions import choose_layers, effects
from loclin.studies.steering.claims_context import ClaimsContext, make_context
from loclin.studies.steering.claims_nulls import null_draws, null_rows
from loclin.studies.steering.claims_settings import SteeringClaimsSettings
from loclin.studies.steering.claims_vectors import (
    Vectors,
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
    # the seed is the model's: its runs divide the same examples
    problem = load(settings, seed=settings.of_model(run), progress=session.progress)
    ctx = make_context(problem, settings, run, session.progress)
    neutral = (f"damage is seen on {ctx.neutral.source}", *ctx.neutral.notes)
    before, part = known(problem, settings, run), measured(ctx)
    notes = (*problem.notes, *before.notes, *neutral)
    return replace(part, rows=[*before.rows, *part.rows], notes=notes)


def measured(ctx: ClaimsContext) -> Part:
    """All rows and arrays; the model is afterwards what it was."""
    ctx.progress("making vectors", 0.0)
    v = make_vectors(ctx)
    chosen, rows = choose_layers(ctx, v.caa)
    ctx = replace(ctx, chosen=chosen)
    rows.append(ctx.row("class_form", float(ctx.class_form)))
    lengths = v.caa.double().norm(dim=-1) / v.origin.double().norm(dim=-1).mean(1)
    rows += ctx.both("caa_length", lengths)
    for made in (angle_rows, search_rows, reliability_rows, size_rows, frozen_rows):
        rows += made(ctx, v)
    drawn = null_draws(ctx, v)
    rows += null_rows(ctx, v, drawn)
    found, by_prompt = effects(ctx, v)
    if not ctx.class_form:  # E2 is E1 there, and E3 is not defined
        undefined = {"removed": names.NOTHING, "at": names.MIDDLE}
        found += [ctx.row("cosine_at", None, of=of, **undefined) for of in ("E2", "E3")]
    arrays = {**_vectors(v, chosen), **by_prompt}
    for (of, null), draws in drawn.items():
        arrays[f"draws/{of}/{null}"] = draws.astype(np.float32)
    kept = {f"{key}/{ctx.run}": array for key, array in arrays.items()}
    return Part(rows=[*rows, *found], arrays=kept)


def _vectors(v: Vectors, chosen: Mapping[str, int]) -> dict[str, np.ndarray]:
    """What is behind every cosine: vectors at every block, and what whitens the middle one."""
    every = {
        names.CAA: v.caa,
        names.PAIRED: v.paired,
        names.SEARCH: v.search,
        **v.shifts,
        names.LOGITS: v.logits,
        "log p(+)": v.answers[0],
        "log p(-)": v.answers[1],
    }
    layers = np.array([chosen[names.MIDDLE], chosen[names.CHOSEN]])
    found = {f"vectors/{name}": x.numpy() for name, x in every.items()}
    return {**found, "layers": layers, "whitening": v.white[chosen[names.MIDDLE]].numpy()}
