"""One independent run of the schedules study: choose pairs, destroy both tasks, train them back by
every schedule (measures §12).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from loclin.record import Part, Row
from loclin.schedules.contest import Contest
from loclin.schedules.loop import check_installed
from loclin.schedules.rows import contest_rows, cost_note
from loclin.seeds import derived
from loclin.studies.bench import (
    Bench,
    Demand,
    Progress,
    check_known,
    check_sizes,
    device,
    make_bench,
)
from loclin.studies.course import damage
from loclin.studies.schedules.apart import apart_rows
from loclin.studies.schedules.config import Config
from loclin.studies.schedules.pairs import Pair, chosen_pairs, pair_rows, task_cosines

__all__ = ["device", "run_one"]

EVERY_PAIR = "all"  # a run's mean over its pairs


def run_one(config: Config, run: int, progress: Progress) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: whatever `make_bench` refuses, too few tasks, a task of a pair that the model
            does not know or that is not destroyed, a loss or gradient that is not finite (the task
            and the step are named), a package that a schedule needs.
    """
    began = time.perf_counter()
    check_installed(config.named)
    bench = make_bench(config, run, demand(config), progress)
    progress("choosing pairs of tasks", 0.0)
    cosines = task_cosines(bench, bench.problem.tasks)[config.spaces[0]].first
    pairs = chosen_pairs(cosines, bench.problem.tasks, config.pairs)
    for task in dict.fromkeys(task for pair in pairs.values() for task in pair):
        check_sizes(demand(config), bench.problem, task)
        check_known(bench, task)
    rows = [
        row for kind, pair in pairs.items() for row in pair_rows(bench, kind, pair, "pretrained")
    ]
    notes, each = (
        list(bench.notes),
        [(kind, optimiser) for kind in pairs for optimiser in config.rates],
    )
    for done, (kind, optimiser) in enumerate(each):

        def told(stage: str, share: float, done: int = done) -> None:
            progress(stage, (done + share) / len(each))

        told(f"destroying {' and '.join(pairs[kind])}", 0.0)
        contest = contest_of(bench, kind, pairs[kind], optimiser)
        with bench.space.restored():
            bench.space.write(contest.start)
            rows += pair_rows(bench, kind, pairs[kind], "damaged")
        found, seconds = contest_rows(contest, told)
        rows += [*found, *apart_rows(bench, contest)]
        if run == 0 and done == 0:
            notes += list(cost_note(seconds))
    return Part(
        rows=[*rows, *over_pairs(rows)], arrays={}, seconds=time.perf_counter() - began, notes=notes
    )


def demand(config: Config) -> Demand:
    """What the study asks of data and memory."""
    return Demand(
        examples={
            "gradients": (2, "--cosine-examples"),
            "recovery": (max(config.batch, config.fisher_examples), "--batch or --fisher-examples"),
            "damage": (config.batch, "--batch"),
        },
        vectors=(12 + config.old_gradients + 2 * config.k, "--old-gradients and --k"),
        rows=(3 * (config.evaluations // 2), "updates of specialists"),
    )


def contest_of(bench: Bench[Config], kind: str, tasks: Pair, optimiser: Any) -> Contest:
    """All schedules' start: the point where both tasks are destroyed."""
    config = bench.config
    return Contest(
        problem=bench.problem,
        space=bench.space,
        tasks=tasks,
        start=damage(bench, *tasks),
        terms=config,
        optimiser=optimiser,
        rate=config.rates[optimiser],
        lessons="recovery",
        seed=derived(bench.seed, "schedules", *tasks),
        context={"run": bench.run, "task": "+".join(tasks), "pair": kind, "optimiser": optimiser},
        dropout=config.dropout > 0,
        keeping=bench.keeping,
    )


def over_pairs(rows: Sequence[Row]) -> Iterator[Row]:
    """Every row that all pairs have, averaged over them: a run is one unit, its pairs are not
    independent.

    What tells the tasks of a pair apart (their letters) means nothing over pairs and is left out.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if "role" not in row.context:
            key = (
                row.quantity,
                *((k, v) for k, v in row.context.items() if k not in ("pair", "task")),
            )
            groups.setdefault(key, []).append(row)
    for group in groups.values():
        values, nulls = [r.value for r in group], [r.null for r in group]
        context = {**group[0].context, "pair": EVERY_PAIR, "task": EVERY_PAIR}
        yield Row(
            quantity=group[0].quantity, value=_mean(values), null=_mean(nulls), context=context
        )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if len(known) == len(values) and known else None
