"""One independent run of the Krylov study: curvature at the damaged point, then the way back held
against it (measures §8, §9).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from loclin.record import Part, Row
from loclin.studies.bench import Bench, Demand, Progress, device, make_bench
from loclin.studies.course import damage, recovery
from loclin.studies.families import products, steps_family
from loclin.studies.krylov.config import Config
from loclin.studies.krylov.curved import Curved, curved_at
from loclin.studies.krylov.rows import (
    bound_rows,
    captures_until,
    curvature_rows,
    descent_rows,
    prefix_rows,
    premise_row,
    time_rows,
)
from loclin.studies.recovery.captures import family_rows

__all__ = ["device", "run_one"]


def run_one(config: Config, run: int, progress: Progress) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: whatever `make_bench` refuses, splits too small, a task that is not destroyed,
            a loss that is not finite, eigenvectors that do not converge.
    """
    began = time.perf_counter()
    bench = make_bench(config, run, demand(config), progress)
    progress("destroying the task", 0.0)
    rows = [bench.row("score", bench.score(), point="pretrained", on=bench.task)]
    damaged = damage(bench, bench.task)
    with bench.space.restored():
        bench.space.write(damaged)
        rows.append(bench.row("score", bench.score(), point="damaged", on=bench.task))
    rows.append(bench.row("dimension", float(bench.space.dimension)))
    progress("measuring the curvature", 0.25)
    found = curved_at(bench, damaged)
    rows += curvature_rows(found, config.k, bench.context)
    arrays = {
        f"tridiagonal/{run}": found.krylov.tridiagonal,
        f"probes/forms/{run}": found.probes.forms,
        f"probes/squares/{run}": found.probes.squares,
    }
    for done, optimiser in enumerate(config.learning_rates()):
        progress(f"training it back with {optimiser}", 0.5 + 0.25 * done)
        more, grams = recover(bench, optimiser, damaged, found)
        rows += more
        arrays |= {
            f"update_gramian/{space}/{optimiser}/{run}": gram for space, gram in grams.items()
        }
    return Part(
        rows=rows,
        arrays=arrays,
        seconds=time.perf_counter() - began,
        notes=(*bench.notes, found.note),
    )


def demand(config: Config) -> Demand:
    """What the study asks of data and memory."""
    return Demand(
        examples={
            "recovery": (
                max(config.curvature_examples, config.batch),
                "--curvature-examples or --batch",
            ),
            "damage": (config.batch, "--batch"),
        },
        # five bases, the turned one of the preconditioned space, and what finding the eigenvectors
        # keeps
        vectors=(6 * config.most + 4 * config.most + 5, "--ks"),
        rows=(config.steps, "updates"),
    )


def recover(
    bench: Bench[Config], optimiser: str, damaged: Tensor, found: Curved
) -> tuple[list[Row], Mapping[str, np.ndarray]]:
    """Train the task back from θ_D with one optimiser and hold the way against every basis.

    Returns:
        The rows, and the Gramian of the updates in every space.
    """
    config, context = bench.config, {**bench.context, "optimiser": optimiser}
    rows: list[Row] = []

    def watch(t: int) -> None:
        if t == config.steps:
            rows.append(
                bench.row(
                    "score",
                    bench.score(),
                    optimiser=optimiser,
                    point="recovery",
                    t=t,
                    on=bench.task,
                )
            )

    real = recovery(
        bench,
        optimiser,
        bench.task,
        damaged,
        config.steps,
        order="recovery",
        exactly=config.most,
        after_step=watch,
    )
    way = steps_family(bench, real)
    updates = products(bench, way)
    for space, gram in updates.items():
        here = {**context, "basis": "prefix", "space": space}
        rows += prefix_rows(gram, config.ks, here)
        rows += time_rows(
            gram[: config.k, : config.k],
            gram[: config.k],
            gram,
            config.times,
            {**here, "k": config.k},
        )
    families = found.families | (
        {"preconditioned Krylov": found.preconditioned} if optimiser == "adamw" else {}
    )
    for name, family in families.items():
        own, cross = products(bench, family), products(bench, family, way)
        for space, gram in updates.items():
            here = {**context, "basis": name, "space": space}
            basis, between = own[space], cross[space]
            rows += family_rows(basis, between, gram, config.ks, bench.dimension(space), here)
            k = config.k
            rows += time_rows(basis[:k, :k], between[:k], gram, config.times, {**here, "k": k})
        if name == "Krylov" and optimiser == "sgd":
            trained = config.spaces[-1]
            rows += _model_rows(
                bench, found, own[trained], cross[trained], updates[trained], context
            )
    return rows, updates


def _model_rows(
    bench: Bench[Config],
    found: Curved,
    own: np.ndarray,
    cross: np.ndarray,
    updates: np.ndarray,
    context: Mapping[str, Any],
) -> Iterator[Row]:
    """What gradient descent on the quadratic model would do, in the trained coordinates, and the
    bound that holds for it.
    """
    config, rate = bench.config, bench.config.learning_rates(bench.run)["sgd"]
    yield from descent_rows(found.krylov, cross, updates, rate, config.times, context)
    k = config.k
    captured = captures_until(own[:k, :k], cross[:k], updates, config.times)
    yield from bound_rows(found.krylov, captured, updates, rate, k, config.times, context)
    yield premise_row(found, rate, context)
