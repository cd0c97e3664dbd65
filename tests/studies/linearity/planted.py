"""Parabolas of known windows, as profiles and as the rows of whole studies; rows by context."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from loclin.line import Profile, signed_grid
from loclin.run.rows import Row
from loclin.studies.linearity.names import GRADIENT, MATCHED
from loclin.studies.linearity.rows import curve_rows, line_rows
from tests.properties import World

COARSE = signed_grid(1e-8, 1e2, 1)


def one(rows: Sequence[Row], quantity: str, **context: Any) -> Row:
    """The only row of a quantity under a condition."""
    (found,) = [
        r
        for r in rows
        if r.quantity == quantity and all(r.context.get(k) == v for k, v in context.items())
    ]
    return found


def number(rows: Sequence[Row], quantity: str, **context: Any) -> float:
    """Its value, which must be defined."""
    value = one(rows, quantity, **context).value
    assert value is not None
    return value


def planted(
    rng: np.random.Generator,
    *,
    decades: float,
    slope: float = 3.0,
    noise: float = 0.0,
    steps: list[float] | None = None,
) -> Profile:
    """A parabola in float32 whose window at τ = 0.1 is so many decades above round-off."""
    grid = np.array([s for s in steps or signed_grid(1e-9, 1e6, 3) if s])
    limit = 2.0**-24 / slope / 0.1
    curvature = 2 * 0.1 * slope / (limit * 10**decades)
    changes = slope * grid + 0.5 * curvature * grid**2 + noise * rng.standard_normal(len(grid))
    return Profile(
        steps=grid,
        changes=changes,
        scores=np.ones(len(grid)),
        loss=1.0,
        score=1.0,
        slope=slope,
        curvature=curvature,
        dtype=torch.float32,
    )


def world(gradient: float, noise: float, spread: float = 0.4, *, curves: bool = False) -> World:
    """Runs whose windows lie so many decades above round-off, give or take `spread`, along their
    gradient and along noise.
    """

    def make(rng: np.random.Generator, run: int) -> list[Row]:
        rows: list[Row] = []
        for direction, decades in ((GRADIENT, gradient), (MATCHED, noise)):
            profile = planted(rng, decades=decades + spread * rng.standard_normal(), steps=COARSE)
            here = {"run": run, "task": "t", "point": "pretrained", "direction": direction}
            rows += line_rows(profile, (0.1,), here)
            rows += curve_rows(profile, here) if curves else ()
        return rows

    return make


def at_both(rows: list[Row]) -> list[Row]:
    """The same at the damaged point too."""
    return rows + [dataclasses.replace(r, context={**r.context, "point": "damaged"}) for r in rows]


def six_runs(made: World) -> list[Row]:
    """Of a world, at both points."""
    rng = np.random.default_rng(0)
    return at_both([row for run in range(6) for row in made(rng, run)])
