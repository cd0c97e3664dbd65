"""One independent run of the spectrum study: gradients of every task at θ₀ and at θ_D, and what
they share (measures §5, §6).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from loclin.geometry.gramian import gramian
from loclin.record import Part, Row
from loclin.seeds import derived
from loclin.studies.bench import Bench, Demand, Progress, device, make_bench
from loclin.studies.course import damage
from loclin.studies.directions import disjoint_batches
from loclin.studies.spectrum.config import Config
from loclin.studies.spectrum.gather import Gathered, controls, gather, tensor_gramians
from loclin.studies.spectrum.ranks import layer_rows, rank_rows, spectrum_rows
from loclin.studies.spectrum.shared import crossfit_rows, overlap_rows
from loclin.tasks.batch import Batch

__all__ = ["device", "run_one"]

SHOWN = 64  # shares of a spectrum that the record keeps


def run_one(config: Config, run: int, progress: Progress) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: whatever `make_bench` refuses, a task that is not destroyed, a loss that is not
            finite.
    """
    began = time.perf_counter()
    bench = make_bench(config, run, demand(config), progress)
    progress("destroying the task", 0.0)
    rows: list[Row] = [bench.row("dimension", float(bench.space.dimension))]
    arrays: dict[str, np.ndarray] = {}
    batches, sets, notes = _batches(bench)
    for point, vector in (
        ("pretrained", bench.space.read()),
        ("damaged", damage(bench, bench.task)),
    ):
        with bench.space.restored():
            bench.space.write(vector)
            found = gather(
                bench.problem.model,
                bench.space,
                bench.keeping,
                batches,
                after_each=lambda n: progress(f"gradients at the {point} point", n / len(batches)),  # noqa: B023
            )
        more, gram = _measure(bench, found, sets, {**bench.context, "point": point})
        rows += more
        arrays[f"gradient_gramian/{point}/{run}"] = gram
    return Part(
        rows=rows, arrays=arrays, seconds=time.perf_counter() - began, notes=(*bench.notes, *notes)
    )


def demand(config: Config) -> Demand:
    """What the study asks of data and memory."""
    drawn = max(max(config.counts), 2 * config.overlap_gradients) * config.gradient_batch
    return Demand(
        examples={
            "gradients": (drawn, "--counts, --overlap-gradients or --gradient-batch"),
            "damage": (config.batch, "--batch"),
        },
        vectors=(
            6,
            "--space",
        ),  # points and gradients in hand; those that are kept go where there is room
        rows=(drawn // config.gradient_batch, "gradients"),
    )


def _batches(bench: Bench[Config]) -> tuple[list[Batch], dict[str, tuple[slice, slice]], list[str]]:
    """Batches of the run's task first, then two sets of every other task; where the sets of each
    task are; what is left out.
    """
    config, problem = bench.config, bench.problem
    n, batches, sets, short = (
        config.overlap_gradients,
        list[Batch](),
        dict[str, tuple[slice, slice]](),
        list[str](),
    )
    for task in (bench.task, *(t for t in problem.tasks if t != bench.task)):
        count = max(max(config.counts), 2 * n) if task == bench.task else 2 * n
        if len(problem.examples["gradients"][task]) < count * config.gradient_batch:
            short.append(task)
            continue
        start = len(batches)
        sets[task] = (slice(start, start + n), slice(start + n, start + 2 * n))
        data = problem.batch("gradients", task)
        batches += disjoint_batches(
            data, config.gradient_batch, count, seed=derived(bench.seed, "ranks", task)
        )
    notes = (
        [
            f"too few examples for two sets of {n} gradients, left out of the overlaps: "
            f"{', '.join(short)}"
        ]
        if short
        else []
    )
    return batches, {task: sets[task] for task in problem.tasks if task in sets}, notes


def _measure(
    bench: Bench[Config],
    found: Gathered,
    sets: dict[str, tuple[slice, slice]],
    context: dict[str, Any],
) -> tuple[list[Row], np.ndarray]:
    config, n = bench.config, max(bench.config.counts)
    seed = derived(bench.seed, "spectrum", str(context["point"]))
    own = Gathered(
        space=found.space, keeping=found.keeping, rows=found.rows[:n], norms=found.norms[:n]
    )
    every = controls(found, seed=seed)
    drawn = {name: gram[:n, :n] for name, gram in every.items()}
    tensors = tensor_gramians(found) if found.whole else None
    products = gramian(found.rows) if tensors is None else np.sum(list(tensors.values()), axis=0)
    measured = products[:n, :n]
    rows = list(rank_rows(measured, drawn, config.counts, context))
    rows += spectrum_rows(measured, drawn, SHOWN, context)
    rows += crossfit_rows(measured, drawn["per tensor"], config.ks, found.columns, context)
    rows += overlap_rows(products, every["per tensor"], sets, config.k, context)
    if tensors is not None:
        rows += layer_rows(
            own, {name: g[:n, :n] for name, g in tensors.items()}, context, seed=seed
        )
    return rows, measured
