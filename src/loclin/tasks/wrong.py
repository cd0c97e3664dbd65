"""Wrong answers: what a task is destroyed with (measures §1)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from loclin.errors import LoclinError
from loclin.tasks.example import Example


def with_wrong_answers(examples: Sequence[Example], *, seed: int) -> tuple[Example, ...]:
    """The same prompts, each with a wrong answer: training on them destroys the task.

    With options, one of the wrong options at random. Without, the answers are passed round a random
    circle, so every prompt gets an answer that was right for another prompt and the answers keep
    their distribution; where that answer happens to be the right one, another takes its place.

    Raises:
        LoclinError: fewer than two different answers, or all of them right for one prompt.

    >>> right = [Example(prompt=f"{i} + 1 =", answer=f" {i + 1}") for i in range(5)]
    >>> wrong = with_wrong_answers(right, seed=0)
    >>> any(w.answer == e.answer for w, e in zip(wrong, right, strict=True))
    False
    """
    rng = random.Random(seed)
    answers = sorted({e.answer for e in examples} | {o for e in examples for o in e.options})
    every = {*answers}
    if len(answers) < 2 or any(every <= {e.answer, *e.also} for e in examples):
        raise LoclinError(
            f"expected at least 2 different answers to exchange, found {len(answers)} in "
            f"{len(examples)} examples: give more data"
        )
    order = list(range(len(examples)))
    rng.shuffle(order)
    from_next = dict(zip(order, order[1:] + order[:1], strict=True))
    return tuple(
        replace(e, answer=_wrong(e, examples[from_next[i]].answer, answers, rng))
        for i, e in enumerate(examples)
    )


def _wrong(example: Example, passed_on: str, answers: Sequence[str], rng: random.Random) -> str:
    if example.options:
        return rng.choice([o for o in example.options if o != example.answer])
    right = (example.answer, *example.also)
    if passed_on not in right:
        return passed_on
    return rng.choice([a for a in answers if a not in right])
