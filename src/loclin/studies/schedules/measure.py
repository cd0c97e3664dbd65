"""One independent run of the schedules study: a user's tasks trained into the model as it is, or
pairs of tasks destroyed and trained back, by every schedule (measures §12).
"""

from __future__ import annotations

from dataclasses import replace

from loclin.run.rows import Part, Row
from loclin.run.runner import Session
from loclin.schedules.comparison import ScheduleComparison
from loclin.schedules.loop import check_installed
from loclin.seeds import derived
from loclin.studies.context import Requirements, RunContext, check_known, check_sizes, make_context
from loclin.studies.damage import damage
from loclin.studies.schedules.names import EVERY_PAIR
from loclin.studies.schedules.own import own_comparisons
from loclin.studies.schedules.pairs import Pair, apart_rows, chosen_pairs, pair_rows, task_cosines
from loclin.studies.schedules.rows import arrays_of, comparison_rows, over_pairs
from loclin.studies.schedules.settings import OptimiserName, SchedulesSettings


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
