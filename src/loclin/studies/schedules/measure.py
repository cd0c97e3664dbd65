"""One independent run of the schedules study: a user's tasks trained into the model as it is, or
pairs of tasks destroyed and trained back, by every schedule (measures §12).
"""

from __future__ import annotations

from dataclasses import replace

from loclin.errors import LoclinError
from loclin.models import BUILT_IN, Problem, load
from loclin.run.rows import Part, Row
from loclin.run.runner import Session
from loclin.schedules.comparison import ScheduleComparison
from loclin.schedules.loop import check_installed
from loclin.seeds import derived
from loclin.studies.context import (
    Requirements,
    RunContext,
    adapted,
    check_known,
    check_sizes,
    make_context,
)
from loclin.studies.damage import damage
from loclin.studies.known import Known, known
from loclin.studies.schedules.names import EVERY_PAIR
from loclin.studies.schedules.pairs import Pair, apart_rows, chosen_pairs, pair_rows, task_cosines
from loclin.studies.schedules.rows import arrays_of, comparison_rows, over_pairs
from loclin.studies.schedules.settings import SHARES, OptimiserName, SchedulesSettings


def measure(settings: SchedulesSettings, run: int, session: Session) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: whatever is wrong with model or data, too few tasks or examples, tasks that are
            known already, or with pairs are not known or not destroyed; a loss or gradient that is
            not finite (task and step are named), a package that a schedule needs.
    """
    check_installed(settings.named)
    trained = _pairs_trained_back if settings.pairs else _tasks_trained_in
    return trained(settings, run, session)


def requirements(settings: SchedulesSettings) -> Requirements:
    """What pairs ask of data and memory."""
    most = max(settings.batch, settings.fisher_examples)
    return Requirements(
        examples={
            "gradients": (2, "--cosine-examples"),
            "recovery": (most, "--batch or --fisher-examples"),
            "damage": (settings.batch, "--batch"),
        },
        vectors=(12 + settings.old_gradients + 2 * settings.k, "--old-gradients and --k"),
        rows=(3 * (settings.evaluations // 2), "updates of specialists"),
    )


def _tasks_trained_in(settings: SchedulesSettings, run: int, session: Session) -> Part:
    comparisons, before, notes = own_comparisons(settings, run, session)
    rows: list[Row] = []
    for done, (optimiser, comparison) in enumerate(comparisons.items()):
        tasks = "+".join(comparison.tasks)
        context = {"run": run, "task": tasks, "pair": EVERY_PAIR, "optimiser": optimiser}
        part = _part(session, done, len(comparisons))
        more, cost = comparison_rows(comparison, context, part, validated=True)
        first = not settings.widened  # whose rows of no schedule are there already
        rows += [row for row in more if first or "schedule" in row.context]
        notes += cost if done == 0 else []
    if settings.widened:
        names = ", ".join(settings.named)
        notes = [f"trained too, for the leaders of the others are not told apart: {names}"]
    notes = notes if run == 0 else []
    return Part(rows=[*rows, *before.rows], arrays=arrays_of(rows, run), notes=notes)


def _pairs_trained_back(settings: SchedulesSettings, run: int, session: Session) -> Part:
    ctx = make_context(settings, run, requirements(settings), session.progress, session.kept)
    session.progress("choosing pairs of tasks", 0.0)
    cosines = task_cosines(ctx, ctx.problem.tasks)[settings.spaces[0]].first
    pairs = chosen_pairs(cosines, ctx.problem.tasks, settings.pairs)
    for task in dict.fromkeys(task for pair in pairs.values() for task in pair):
        check_sizes(requirements(settings), ctx.problem, task)
        check_known(ctx, task)
    rows = [row for kind, pair in pairs.items() for row in pair_rows(ctx, kind, pair, "pretrained")]
    notes = [*ctx.notes]
    each = [(kind, optimiser) for kind in pairs for optimiser in settings.optimisers]
    for done, (kind, optimiser) in enumerate(each):
        part, pair = _part(session, done, len(each)), pairs[kind]
        part.progress(f"destroying {' and '.join(pair)}", 0.0)
        comparison = destroyed(ctx, pair, optimiser)
        with ctx.space.restored():
            ctx.space.write(comparison.start)
            rows += pair_rows(ctx, kind, pair, "damaged")
        context = {"run": run, "task": "+".join(pair), "pair": kind, "optimiser": optimiser}
        more, cost = comparison_rows(comparison, context, part)
        rows += [*more, *apart_rows(ctx, comparison, context)]
        notes += cost if run == done == 0 else []
    return Part(
        rows=[*ctx.known.rows, *rows, *over_pairs(rows)], arrays=arrays_of(rows, run), notes=notes
    )


def destroyed(
    ctx: RunContext[SchedulesSettings], tasks: Pair, optimiser: OptimiserName
) -> ScheduleComparison:
    """A comparison that starts where both tasks are destroyed."""
    settings = ctx.settings
    return ScheduleComparison(
        problem=ctx.problem,
        space=ctx.space,
        tasks=tasks,
        start=damage(ctx, *tasks),
        options=settings,
        optimiser=optimiser,
        lr=settings.learning_rates[optimiser],
        train_split="recovery",
        seed=derived(ctx.seed, "schedules", *tasks),
        dropout=settings.dropout > 0,
        storage=ctx.storage,
        keep=ctx.keep,
    )


def _part(session: Session, done: int, count: int) -> Session:
    """The session, with the progress of one of several comparisons."""
    progress = session.progress
    return replace(session, progress=lambda s, share: progress(s, (done + share) / count))


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
