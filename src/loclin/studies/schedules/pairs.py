"""Which two tasks a run destroys and trains back, chosen by the cosine of their gradients where the
model knows both, and how far apart their specialists go (measures §5, §12).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from loclin.errors import LoclinError
from loclin.geometry.gramian import cosines, span_overlap
from loclin.run.rows import Row
from loclin.schedules.comparison import ScheduleComparison
from loclin.seeds import derived
from loclin.studies.context import RunContext
from loclin.studies.directions import batch_gradients
from loclin.studies.families import Family, family_at, products, steps_family
from loclin.studies.schedules import names as n
from loclin.studies.schedules.settings import SchedulesSettings

Pair = tuple[str, str]
Cosines = Float[np.ndarray, "n n"]


class Halves(NamedTuple):
    """Cosines of n tasks' gradients, each task's examples cut in two."""

    first: Cosines  # of the first halves
    second: Cosines
    within: Float[np.ndarray, " n"]  # of the two halves of each task


def task_cosines(ctx: RunContext[SchedulesSettings], tasks: Sequence[str]) -> dict[str, Halves]:
    """Cosines of some tasks' gradients where the space stands, in every space of the study (with
    LoRA ΔW first, then the factors).

    Pairs are chosen by the first halves of the examples and reported on the second; the cosine of
    the two halves of one task says how much of a cosine noise leaves.
    """
    rows = []
    for task in tasks:
        data = ctx.problem.batch("gradients", task)
        shuffle = torch.Generator().manual_seed(derived(ctx.seed, "cosines", task))
        order = torch.randperm(len(data), generator=shuffle)[: ctx.settings.cosine_examples]
        halves = [data.rows(part) for part in order.chunk(2)]
        rows.append(batch_gradients(ctx.problem, ctx.space, halves))
    family, found = family_at(ctx, ctx.space.read(), torch.cat(rows)), {}
    for space, gram in products(ctx, family).items():
        each = cosines(gram)
        found[space] = Halves(each[::2, ::2], each[1::2, 1::2], np.diag(each[::2, 1::2]))
    return found


def chosen_pairs(cosines: Cosines, tasks: Sequence[str], wanted: Sequence[str]) -> dict[str, Pair]:
    """The pair of every kind: agreeing has the largest cosine, conflicting the smallest, neutral of
    the others the nearest to 0.

    Args:
        wanted: kinds, or pairs by name ("copy+swap").

    Raises:
        LoclinError: an unknown task, or too few tasks.

    >>> cosines = np.array([[1, 0.9, 0.1], [0.9, 1, -0.5], [0.1, -0.5, 1]])
    >>> chosen_pairs(cosines, ["a", "b", "c"], ["neutral", "conflicting"])
    {'neutral': ('a', 'c'), 'conflicting': ('b', 'c')}
    """
    if len(tasks) < 2:
        raise LoclinError(
            f"expected two tasks or more, found {', '.join(tasks)} alone: give data whose records "
            "name their task"
        )
    by_rule = _by_rule(
        {(tasks[i], tasks[j]): cosines[i, j] for i, j in combinations(range(len(tasks)), 2)}
    )
    pairs: dict[str, Pair] = {}
    for name in wanted:
        if name in n.KINDS and name not in by_rule:
            raise LoclinError(
                f"expected three tasks or more for pairs chosen by rule, found {', '.join(tasks)}: "
                f"name pairs, such as --pairs {tasks[0]}+{tasks[1]}"
            )
        first, _, second = name.partition("+")
        pairs[name] = by_rule[name] if name in n.KINDS else (first, second)
        unknown = [task for task in pairs[name] if task not in tasks]
        if unknown:
            raise LoclinError(
                f"unknown task {unknown[0]!r} in --pairs {name}: expected two of {', '.join(tasks)}"
            )
    return pairs


def _by_rule(cosines: Mapping[Pair, float]) -> dict[str, Pair]:
    if len(cosines) < 3:
        return {}
    agreeing, conflicting = (most(cosines, key=lambda p: cosines[p]) for most in (max, min))
    others = [pair for pair in cosines if pair not in (agreeing, conflicting)]
    neutral = min(others, key=lambda pair: abs(cosines[pair]))
    return dict(zip(n.KINDS, (agreeing, neutral, conflicting), strict=True))


def pair_rows(
    ctx: RunContext[SchedulesSettings], kind: str, pair: Pair, point: str
) -> Iterator[Row]:
    """The cosine of a pair where the space stands, on the halves that did not choose it, and the
    mean of those within its tasks.
    """
    context = {"run": ctx.run, "task": "+".join(pair), "pair": kind, "point": point}
    for space, halves in task_cosines(ctx, pair).items():
        here = {**context, "space": space}
        yield Row(quantity=n.PAIR_COSINE, value=float(halves.second[0, 1]), context=here)
        yield Row(quantity=n.HALF_COSINE, value=float(halves.within.mean()), context=here)


def apart_rows(
    ctx: RunContext[SchedulesSettings], comparison: ScheduleComparison, context: Mapping[str, Any]
) -> Iterator[Row]:
    """Overlap and cosine of the specialists of two tasks, and of one task twice, in every space of
    the study.

    The space of a specialist is the span of its first k updates; the null of an overlap is k/D (two
    random k-subspaces).
    """

    def updates(task: str, order: str = "order") -> Family:
        path = comparison.specialist(task, order=order).path
        assert path is not None
        return steps_family(ctx, path)

    (first, second), k = comparison.tasks, ctx.settings.k
    mine = updates(first)
    own = products(ctx, mine)
    for between, other in ((n.TWO, updates(second)), (n.AGAIN, updates(first, "again"))):
        beside, across = products(ctx, other), products(ctx, mine, other)
        for space, gram in own.items():
            here = {**context, "between": between, "space": space}
            value = span_overlap(gram[:k, :k], across[space][:k, :k], beside[space][:k, :k])
            chance = k / ctx.dimension(space)
            yield Row(quantity=n.OVERLAP, value=value, null=chance, context={**here, "k": k})
            norms = np.sqrt(gram.sum() * beside[space].sum())
            cosine = float(across[space].sum() / norms)
            yield Row(quantity=n.DISPLACEMENT_COSINE, value=cosine, null=0.0, context=here)
