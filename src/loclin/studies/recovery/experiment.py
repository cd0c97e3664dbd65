"""One independent run: damage a task, train it back with each optimiser, and measure the way (measures §1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin import models
from loclin.errors import LoclinError
from loclin.geometry.gramian import gramian
from loclin.geometry.subspace import Subspace
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.record import Part, Row
from loclin.seeds import derived
from loclin.studies.recovery.bases import (
    Directions,
    batch_gradients,
    control_families,
    disjoint_batches,
    static_families,
)
from loclin.studies.recovery.captures import family_rows, prefix_rows
from loclin.studies.recovery.config import Config
from loclin.studies.recovery.drift import DriftMeter
from loclin.studies.recovery.ranks import rank_rows
from loclin.tasks.batch import accuracy, concatenate
from loclin.tasks.sequences import with_wrong_answers
from loclin.training import Trajectory, make_optimiser, minibatches, record, train

Progress = Callable[[str, float], None]
DESTROYED = 0.05  # exact match below which a task counts as destroyed (measures §1)
DAMAGE_ROUNDS = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Bench:
    """What every stage of one run works with."""

    config: Config
    problem: Problem
    space: ParameterSpace
    task: str
    other: str
    seed: int
    context: dict[str, Any]

    def score(self, task: str | None = None) -> float:
        """Exact match on the test split, of the destroyed task unless another is named."""
        return accuracy(self.problem.model, self.problem.batch("test", task or self.task))


def run_one(config: Config, run: int, progress: Progress) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: unknown task, splits too small, a task that is not destroyed, a loss that is not finite.
    """
    began = time.perf_counter()
    bench = _bench(config, run, progress)
    rows: list[Row] = []
    arrays: dict[str, np.ndarray] = {}
    for done, (name, stage) in enumerate(_stages(bench)):
        progress(name, done / STAGES)
        more_rows, more_arrays = stage()
        rows += more_rows
        arrays |= {f"{key}/{run}": value for key, value in more_arrays.items()}
    return Part(rows=rows, arrays=arrays, seconds=time.perf_counter() - began)


Found = tuple[list[Row], dict[str, np.ndarray]]
STAGES = 4


def _bench(config: Config, run: int, progress: Progress) -> Bench:
    seed = config.seed + run
    problem = models.load(config.model, seed=seed, device=device(config), progress=progress)
    tasks = problem.recipe.tasks
    if config.task not in ("each", *tasks):
        raise LoclinError(f"unknown task {config.task!r}: expected each, or one of {', '.join(tasks)}")
    index = run % len(tasks) if config.task == "each" else tasks.index(config.task)
    space = ParameterSpace(problem.model, "*" if config.space == "full" else config.space)
    return Bench(
        config=config,
        problem=problem,
        space=space,
        task=tasks[index],
        other=tasks[(index + 1) % len(tasks)],
        seed=derived(seed, "recovery study"),
        context={"run": run, "task": tasks[index]},
    )


def device(config: Config) -> str:
    """The device that a configuration asks for.

    Raises:
        LoclinError: an accelerator that is not there.
    """
    if config.device == "auto":
        return "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(config.device.split(":")[0], False):
        found = ", ".join(name for name, yes in there.items() if yes)
        raise LoclinError(f"expected a device among {found}, found {config.device!r}: change --device")
    return config.device


def _stages(bench: Bench) -> Iterator[tuple[str, Callable[[], Found]]]:
    """The stages in order; each starts and ends at θ₀."""
    pretrained = bench.space.read()
    damaged: dict[str, Tensor] = {}
    statics: dict[str, Directions] = {}

    def destroy() -> Found:
        rows = [
            _row(
                "score", accuracy(bench.problem.model, bench.problem.batch("test", t)), bench, point="pretrained", on=t
            )
            for t in bench.problem.recipe.tasks
        ]
        for task in (bench.task, bench.other):
            damaged[task] = damage(bench, task)
        with bench.space.restored():
            bench.space.write(damaged[bench.task])
            rows += [_row("score", bench.score(t), bench, point="damaged", on=t) for t in bench.problem.recipe.tasks]
        return [*rows, _row("dimension", float(bench.space.dimension), bench)], {}

    def fix() -> Found:
        config = bench.config
        found = static_families(
            bench.problem, bench.space, config, bench.task, damaged[bench.task], seed=derived(bench.seed, "static")
        )
        statics.update(found)
        return _rank_rows(bench, {"pretrained": pretrained, "damaged": damaged[bench.task]})

    yield "destroying the task", destroy
    yield "fixing bases beforehand", fix
    for optimiser in bench.config.learning_rates:
        yield f"training it back with {optimiser}", partial(recover, bench, optimiser, damaged, statics)


