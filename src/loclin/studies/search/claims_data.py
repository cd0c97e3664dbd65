"""What a run draws before it searches: examples that score, examples behind bases, and the point
halfway back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.models.evaluation import EvalSet
from loclin.seeds import derived
from loclin.studies.context import RunContext
from loclin.studies.damage import recovery
from loclin.studies.search.claims_settings import SearchClaimsSettings
from loclin.tasks.batch import Batch
from loclin.tasks.example import Example

Vector = Float[Tensor, " D"]
SearchRun = RunContext[SearchClaimsSettings]


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchData:
    """Examples of the run's task; no group is in two of these.

    Attributes:
        select: score every candidate; gradient and Hessian of the law are theirs.
        batches: of the same split, behind the bases.
        recovery: behind the recovery gradient and the Krylov space.
        validate: say when half of the score is back.
        test: select nothing.
    """

    select: EvalSet
    batches: list[Batch]
    recovery: list[Batch]
    validate: EvalSet
    test: tuple[Example, ...]


def search_data(ctx: SearchRun) -> SearchData:
    """Draw them by the run's seed.

    Raises:
        LoclinError: a gradients split with too few groups for both of its uses.
    """
    settings, problem = ctx.settings, ctx.problem

    def draw(split: str, count: int, purpose: str) -> tuple[list[Example], list[Example]]:
        return divided(problem.examples[split][ctx.task], count, seed=derived(ctx.seed, purpose))

    wanted = settings.gradients * settings.gradient_batch
    select, rest = draw("gradients", settings.select_examples, "select")
    if len(select) < settings.select_examples or len(rest) < wanted:
        raise LoclinError(
            f"expected {settings.select_examples} + {wanted} examples of {ctx.task} in the "
            f"gradients split in groups that can be divided, found {len(select)} + {len(rest)}: "
            "give more data or lower --select-examples, --gradients or --gradient-batch"
        )
    behind = problem.collate(rest[:wanted])
    recovering, _ = draw("recovery", settings.select_examples, "recovery gradient")
    validate, _ = draw("validate", settings.validate_examples, "halfway")
    test, _ = draw("test", settings.test_examples, "table")
    return SearchData(
        select=EvalSet.of(problem, select, at_once=settings.curvature_chunk),
        batches=list(behind.chunks(settings.gradient_batch)),
        recovery=list(problem.collate(recovering).chunks(settings.curvature_chunk)),
        validate=EvalSet.of(problem, validate),
        test=tuple(test),
    )


def divided(
    examples: Sequence[Example], count: int, *, seed: int
) -> tuple[list[Example], list[Example]]:
    """At most `count` examples in whole groups as they come in a shuffle, cut at the last; and
    those of all other groups.

    >>> pool = [Example(prompt=str(i), answer=" x", group=str(i // 2)) for i in range(10)]
    >>> some, others = divided(pool, 3, seed=0)
    >>> len(some), len(others), {e.group for e in some} & {e.group for e in others}
    (3, 6, set())
    """
    groups: dict[str, list[Example]] = {}
    for e in examples:
        groups.setdefault(e.group or e.prompt, []).append(e)
    names, taken, others = list(groups), list[Example](), list[Example]()
    for i in torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist():
        (taken if len(taken) < count else others).extend(groups[names[i]])
    return taken[:count], others


@dataclass(frozen=True, eq=False, kw_only=True)
class RecoveryPath:
    """The AdamW recovery, the same as in the other studies of this run.

    Attributes:
        prefix: its first k updates.
        halfway: θ_H, the first point looked at with at least half of the score back.
        step: its step; None where it was not back at the end, which θ_H is then.
    """

    prefix: Float[Tensor, "k D"]
    halfway: Vector
    step: int | None


def recover(ctx: SearchRun, eval_set: EvalSet, known: float, damaged: Vector) -> RecoveryPath:
    """Train the task back from θ_D. The eval set is of validation examples, whose score was `known`
    at θ₀.
    """
    settings, space = ctx.settings, ctx.space
    with space.restored():
        space.write(damaged)
        enough = (known + score_of(eval_set)) / 2
    halfway: list[tuple[int | None, Vector]] = []

    def watch(t: int) -> None:
        if not halfway and t % settings.halfway_every == 0 and score_of(eval_set) >= enough:
            halfway.append((t, space.read()))
        if not halfway and t == settings.steps:
            halfway.append((None, space.read()))

    k, steps = settings.k, settings.steps
    way = recovery(
        ctx, "adamw", ctx.task, damaged, steps, order="recovery", head=k, after_step=watch
    )
    ((step, point),) = halfway
    return RecoveryPath(prefix=way.head[:k].clone(), halfway=point, step=step)


def score_of(eval_set: EvalSet) -> float:
    """Share of the examples answered right where the model stands."""
    sums, counts = eval_set.tallies()
    return float(sums[1] / counts[1])
