"""Synthetic sequence tasks that one small transformer learns, told apart by the first token.

A prompt reads ``reverse a c b d =`` and the answer `` d b c a``. Every task maps a sequence of
symbols to one of the same length.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loclin.errors import LoclinError
from loclin.tasks.data import TaskData
from loclin.tasks.example import Example

Symbols = tuple[int, ...]

#: Every task: symbols in 0..n-1 and the alphabet size n in, symbols out.
TASKS: dict[str, Callable[[Symbols, int], Symbols]] = {
    "copy": lambda s, n: s,
    "reverse": lambda s, n: s[::-1],
    "sort": lambda s, n: tuple(sorted(s)),
    "increment": lambda s, n: tuple((x + 1) % n for x in s),
    "swap": lambda s, n: tuple(
        s[i + 1 if i % 2 == 0 and i + 1 < len(s) else i - i % 2] for i in range(len(s))
    ),
    "rotate": lambda s, n: s[1:] + s[:1],
    "halves": lambda s, n: s[len(s) // 2 :] + s[: len(s) // 2],
}

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True)
class SequenceTasks:
    """Which tasks, on how many distinct sequences of what length over how many symbols."""

    tasks: tuple[str, ...] = ("copy", "reverse", "sort", "increment", "swap", "rotate")
    length: int = 6
    symbols: int = 16
    pool: int = 16384

    @staticmethod
    def small() -> SequenceTasks:
        """Short sequences, without sort, which alone would take most of a training."""
        tasks = ("copy", "reverse", "halves", "increment", "swap", "rotate")
        return SequenceTasks(tasks=tasks, length=4, symbols=8, pool=2000)

    def words(self) -> list[str]:
        """Of a word-level tokenizer: padding, the equals sign, the symbols, every task name."""
        return ["<pad>", "=", *ALPHABET[: self.symbols], *TASKS]

    @property
    def longest(self) -> int:
        """Tokens of a prompt with its answer, one a word."""
        return 2 * self.length + 2

    def examples(self, *, seed: int) -> TaskData:
        """Every task's examples of the same inputs."""
        posed = sequence_examples(
            self.tasks, self.pool, length=self.length, symbols=self.symbols, seed=seed
        )
        return TaskData(source="sequences", examples=posed, read=sum(map(len, posed.values())))

    #: What a built-in model learns from: the same examples.
    train_examples = examples


def sequence_examples(
    tasks: Sequence[str], count: int, *, length: int, symbols: int, seed: int
) -> dict[str, tuple[Example, ...]]:
    """Draw `count` distinct input sequences and pose each of them for every task.

    The group of an example is its input sequence, whatever the task: no split shares one.

    Returns:
        For every task, its examples in the same order of inputs.

    Raises:
        LoclinError: an unknown task, or more sequences asked for than exist.

    >>> sequence_examples(["reverse", "swap"], 1, length=4, symbols=8, seed=0)["reverse"][0].answer
    ' e a g g'
    """
    for task in tasks:
        if task not in TASKS:
            raise LoclinError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}")
    if not 1 < symbols <= len(ALPHABET):
        raise LoclinError(
            f"expected 2 to {len(ALPHABET)} symbols, found {symbols}: change --symbols"
        )
    if count > symbols**length // 2:
        raise LoclinError(
            f"expected at most {symbols**length // 2} distinct sequences of length {length} over "
            f"{symbols} symbols, found a pool of {count}: make the pool smaller or the sequences "
            "longer"
        )
    rng = random.Random(seed)
    inputs: dict[Symbols, None] = {}
    while len(inputs) < count:
        inputs[tuple(rng.randrange(symbols) for _ in range(length))] = None
    return {task: tuple(_example(task, s, symbols) for s in inputs) for task in tasks}


def _example(task: str, sequence: Symbols, symbols: int) -> Example:
    def spell(s: Symbols) -> str:
        return "".join(f" {ALPHABET[x]}" for x in s)

    return Example(
        prompt=f"{task}{spell(sequence)} =",
        answer=spell(TASKS[task](sequence, symbols)),
        group=spell(sequence),
    )
