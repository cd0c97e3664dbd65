"""A user's own tasks, to be trained into the model as it is (measures §12)."""

from __future__ import annotations

from loclin.errors import LoclinError
from loclin.models import BUILT_IN, Problem, load
from loclin.run.runner import Session
from loclin.schedules.comparison import ScheduleComparison
from loclin.seeds import derived
from loclin.studies.context import adapted
from loclin.studies.known import Known, known
from loclin.studies.schedules.settings import OptimiserName, SchedulesSettings

#: Shares of the groups of a user's data.
SHARES = {"train": 0.6, "validate": 0.2, "test": 0.2}
KNOWN = 0.95  # score from which a task has nothing left to learn


def own_comparisons(
    settings: SchedulesSettings, run: int, session: Session
) -> tuple[dict[OptimiserName, ScheduleComparison], Known, list[str]]:
    """A comparison for every optimiser, what is known before, and what was read, in sentences.

    Raises:
        LoclinError: whatever is wrong with model or data, fewer than two tasks, a split too small
            for a batch, tasks that are all known already.
    """
    session.progress("reading model and data", 0.0)
    seed = settings.seed + run
    report, data = session.progress, settings.model_seed(run)
    problem = load(settings, seed=data, shares=SHARES, progress=report)
    # of a built-in set a model may have learned the train split
    split = "recovery" if settings.data[0] in BUILT_IN else "train"
    tasks = chosen_tasks(settings, problem, split)
    before = known(problem.only(tasks), settings, run, progress=report)
    problem, space = adapted(problem, settings, run)
    comparisons = {
        optimiser: ScheduleComparison(
            problem=problem,
            space=space,
            tasks=tasks,
            start=space.read(),
            options=settings,
            optimiser=optimiser,
            lr=lr,
            train_split=split,
            seed=derived(seed, "pilot"),
            dropout=settings.dropout > 0,
            keep=session.kept,
        )
        for optimiser, lr in settings.learning_rates.items()
    }
    notes = [*problem.notes, *before.notes, *_known(next(iter(comparisons.values())))]
    return comparisons, before, notes


def chosen_tasks(settings: SchedulesSettings, problem: Problem, split: str) -> tuple[str, ...]:
    """The tasks to train, two or more, each with enough examples for a batch.

    Raises:
        LoclinError: an unknown task, only one, or too few examples.
    """
    tasks = settings.tasks or problem.tasks
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
    settings.check_comparison(len(tasks))
    for task in tasks:
        count = len(problem.examples[split][task])
        if count < settings.batch:
            raise LoclinError(
                f"expected at least {settings.batch} examples of {task} to train on, found "
                f"{count}, {SHARES['train']:.0%} of those read: give more data or lower --batch"
            )
    return tasks


def _known(comparison: ScheduleComparison) -> list[str]:
    """How many test examples there are, and how well the tasks are known before any training."""
    scores, tasks = comparison.evaluate(comparison.test_sets)[:, 1], comparison.tasks
    known = ", ".join(f"{score:.2f} on {task}" for task, score in zip(tasks, scores, strict=True))
    if scores.min() >= KNOWN:
        raise LoclinError(
            f"expected a task with something to learn, found {known} before any training: give "
            "tasks that the model does not know"
        )
    counts = zip(tasks, comparison.test_sets, strict=True)
    return [
        f"scores are of test examples: {', '.join(f'{len(s.folds)} of {t}' for t, s in counts)}",
        f"known before training, first run: {known}",
    ]