def damage(bench: Bench, task: str) -> Float[Tensor, " D"]:
    """θ_D: the point after training on wrong answers to one task and right ones to the others, in equal shares.

    Raises:
        LoclinError: exact match stays above 0.05.
    """
    config, problem, space = bench.config, bench.problem, bench.space
    examples = problem.examples["damage"]
    wrong = problem.collate(with_wrong_answers(examples[task], seed=derived(bench.seed, "wrong answers", task)))
    kept = [problem.collate(examples[t]) for t in problem.recipe.tasks if t != task]
    data = concatenate([*kept, *[wrong] * len(kept)])
    with space.restored():
        batches = minibatches(data, config.batch, seed=derived(bench.seed, "damage", task))
        optimiser = make_optimiser("adamw", space, config.damage_lr)
        for _ in range(DAMAGE_ROUNDS):
            train(problem.model, space, batches, optimiser, config.damage_steps)
            score = bench.score(task)
            if score < DESTROYED:
                return space.read()
    raise LoclinError(
        f"expected exact match below {DESTROYED} on {task} after damage, found {score:.2f}: "
        "raise --damage-steps or --damage-lr"
    )


def _rank_rows(bench: Bench, points: dict[str, Tensor]) -> Found:
    config, rows, arrays = bench.config, [], {}
    data = bench.problem.batch("gradients", bench.task)
    seed = derived(bench.seed, "ranks")
    batches = disjoint_batches(data, config.gradient_batch, max(config.rank_gradients), seed=seed)
    for name, point in points.items():
        with bench.space.restored():
            bench.space.write(point)
            gradients = batch_gradients(bench.problem, bench.space, batches)
        found, products = rank_rows(
            gradients, bench.space, config.rank_gradients, {**bench.context, "point": name}, seed=seed
        )
        rows += found
        arrays[f"gradient_gramian/{name}"] = products
    return rows, arrays


def recover(bench: Bench, optimiser: str, damaged: dict[str, Tensor], statics: dict[str, Directions]) -> Found:
    """Train the task back from θ_D with one optimiser and measure the way against everything else."""
    config, space = bench.config, bench.space
    context = {**bench.context, "optimiser": optimiser}
    rows: list[Row] = []

    def watch(t: int) -> None:
        if t in config.times or t == config.steps:
            rows.append(_row("score", bench.score(), bench, optimiser=optimiser, point="recovery", t=t, on=bench.task))

    real = _record(bench, optimiser, bench.task, damaged[bench.task], config.steps, order="recovery", after_step=watch)
    updates = gramian(real.updates)
    rows += prefix_rows(
        updates, config.all_ks, space.dimension, config.shuffles, context, seed=derived(bench.seed, "shuffle")
    )

    longest = max(config.ks)
    prefixes = {
        "another run's prefix": _record(
            bench, optimiser, bench.task, damaged[bench.task], longest, order="independent"
        ),
        "another task's prefix": _record(bench, optimiser, bench.other, damaged[bench.other], longest, order="other"),
    }
    drawn = control_families(
        bench.problem,
        space,
        config,
        bench.task,
        real,
        {n: p.updates for n, p in prefixes.items()},
        seed=derived(bench.seed, "controls", optimiser),
    )
    families = {**statics, **dict(drawn)}
    for name, directions in families.items():
        products = gramian(directions, real.updates)
        rows += family_rows(
            gramian(directions), products, updates, config.ks, space.dimension, {**context, "basis": name}
        )

    rows += _reset_rows(bench, optimiser, damaged[bench.task], context)
    rows += _drift_rows(bench, real, context)
    rows += _projected_rows(bench, optimiser, real, families, context)
    return rows, {
        f"update_gramian/{optimiser}": updates,
        f"losses/{optimiser}": real.losses.double().cpu().numpy(),
    }


