"""The course of every run (measures §1): one task is destroyed while the others are kept, then
trained back and recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.run.rows import Row
from loclin.seeds import derived
from loclin.studies.context import RunContext
from loclin.studies.settings import DamageSettings, TrainBackSettings
from loclin.tasks.batch import concatenate
from loclin.tasks.wrong import with_wrong_answers
from loclin.training import Trajectory, make_optimiser, minibatches, record, train

DAMAGE_ROUNDS = 5


def damage(ctx: RunContext[DamageSettings], *tasks: str) -> Float[Tensor, " D"]:
    """θ_D, after training on wrong answers to some tasks and right ones to the others, in equal
    shares.

    It is trained once for all studies (`RunContext.kept`).

    Raises:
        LoclinError: the score does not fall as far as it must.
    """
    return ctx.kept(f"damaged in {' and '.join(tasks)}", lambda: _damaged(ctx, tasks))


def _damaged(ctx: RunContext[DamageSettings], tasks: Sequence[str]) -> Float[Tensor, " D"]:
    settings, problem, space = ctx.settings, ctx.problem, ctx.space
    examples = problem.examples["damage"]
    seeds = {task: derived(ctx.seed, "wrong answers", task) for task in tasks}
    wrong = [problem.collate(with_wrong_answers(examples[t], seed=s)) for t, s in seeds.items()]
    kept = [problem.collate(examples[t]) for t in problem.tasks if t not in tasks]
    data = concatenate([*kept, *wrong * max(len(kept) // len(wrong), 1)])
    dropout = ctx.dropout("damage", *tasks)
    with space.restored():
        batches = minibatches(data, settings.batch, seed=derived(ctx.seed, "damage", *tasks))
        optimiser = make_optimiser("adamw", space, settings.damage_lr)
        for _ in range(DAMAGE_ROUNDS):
            steps = settings.damage_steps
            train(problem.model, space, batches, optimiser, steps, dropout_seed=dropout)
            scores = {task: ctx.score(task) for task in tasks}
            known = [task for task in tasks if scores[task] > problem.destroyed_at(task)]
            if not known:
                return space.read()
    raise LoclinError(
        f"expected a score of {problem.destroyed_at(known[0]):.2f} or less on {known[0]} after "
        f"damage, found {scores[known[0]]:.2f}: raise --damage-steps or --damage-lr"
    )


def destroyed(
    ctx: RunContext[DamageSettings], tasks: Sequence[str]
) -> tuple[Float[Tensor, " D"], list[Row]]:
    """θ_D of the run's task, and rows: the scores on some tasks before and after, and D."""
    rows = [ctx.row("score", ctx.score(t), point="pretrained", on=t) for t in tasks]
    damaged = damage(ctx, ctx.task)
    with ctx.space.restored():
        ctx.space.write(damaged)
        rows += [ctx.row("score", ctx.score(t), point="damaged", on=t) for t in tasks]
    return damaged, [*rows, ctx.row("dimension", float(ctx.space.dimension))]


def recovery(
    ctx: RunContext[TrainBackSettings],
    optimiser: str,
    task: str,
    start: Tensor,
    steps: int,
    *,
    order: str,
    head: int,
    reset_at: int | None = None,
    after_step: Callable[[int], None] | None = None,
) -> Trajectory:
    """A recorded recovery of a task; the space is back where it was afterwards.

    Args:
        optimiser: "sgd" or "adamw", at the run's learning rate.
        start: θ_D.
        steps: T.
        order: name of the data order; the same name gives the same order in every study.
        head: how many of the first updates are kept exactly even where the rest is sketched.
        reset_at, after_step: as in `training.record`.
    """
    settings, problem, space = ctx.settings, ctx.problem, ctx.space
    data, seed = problem.batch("recovery", task), derived(ctx.seed, "order", order)
    rate = settings.learning_rates(ctx.run)[optimiser]
    with space.restored():
        space.write(start)
        return record(
            problem.model,
            space,
            minibatches(data, settings.batch, seed=seed),
            make_optimiser(optimiser, space, rate),  # type: ignore[arg-type]
            steps,
            storage=ctx.storage,
            head=head,
            reset_at=reset_at,
            dropout_seed=ctx.dropout(order),
            after_step=after_step,
        )
