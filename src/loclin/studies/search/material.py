"""What a run draws before it begins: examples that score, examples behind bases, and the point
halfway back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.models.exam import Exam
from loclin.seeds import derived
from loclin.studies.bench import Bench
from loclin.studies.course import recovery
from loclin.studies.search.config import Config
from loclin.tasks.batch import Batch
from loclin.tasks.example import Example

Vector = Float[Tensor, " D"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Material:
    """Examples of the run's task; no group is in two of these.

    Attributes:
        select: score every candidate, from the gradients split; gradient and Hessian of the law are
            theirs.
        batches: of the same split, behind the bases.
        recovery: of the recovery split, behind the recovery gradient and the Krylov space.
        validate: say when half of the score is back.
        test: of the test split, which no candidate is selected by.
    """

    select: Exam
    batches: list[Batch]
    recovery: list[Batch]
    validate: Exam
    test: tuple[Example, ...]


def material(bench: Bench[Config]) -> Material:
    """Draw them.

    Raises:
        LoclinError: a gradients split with too few groups for both of its uses.
    """
    config, problem = bench.config, bench.problem
    parts = {
        name: problem.examples[name][bench.task]
        for name in ("gradients", "recovery", "validate", "test")
    }
    wanted = config.gradients * config.gradient_batch
    select, rest = divided(
        parts["gradients"], config.select_examples, seed=derived(bench.seed, "select")
    )
    if len(select) < config.select_examples or len(rest) < wanted:
        raise LoclinError(
            f"expected {config.select_examples} + {wanted} examples of {bench.task} in the "
            "gradients split in groups that can be "
            f"divided, found {len(select)} + {len(rest)}: give more data or lower "
            "--select-examples, --gradients or --gradient-batch"
        )
    behind = problem.collate(rest[:wanted])
    shown, _ = divided(
        parts["recovery"], config.select_examples, seed=derived(bench.seed, "recovery gradient")
    )
    validate, _ = divided(
        parts["validate"], config.validate_examples, seed=derived(bench.seed, "halfway")
    )
    test, _ = divided(parts["test"], config.test_examples, seed=derived(bench.seed, "table"))
    return Material(
        select=Exam.of(problem, select, at_once=config.curvature_chunk),
        batches=list(behind.chunks(config.gradient_batch)),
        recovery=list(problem.collate(shown).chunks(config.curvature_chunk)),
        validate=Exam.of(problem, validate),
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
    names = list(groups)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    taken: list[Example] = []
    others: list[Example] = []
    for i in order:
        (taken if len(taken) < count else others).extend(groups[names[i]])
    return taken[:count], others


@dataclass(frozen=True, eq=False, kw_only=True)
class Way:
    """The AdamW recovery, the same as in the other studies of this run.

    Attributes:
        prefix: its first k updates.
        halfway: θ_H, the first point looked at whose score is at least halfway from the damaged one
            to the one before.
        step: its step; None where the score was not half back at the end: θ_H is the end then.
    """

    prefix: Float[Tensor, "k D"]
    halfway: Vector
    step: int | None


def recover(bench: Bench[Config], exam: Exam, known: float, damaged: Vector) -> Way:
    """Train the task back from θ_D and keep what the study needs.

    Args:
        bench: of the run.
        exam: of validation examples.
        known: their score at θ₀.
        damaged: θ_D.
    """
    config, space = bench.config, bench.space
    with space.restored():
        space.write(damaged)
        enough = (known + score_of(exam)) / 2
    found: list[tuple[int, Vector]] = []
    last: list[Vector] = []

    def watch(t: int) -> None:
        if not found and t % config.halfway_every == 0 and score_of(exam) >= enough:
            found.append((t, space.read()))
        if t == config.steps:
            last.append(space.read())

    way = recovery(
        bench,
        "adamw",
        bench.task,
        damaged,
        config.steps,
        order="recovery",
        exactly=config.k,
        after_step=watch,
    )
    step, point = found[0] if found else (None, last[0])
    return Way(prefix=way.head[: config.k].clone(), halfway=point, step=step)


def score_of(exam: Exam) -> float:
    """Share of an exam answered right where the model stands."""
    sums, counts = exam.tallies()
    return float(sums[1] / counts[1])
