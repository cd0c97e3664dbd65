"""Which two tasks a run trains: chosen by the cosine of their gradients where the model knows both
(measures §12).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float

from loclin.errors import LoclinError
from loclin.record import Row
from loclin.seeds import derived
from loclin.studies.bench import Bench
from loclin.studies.directions import batch_gradients
from loclin.studies.families import products, tangent_family
from loclin.studies.schedules.config import KINDS, Config

Pair = tuple[str, str]
Cosines = Float[np.ndarray, "n n"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Halves:
    """Cosines of n tasks' gradients, each task's examples cut in two.

    Attributes:
        first: of the first halves.
        second: of the second.
        within: of the two halves of each task.
    """

    first: Cosines
    second: Cosines
    within: Float[np.ndarray, " n"]


def task_cosines(bench: Bench[Config], tasks: Sequence[str]) -> dict[str, Halves]:
    """Cosines of some tasks' gradients where the space stands, in every space of the study (with
    LoRA ΔW first, then the factors).

    Every task's examples are cut in two. Pairs are chosen by the first halves and reported on the
    second; the cosine of the two halves of one task says how much of a cosine noise leaves.
    """
    rows = []
    for task in tasks:
        data = bench.problem.batch("gradients", task)
        shuffle = torch.Generator().manual_seed(derived(bench.seed, "cosines", task))
        order = torch.randperm(len(data), generator=shuffle)[: bench.config.cosine_examples]
        rows.append(
            batch_gradients(
                bench.problem, bench.space, [data.rows(part) for part in order.chunk(2)]
            )
        )
    family = tangent_family(bench, bench.space.read(), torch.cat(rows))
    return {space: _halves(gram) for space, gram in products(bench, family).items()}


def _halves(gram: Float[np.ndarray, "n2 n2"]) -> Halves:
    lengths = np.sqrt(np.diag(gram))
    cosines = gram / np.outer(lengths, lengths)
    return Halves(
        first=cosines[::2, ::2], second=cosines[1::2, 1::2], within=np.diag(cosines[::2, 1::2])
    )


def chosen_pairs(cosines: Cosines, tasks: Sequence[str], wanted: Sequence[str]) -> dict[str, Pair]:
    """The pair of every kind: agreeing has the largest cosine, conflicting the smallest, neutral of
    the others the nearest to 0.

    Args:
        cosines: of the tasks' gradients.
        tasks: their names.
        wanted: kinds, or pairs by name ("copy+swap").

    Raises:
        LoclinError: an unknown task, or too few tasks.

    >>> chosen_pairs(np.array([[1, 0.9, 0.1], [0.9, 1, -0.5], [0.1, -0.5, 1]]), ["a", "b", "c"], ["neutral", "conflicting"])
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
    found: dict[str, Pair] = {}
    for name in wanted:
        if name in KINDS and name not in by_rule:
            raise LoclinError(
                f"expected three tasks or more for pairs chosen by rule, found {', '.join(tasks)}: "
                "name pairs, such as --pairs "
                f"{tasks[0]}+{tasks[1]}"
            )
        first, _, second = name.partition("+")
        pair = by_rule[name] if name in KINDS else (first, second)
        unknown = [task for task in pair if task not in tasks]
        if unknown:
            raise LoclinError(
                f"unknown task {unknown[0]!r} in --pairs {name}: expected two of {', '.join(tasks)}"
            )
        found[name] = pair
    return found


def pair_rows(bench: Bench[Config], kind: str, pair: Pair, point: str) -> Iterator[Row]:
    """The cosine of a pair where the space stands, on the halves that did not choose it, and the
    mean of those within its tasks.
    """
    for space, found in task_cosines(bench, pair).items():
        here = {
            "run": bench.run,
            "task": "+".join(pair),
            "pair": kind,
            "point": point,
            "space": space,
        }
        yield Row(quantity="pair_cosine", value=float(found.second[0, 1]), context=here)
        yield Row(quantity="half_cosine", value=float(found.within.mean()), context=here)


def _by_rule(cosines: Mapping[Pair, float]) -> dict[str, Pair]:
    if len(cosines) < 3:
        return {}
    agreeing, conflicting = (best(cosines, key=lambda pair: cosines[pair]) for best in (max, min))
    others = [pair for pair in cosines if pair not in (agreeing, conflicting)]
    neutral = min(others, key=lambda pair: abs(cosines[pair]))
    return dict(zip(KINDS, (agreeing, neutral, conflicting), strict=True))
