"""What a schedule costs beyond the backward passes of its tasks.

    python benchmarks/schedules.py [--only sequences|statements|gpt2] [--out FILE]

On the built-in models (all weights; LoRA of rank 8) and on a GPT-2 configuration of 12.3 million
weights with random weights, two tasks, AdamW: the time of steps by each schedule over that of plain
steps, which for each of the two tasks make a forward and a backward pass into the same `.grad`,
then one step of the same optimiser. Median over pairs measured in turn, with the range of the
pairs' middle half; beside each how far the process grew at most (Linux alone). On the largest,
torchjd's methods are left out: what they cost beside the gradients does not grow with the model.
Aim: at most 1.1 for schedules that need no more than the Gramian of the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from curvature import growth
from search import eval_set
from search import gpt2 as larger
from side_by_side import compare, report

from loclin import models
from loclin.models.lora import Lora, attach
from loclin.parameters import ParameterSpace
from loclin.schedules.loop import train_tasks, weighing
from loclin.schedules.names import LIBRARY, SUMMED
from loclin.tasks.batch import Batch, answer_loss, mean_answer_loss
from loclin.training import make_optimiser

PAIRS = 9


def rows(
    name: str,
    model,
    batches: tuple[list[Batch], list[Batch]],
    steps: int,
    schedules: Sequence[str] = (*SUMMED, *LIBRARY),
    pairs: int = PAIRS,
    aim: float = 1.1,
) -> list[str]:
    """One row for every schedule."""
    space = ParameterSpace(model)
    size, of = len(batches[0][0]), f"{name}, D = {space.dimension}"

    def plain() -> None:
        optimiser, streams = make_optimiser("adamw", space, 1e-5), [cycle(b) for b in batches]
        for _ in range(steps):
            for stream in streams:
                mean_answer_loss(model, next(stream)).backward()
            optimiser.step()
            optimiser.zero_grad()

    def by(schedule: str):
        def train() -> None:
            streams = {"A": cycle(batches[0]), "B": cycle(batches[1])}
            made = make_optimiser("adamw", space, 1e-5)
            plan = [("A", "B")] * steps
            train_tasks(
                space,
                streams,
                lambda b: answer_loss(model, b),
                made,
                plan,
                weigh=weighing(schedule, 2),
            )

        return train

    found = []
    with space.restored():
        base = growth(plain)
        for schedule in schedules:
            against, ratio = compare(by(schedule), plain, pairs)
            found.append(
                f"| {of}: {steps} steps by {schedule}, grows by {growth(by(schedule))} | two "
                f"backward passes of {size} examples and a "
                f"step, {steps} times, {against * 1000:.0f} ms, grows by {base} | {ratio} | "
                f"{f'≤ {aim}' if schedule in SUMMED else ''} |"
            )
    return found


def batches_of(problem, tasks: tuple[str, str], size: int) -> tuple[list[Batch], list[Batch]]:
    first, second = (
        list(problem.batch("recovery", task).rows(slice(0, 8 * size)).chunks(size))
        for task in tasks
    )
    return first, second


def sequences() -> list[str]:
    problem = models.load("sequences")
    return rows("sequences", problem.model, batches_of(problem, ("copy", "swap"), 24), 20)


def statements() -> list[str]:
    problem = models.load("statements")
    batches = batches_of(problem, ("colour", "town"), 16)
    return rows("statements, LoRA", attach(problem.model, Lora(rank=8), seed=0), batches, 10)


def gpt2() -> list[str]:
    problem = larger()
    shown = eval_set(problem, 1024).batch
    return rows(
        "GPT-2", problem.model, (list(shown.chunks(8))[:1], list(shown.chunks(8))[1:]), 2, SUMMED
    )


if __name__ == "__main__":
    report(__doc__ or "", sequences, statements, gpt2)