def _record(
    bench: Bench,
    optimiser: str,
    task: str,
    start: Tensor,
    steps: int,
    *,
    order: str,
    reset_at: int | None = None,
    after_step: Callable[[int], None] | None = None,
) -> Trajectory:
    """A recovery from `start` in its own data order; the space is back where it was afterwards."""
    config, problem, space = bench.config, bench.problem, bench.space
    with space.restored():
        space.write(start)
        batches = minibatches(problem.batch("recovery", task), config.batch, seed=derived(bench.seed, "order", order))
        made = make_optimiser(optimiser, space, config.learning_rates[optimiser])  # type: ignore[arg-type]
        return record(problem.model, space, batches, made, steps, reset_at=reset_at, after_step=after_step)


def _reset_rows(bench: Bench, optimiser: str, start: Tensor, context: dict[str, Any]) -> list[Row]:
    """Captures of a recovery whose optimiser forgets its state at step k, same data order. Plain SGD has no state to forget."""
    if optimiser == "sgd":
        return []
    k = bench.config.k
    reset = _record(bench, optimiser, bench.task, start, bench.config.steps, order="recovery", reset_at=k)
    captured = prefix_rows(gramian(reset.updates), (k,), bench.space.dimension, 1, {**context, "reset_at": k}, seed=0)
    kept = ("prefix_capture", "future_capture")
    return [
        Row(quantity=f"reset_{row.quantity}", value=row.value, null=row.null, context=row.context)
        for row in captured
        if row.quantity in kept
    ]


def _drift_rows(bench: Bench, real: Trajectory, context: dict[str, Any]) -> list[Row]:
    with bench.space.restored():
        bench.space.write(real.start)
        meter = DriftMeter(bench.problem, bench.space, bench.config, bench.task, seed=bench.seed)
    rows = [meter.floor_row(context)]
    for t in bench.config.times:
        rows += meter.rows(real.point(t), t, context)
    return rows


def _projected_rows(
    bench: Bench, optimiser: str, real: Trajectory, families: dict[str, Directions], context: dict[str, Any]
) -> list[Row]:
    """Project-and-train: exact match regained when every update is confined to a basis, at equal steps (measures §3).

    The data order is a new one: the steps that made the prefix are not simply taken again.
    """
    config = bench.config
    bases: list[tuple[str, int, Subspace | None]] = [("full", bench.space.dimension, None)]
    bases += [("prefix", k, Subspace.spanned_by(real.updates[:k])) for k in config.project_ks]
    bases += [(name, config.k, Subspace.spanned_by(rows[: config.k])) for name, rows in families.items()]
    rows, full = [], 0.0
    for name, k, basis in bases:
        with bench.space.restored():
            bench.space.write(real.start)
            batches = minibatches(
                bench.problem.batch("recovery", bench.task),
                config.batch,
                seed=derived(bench.seed, "order", "projected"),
            )
            made = make_optimiser(optimiser, bench.space, config.learning_rates[optimiser])  # type: ignore[arg-type]
            train(bench.problem.model, bench.space, batches, made, config.project_steps, confine_to=basis)
            score = bench.score()
        full = score if name == "full" else full
        here = {**context, "basis": name, "k": k}
        rows.append(Row(quantity="regained_score", value=score, null=full, context=here))
        capture = basis.capture(real.displacement) if basis else 1.0
        rows.append(Row(quantity="regained_by_capture", value=capture, context=here))
    return rows


def _row(quantity: str, value: float, bench: Bench, **context: Any) -> Row:
    return Row(quantity=quantity, value=value, context={**bench.context, **context})
