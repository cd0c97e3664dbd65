"""One independent run of the search study: searches around the damaged and the halfway point
(measures §10, §11).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor

from loclin import law
from loclin.geometry.subspace import Subspace
from loclin.record import Part, Row
from loclin.search.noise import Noise
from loclin.seeds import derived
from loclin.studies.bench import Bench, Demand, Progress, device, make_bench
from loclin.studies.course import damage
from loclin.studies.search.around import Around, Plane, error_rows, noise_rows, relation_rows, sweep
from loclin.studies.search.config import Config
from loclin.studies.search.local import Local, in_space, second_order, tied
from loclin.studies.search.material import Material, Way, material, recover, score_of
from loclin.studies.search.spaces import Place, places, space_rows, static_plane, subspaces
from loclin.studies.search.votes import table_rows
from loclin.tasks.batch import answer_loss

__all__ = ["device", "run_one"]

STATIC = "static plane"
Vector = Float[Tensor, " D"]


def run_one(config: Config, run: int, progress: Progress) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: noise that there is not, whatever `make_bench` refuses, splits too small, a
            task that is not destroyed, a loss that is not finite.
    """
    began = time.perf_counter()
    for name in config.noises:
        Noise.parse(name)
    bench = make_bench(config, run, demand(config), progress)
    drawn = material(bench)
    rows = [bench.row("dimension", float(bench.space.dimension), space="all")]
    progress("making the static plane", 0.0)
    plane, known = static_plane(bench, drawn.batches), score_of(drawn.validate)
    rows.append(bench.row("score", bench.score(), point="pretrained"))
    progress("destroying the task", 0.0)
    damaged = damage(bench, bench.task)
    progress("training it back", 0.0)
    way = recover(bench, drawn.validate, known, damaged)
    step = None if way.step is None else float(way.step)
    rows.append(Row(quantity="halfway_step", value=step, context=bench.context))
    with bench.space.restored():
        bench.space.write(damaged)
        rows += _at_damaged(bench, drawn, way, plane, progress)
        bench.space.write(way.halfway)
        rows += _at_halfway(bench, drawn, plane, progress)
    return Part(
        rows=rows,
        arrays={},
        seconds=time.perf_counter() - began,
        notes=(*bench.notes, *_said(bench, way)),
    )


def demand(config: Config) -> Demand:
    """What the study asks of data and memory."""
    return Demand(
        examples={
            "gradients": (
                config.select_examples + config.gradients * config.gradient_batch,
                "--select-examples, --gradients or --gradient-batch",
            ),
            "recovery": (max(config.select_examples, config.batch), "--select-examples or --batch"),
            "damage": (config.batch, "--batch"),
        },
        vectors=(
            7 * config.k + config.gradients + 8,
            "--k or --gradients",
        ),  # six bases, gradients, points
        rows=(config.steps, "updates"),
    )


def _said(bench: Bench[Config], way: Way) -> list[str]:
    said = []
    if way.step is None:
        said.append(
            f"in a run half of the score on {bench.task} was not back after {bench.config.steps} "
            "steps: the halfway point is the end"
        )
    if bench.config.products == "finite differences":
        said.append("curvature is taken by finite differences of gradients, a fallback")
    return said


def _around(
    bench: Bench[Config],
    drawn: Material,
    point: str,
    gradient: Vector,
    local: Local,
    progress: Progress,
) -> Around:
    return Around(
        bench=bench,
        exam=drawn.select,
        point=point,
        gradient=gradient,
        local=local,
        stacked=bench.config.stacked,
        progress=progress,
    )


def _local_rows(here: Around) -> list[Row]:
    local = here.local
    sums, counts = here.exam.tallies()
    return [
        here.row("gradient_norm", local.gradient),
        here.row("trace", local.trace),
        here.row("frobenius_norm", local.frobenius),
        here.row("curvature_along_gradient", local.along),
        here.row("reference_sigma", here.reference),
        here.row(
            "validity_edge",
            law.valid_up_to(gradient=local.gradient, frobenius=local.frobenius) / here.reference,
        ),
        here.row("loss", float(sums[0] / counts[0])),
        here.row("score", float(sums[1] / counts[1])),
    ]


def _at_damaged(
    bench: Bench[Config], drawn: Material, way: Way, plane: Subspace, progress: Progress
) -> list[Row]:
    """All products before anything moves; then the searches."""
    config, space, scored = bench.config, bench.space, list(drawn.select.fold(0))
    progress("measuring the curvature", 0.0)
    gradient = space.gradient(drawn.select.loss, scored)
    recovery = space.gradient(partial(answer_loss, bench.problem.model), drawn.recovery)
    made = subspaces(bench, drawn.batches, drawn.recovery, way.prefix, plane)
    folded = None
    with second_order(
        bench.problem, space, scored, differences=config.products == "finite differences"
    ) as product:
        seed = derived(bench.seed, "curvature", "damaged")
        local = in_space(product, space, gradient, config.probes, seed=seed)
        found: Sequence[Place] = places(bench, made, product, gradient, scored)
        if "tied" in config.noises:
            folded = tied(product, space, gradient, config.probes, seed=seed)
    here = _around(bench, drawn, "damaged", gradient, local, progress)
    swept, drawn_at = sweep(here, config.candidates)
    rows = [*_local_rows(here), *swept, *space_rows(here, found)]
    rows += error_rows(here, rows, "spaces", size=config.size)
    rows += noise_rows(here, folded)
    bent = {p.name: p.local.trace for p in found}
    shown = {STATIC: plane, **{name: made[name] for name in ("gradients at θ_D", "random")}}
    planes = {name: Plane(space=of, trace=bent[name]) for name, of in shown.items()}
    return [*rows, *relation_rows(here, drawn_at, recovery, planes, each=True)]


def _at_halfway(
    bench: Bench[Config], drawn: Material, plane: Subspace, progress: Progress
) -> list[Row]:
    """The law again, and the table."""
    config, space, scored = bench.config, bench.space, list(drawn.select.fold(0))
    progress("measuring the curvature", 0.5)
    gradient = space.gradient(drawn.select.loss, scored)
    recovery = space.gradient(partial(answer_loss, bench.problem.model), drawn.recovery)
    with second_order(
        bench.problem, space, scored, differences=config.products == "finite differences"
    ) as product:
        seed = derived(bench.seed, "curvature", "halfway")
        local = in_space(product, space, gradient, config.probes, seed=seed)
    here = _around(bench, drawn, "halfway", gradient, local, progress)
    swept, drawn_at = sweep(here, config.others)
    rows = [
        *_local_rows(here),
        *swept,
        *relation_rows(here, drawn_at, recovery, {STATIC: Plane(space=plane)}, each=False),
    ]
    return [*rows, *table_rows(here, drawn_at, drawn.test)]
