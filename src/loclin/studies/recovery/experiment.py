"""One independent run of the recovery study: destroy a task, fix bases, train it back, measure the
way (measures §1-5).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from loclin.geometry.gramian import cross_capture, prefix_capture
from loclin.geometry.subspace import Subspace
from loclin.record import Part, Row
from loclin.seeds import derived
from loclin.studies.bench import Bench, Demand, Progress, device, make_bench
from loclin.studies.course import damage, recovery
from loclin.studies.families import Family, products, steps_family
from loclin.studies.recovery.bases import control_families, static_families
from loclin.studies.recovery.captures import family_rows, prefix_rows
from loclin.studies.recovery.config import Config
from loclin.studies.recovery.drift import DriftMeter
from loclin.training import Trajectory, make_optimiser, minibatches, train

__all__ = ["device", "run_one"]

STAGES = 4
Found = tuple[list[Row], dict[str, np.ndarray]]
Gramians = Mapping[str, Float[np.ndarray, "n m"]]


def run_one(config: Config, run: int, progress: Progress) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: whatever `make_bench` refuses, splits too small, a task that is not destroyed,
            a loss that is not finite.
    """
    began = time.perf_counter()
    bench = make_bench(config, run, demand(config), progress)
    rows: list[Row] = []
    arrays: dict[str, np.ndarray] = {}
    for done, (name, stage) in enumerate(_stages(bench)):
        progress(name, done / STAGES)
        more_rows, more_arrays = stage()
        rows += more_rows
        arrays |= {f"{key}/{run}": value for key, value in more_arrays.items()}
    return Part(rows=rows, arrays=arrays, seconds=time.perf_counter() - began, notes=bench.notes)


def demand(config: Config) -> Demand:
    """What the study asks of data and memory."""
    vectors = 4 * max(*config.ks, *config.project_ks) + 2 * config.gradients + 5 * config.k
    return Demand(
        examples={
            "gradients": (
                2 * config.gradients * config.gradient_batch,
                "--gradients or --gradient-batch",
            ),
            "recovery": (config.batch, "--batch"),
            "damage": (config.batch, "--batch"),
        },
        vectors=(vectors, "--ks and --gradients"),
        rows=(config.steps, "updates"),
    )


def _stages(bench: Bench[Config]) -> Iterator[tuple[str, Callable[[], Found]]]:
    """The stages in order; each starts and ends at θ₀."""
    damaged: dict[str, Tensor] = {}
    statics: dict[str, Family] = {}
    meters: list[DriftMeter] = []

    def destroy() -> Found:
        tasks = bench.problem.tasks
        rows = [bench.row("score", bench.score(t), point="pretrained", on=t) for t in tasks]
        for task in (bench.task, bench.other):
            if task is not None:
                damaged[task] = damage(bench, task)
        with bench.space.restored():
            bench.space.write(damaged[bench.task])
            rows += [bench.row("score", bench.score(t), point="damaged", on=t) for t in tasks]
        return [*rows, bench.row("dimension", float(bench.space.dimension))], {}

    def fix() -> Found:
        statics.update(
            static_families(bench, damaged[bench.task], seed=derived(bench.seed, "static"))
        )
        with bench.space.restored():
            bench.space.write(damaged[bench.task])
            meters.append(DriftMeter(bench))
        return [], {}

    yield "destroying the task", destroy
    yield "fixing bases beforehand", fix
    for optimiser in bench.config.learning_rates():
        yield (
            f"training it back with {optimiser}",
            partial(recover, bench, optimiser, damaged, statics, meters),
        )


def recover(
    bench: Bench[Config],
    optimiser: str,
    damaged: Mapping[str, Tensor],
    statics: Mapping[str, Family],
    meters: Sequence[DriftMeter],
) -> Found:
    """Train the task back from θ_D with one optimiser and measure the way against everything else."""
    config, start = bench.config, damaged[bench.task]
    context = {**bench.context, "optimiser": optimiser}
    (meter,) = meters  # the same for every optimiser: it starts at θ_D
    rows: list[Row] = [meter.floor_row(context)]

    def watch(t: int) -> None:
        if t in config.times or t == config.steps:
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
        if t in config.times:
            rows.extend(meter.rows(t, context))

    real = _record(
        bench, optimiser, bench.task, start, config.steps, order="recovery", after_step=watch
    )
    way = steps_family(bench, real)
    updates = products(bench, way)
    shuffle = derived(bench.seed, "shuffle")
    for space, gram in updates.items():
        here = {**context, "space": space}
        rows += prefix_rows(
            gram, config.all_ks, bench.dimension(space), config.shuffles, here, seed=shuffle
        )

    families = {**statics, **_controls(bench, optimiser, damaged, real)}
    captured = {"prefix": {k: _prefix_captures(updates, k) for k in config.project_ks}}
    for name, family in families.items():
        own, cross = products(bench, family), products(bench, family, way)
        for space, gram in updates.items():
            here = {**context, "basis": name, "space": space}
            rows += family_rows(
                own[space], cross[space], gram, config.ks, bench.dimension(space), here
            )
        captured[name] = {
            config.k: {
                s: cross_capture(own[s], cross[s], g, [config.k])[0] for s, g in updates.items()
            }
        }

    rows += _reset_rows(bench, optimiser, start, context)
    rows += _projected_rows(bench, optimiser, real, families, captured, context)
    arrays = {f"update_gramian/{space}/{optimiser}": gram for space, gram in updates.items()}
    return rows, {**arrays, f"losses/{optimiser}": real.losses.double().cpu().numpy()}


