"""One pilot: a user's tasks trained into the model as it is, by every schedule (measures §12)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loclin.errors import LoclinError
from loclin.models import BUILT_IN, Problem, load
from loclin.models.lora import Lora, attach
from loclin.models.pretrained import How, device_named
from loclin.parameters import ParameterSpace
from loclin.record import Part
from loclin.schedules.contest import Contest
from loclin.schedules.loop import check_installed
from loclin.schedules.rows import contest_rows, cost_note
from loclin.seeds import derived
from loclin.studies.bench import Progress
from loclin.studies.pilot.config import Config

#: Shares of the groups of a user's data.
SHARES = {"train": 0.6, "validate": 0.2, "test": 0.2}
KNOWN = 0.95  # score from which a task has nothing left to learn


def device(config: Config) -> str:
    """The device that a configuration asks for."""
    return device_named(config.device, small=config.model in BUILT_IN)


def fingerprint(config: Config) -> dict[str, str]:
    """What a run folder is of beside its settings: the data, and which files the model has. Other
    data make another pilot.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in config.data:
        digest.update(Path(name).read_bytes() if Path(name).is_file() else name.encode())
    folder = Path(config.model)
    sizes = (
        [(p.name, p.stat().st_size) for p in sorted(folder.iterdir()) if p.is_file()]
        if folder.is_dir()
        else []
    )
    return {
        "data_digest": digest.hexdigest(),
        "model_files": hashlib.blake2b(repr(sizes).encode(), digest_size=8).hexdigest(),
    }


def run_one(config: Config, run: int, progress: Progress) -> Part:
    """Everything that pilot number `run` contributes.

    Raises:
        LoclinError: whatever is wrong with model or data, fewer than two tasks, a split too small
            for a batch, tasks that are all known already, a loss or gradient that is not finite
            (task and step are named), a package that a schedule needs.
    """
    began = time.perf_counter()
    check_installed(config.named)
    progress("reading model and data", 0.0)
    seed = config.seed + run
    own = config.data[0] in BUILT_IN  # of a built-in set a model may have learned the train split
    problem = load(
        config.model,
        data=config.data,
        seed=seed,
        how=How.of(config, device(config)),
        template=config.template,
        long=config.long,
        shares=SHARES,
        progress=progress,
    )
    lessons = "recovery" if own else "train"
    tasks = chosen_tasks(config, problem, lessons)
    problem, space = trained_part(config, problem, seed)
    contest = Contest(
        problem=problem,
        space=space,
        tasks=tasks,
        start=space.read(),
        terms=config,
        optimiser=config.optimiser,
        rate=config.lr,
        lessons=lessons,
        seed=derived(seed, "pilot"),
        context={"run": run, "task": "+".join(tasks), "pair": "all", "optimiser": config.optimiser},
        validated=True,
    )
    scores = contest.asked(contest.whole)[:, 1]
    known = ", ".join(f"{score:.2f} on {task}" for task, score in zip(tasks, scores, strict=True))
    if scores.min() >= KNOWN:
        raise LoclinError(
            f"expected a task with something to learn, found {known} before any training: give "
            "tasks that the model does not know"
        )
    rows, seconds = contest_rows(contest, progress)
    counts = ", ".join(
        f"{len(exam.folds)} of {task}" for task, exam in zip(tasks, contest.whole, strict=True)
    )
    said = [
        f"scores are of test examples: {counts}",
        f"known before training, first pilot: {known}",
    ]
    notes = [*problem.notes, *said, *cost_note(seconds)] if run == 0 else []
    return Part(rows=rows, arrays={}, seconds=time.perf_counter() - began, notes=notes)


def chosen_tasks(config: Config, problem: Problem, lessons: str) -> tuple[str, ...]:
    """The tasks to train, two or more, each with enough examples for a batch.

    Raises:
        LoclinError: an unknown task, only one, or too few examples.
    """
    tasks = config.tasks or problem.tasks
    unknown = [task for task in tasks if task not in problem.tasks]
    if unknown:
        raise LoclinError(
            f"unknown task {unknown[0]!r}: expected some of {', '.join(problem.tasks)}; change "
            "--tasks"
        )
    if len(tasks) < 2:
        raise LoclinError(
            f"expected two tasks or more, found {', '.join(tasks)} alone: give a file for each, or "
            "records that name their task"
        )
    config.check_terms(len(tasks))
    _check_sizes(config, problem, tasks, lessons)
    return tasks


def _check_sizes(config: Config, problem: Problem, tasks: Sequence[str], lessons: str) -> None:
    for task in tasks:
        found = len(problem.examples[lessons][task])
        if found < config.batch:
            raise LoclinError(
                f"expected at least {config.batch} examples of {task} to train on, found {found}, "
                f"{SHARES['train']:.0%} of those read: "
                "give more data or lower --batch"
            )


def trained_part(config: Config, problem: Problem, seed: int) -> tuple[Problem, ParameterSpace]:
    """The model with its adapter, where one is trained, and the trained coordinates."""
    if config.space != "lora":
        return problem, ParameterSpace(
            problem.model, "*" if config.space == "full" else config.space
        )
    lora = Lora(rank=config.rank, alpha=config.alpha, targets=config.targets)
    adapted = attach(problem.model, lora, seed=seed)
    if config.dtype == "float64":
        adapted.double()  # peft's factors are float32 whatever the model's dtype
    return replace(problem, model=adapted), ParameterSpace(adapted)
