"""The course of every run (measures §1): one task is destroyed while the others are kept, then
trained back and recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.seeds import derived
from loclin.studies.bench import Bench
from loclin.studies.settings import RecoverySettings, Settings
from loclin.tasks.batch import concatenate
from loclin.tasks.wrong import with_wrong_answers
from loclin.training import Trajectory, make_optimiser, minibatches, record, train

DAMAGE_ROUNDS = 5


def damage(bench: Bench[Settings], *tasks: str) -> Float[Tensor, " D"]:
    """θ_D: the point after training on wrong answers to one task, or several, and right ones to the
    others, in equal shares.

    Of a built-in model it is trained once for all studies (`Bench.kept`).

    Raises:
        LoclinError: the score does not fall as far as it must.
    """
    return bench.kept(f"damaged in {' and '.join(tasks)}", lambda: _damaged(bench, tasks))


def _damaged(bench: Bench[Settings], tasks: Sequence[str]) -> Float[Tensor, " D"]:
    config, problem, space = bench.config, bench.problem, bench.space
    examples = problem.examples["damage"]
    seeds = {task: derived(bench.seed, "wrong answers", task) for task in tasks}
    wrong = [
        problem.collate(with_wrong_answers(examples[task], seed=seed))
        for task, seed in seeds.items()
    ]
    kept = [problem.collate(examples[t]) for t in problem.tasks if t not in tasks]
    data = concatenate([*kept, *wrong * max(len(kept) // len(wrong), 1)])
    with space.restored():
        batches = minibatches(data, config.batch, seed=derived(bench.seed, "damage", *tasks))
        optimiser = make_optimiser("adamw", space, config.damage_lr)
        for _ in range(DAMAGE_ROUNDS):
            train(
                problem.model,
                space,
                batches,
                optimiser,
                config.damage_steps,
                dropout_seed=bench.dropout("damage", *tasks),
            )
            known = {
                task: score
                for task in tasks
                if (score := bench.score(task)) > problem.destroyed_at(task)
            }
            if not known:
                return space.read()
    task, score = next(iter(known.items()))
    raise LoclinError(
        f"expected a score of {problem.destroyed_at(task):.2f} or less on {task} after damage, "
        f"found {score:.2f}: "
        "raise --damage-steps or --damage-lr"
    )


def recovery(
    bench: Bench[RecoverySettings],
    optimiser: str,
    task: str,
    start: Tensor,
    steps: int,
    *,
    order: str,
    exactly: int,
    reset_at: int | None = None,
    after_step: Callable[[int], None] | None = None,
) -> Trajectory:
    """A recorded recovery from `start`; the space is back where it was afterwards.

    Args:
        bench: of the run.
        optimiser: "sgd" or "adamw", at the run's learning rate.
        task: what is trained back.
        start: θ_D.
        steps: T.
        order: name of the data order; the same name gives the same order in every study.
        exactly: how many of the first updates are kept exactly even where the rest is sketched.
        reset_at, after_step: as in `training.record`.
    """
    config, problem, space = bench.config, bench.problem, bench.space
    with space.restored():
        space.write(start)
        batches = minibatches(
            problem.batch("recovery", task), config.batch, seed=derived(bench.seed, "order", order)
        )
        made = make_optimiser(optimiser, space, config.learning_rates(bench.run)[optimiser])  # type: ignore[arg-type]
        return record(
            problem.model,
            space,
            batches,
            made,
            steps,
            keeping=bench.keeping,
            exactly=exactly,
            reset_at=reset_at,
            dropout_seed=bench.dropout(order),
            after_step=after_step,
        )