def _controls(
    bench: Bench[Config], optimiser: str, damaged: Mapping[str, Tensor], real: Trajectory
) -> dict[str, Family]:
    """The prefixes of other recoveries, then what `control_families` draws."""
    longest = max(bench.config.ks)
    again = _record(bench, optimiser, bench.task, damaged[bench.task], longest, order="independent")
    found = {"another run's prefix": steps_family(bench, again)}
    if bench.other is not None:
        other = _record(bench, optimiser, bench.other, damaged[bench.other], longest, order="other")
        found["another task's prefix"] = steps_family(bench, other)
    return found | dict(
        control_families(bench, real, seed=derived(bench.seed, "controls", optimiser))
    )


def _record(
    bench: Bench[Config],
    optimiser: str,
    task: str,
    start: Tensor,
    steps: int,
    *,
    order: str,
    reset_at: int | None = None,
    after_step: Callable[[int], None] | None = None,
) -> Trajectory:
    exactly = max(*bench.config.ks, *bench.config.project_ks)
    return recovery(
        bench,
        optimiser,
        task,
        start,
        steps,
        order=order,
        exactly=exactly,
        reset_at=reset_at,
        after_step=after_step,
    )


def _prefix_captures(updates: Gramians, k: int) -> dict[str, float]:
    return {space: float(prefix_capture(gram, [k])[0]) for space, gram in updates.items()}


def _reset_rows(
    bench: Bench[Config], optimiser: str, start: Tensor, context: dict[str, Any]
) -> list[Row]:
    """Captures of a recovery whose optimiser forgets its state at step k, same data order. Plain
    SGD has no state to forget.
    """
    if optimiser == "sgd":
        return []
    k = bench.config.k
    reset = _record(
        bench, optimiser, bench.task, start, bench.config.steps, order="recovery", reset_at=k
    )
    rows = []
    for space, gram in products(bench, steps_family(bench, reset)).items():
        here = {**context, "reset_at": k, "space": space}
        for row in prefix_rows(gram, (k,), bench.dimension(space), 1, here, seed=0):
            if row.quantity in ("prefix_capture", "future_capture"):
                rows.append(
                    Row(
                        quantity=f"reset_{row.quantity}",
                        value=row.value,
                        null=row.null,
                        context=row.context,
                    )
                )
    return rows


def _projected_rows(
    bench: Bench[Config],
    optimiser: str,
    real: Trajectory,
    families: Mapping[str, Family],
    captured: Mapping[str, Mapping[int, Mapping[str, float]]],
    context: dict[str, Any],
) -> list[Row]:
    """Project-and-train: score regained when every update is confined to a basis, at equal steps
    (measures §3).

    The data order is a new one: the steps that made the prefix are not simply taken again. With
    LoRA the factors are confined.
    """
    config = bench.config
    bases: list[tuple[str, int | None, Tensor | None]] = [("full", None, None)]
    bases += [("prefix", k, real.head[:k]) for k in config.project_ks]
    bases += [(name, config.k, family.exact[: config.k]) for name, family in families.items()]
    rows: list[Row] = []
    full = 0.0
    for name, k, spanning in bases:
        score = _confined_score(bench, optimiser, real.start, spanning)
        full = score if name == "full" else full
        here = {**context, "basis": name} | ({} if k is None else {"k": k})
        rows.append(Row(quantity="regained_score", value=score, null=full, context=here))
        shares = dict.fromkeys(config.spaces, 1.0) if k is None else captured[name][k]
        rows += [
            Row(quantity="regained_by_capture", value=c, context={**here, "space": s})
            for s, c in shares.items()
        ]
    return rows


def _confined_score(
    bench: Bench[Config], optimiser: str, start: Tensor, spanning: Sequence[Tensor] | Tensor | None
) -> float:
    config, space = bench.config, bench.space
    basis = None if spanning is None else Subspace.spanned_by(spanning.to(start.device))  # type: ignore[union-attr]
    with space.restored():
        space.write(start)
        order = derived(bench.seed, "order", "projected")
        batches = minibatches(bench.problem.batch("recovery", bench.task), config.batch, seed=order)
        made = make_optimiser(optimiser, space, config.learning_rates(bench.run)[optimiser])  # type: ignore[arg-type]
        dropout = bench.dropout("projected")
        train(
            bench.problem.model,
            space,
            batches,
            made,
            config.project_steps,
            confine_to=basis,
            dropout_seed=dropout,
        )
        return bench.score()
