"""Examples by task, together with what became of every record that was read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from loclin.errors import LoclinError
from loclin.tasks.example import Example, split

#: Turns of a conversation, each with its role and its content.
Turns = Sequence[Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """What was loaded, what was dropped, and why.

    Attributes:
        source: name of the file, data set or model.
        examples: by task; no task is empty.
        read: how many records were read.
        dropped: how many records went for which reason, worded to follow a number.
        notes: remarks on the examples that were kept.
        turns: by prompt, the conversation that it was written from, where there is one.
    """

    source: str
    examples: Mapping[str, tuple[Example, ...]]
    read: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    turns: Mapping[str, Turns] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Examples over all tasks."""
        return sum(map(len, self.examples.values()))

    def summary(self) -> str:
        """What happened to the records in one line, and one line more for every note.

        >>> pool = {"reverse": (Example(prompt="reverse a b =", answer=" b a"),)}
        >>> dropped = {"with an empty answer": 2}
        >>> print(TaskData(source="pool.jsonl", examples=pool, read=3, dropped=dropped).summary())
        pool.jsonl: 3 read, 1 kept in 1 task (reverse 1); dropped 2: 2 with an empty answer
        """
        tasks = ", ".join(f"{task} {len(examples)}" for task, examples in self.examples.items())
        plural = "s" if len(self.examples) > 1 else ""
        count = f"{len(self.examples)} task{plural}"
        line = f"{self.source}: {self.read} read, {self.kept} kept in {count} ({tasks})"
        if self.dropped:
            line += f"; dropped {sum(self.dropped.values())}: {counted(self.dropped)}"
        return "\n".join((line, *(f"note: {note}" for note in self.notes)))


def counted(dropped: Mapping[str, int]) -> str:
    """Reasons with their numbers, the most frequent first.

    >>> counted({"with an empty answer": 2, "repeating an earlier one": 5})
    '5 repeating an earlier one, 2 with an empty answer'
    """
    ordered = sorted(dropped.items(), key=lambda item: -item[1])
    return ", ".join(f"{n} {reason}" for reason, n in ordered)


def sifted(data: TaskData, judge: Callable[[Sequence[Example]], Sequence[str]]) -> TaskData:
    """Drop examples for a reason, and count how many went for which.

    Args:
        data: what to sift; not changed.
        judge: given the examples of one task, the reason why each is dropped, "" where it stays.

    Raises:
        LoclinError: nothing is left.
    """
    kept, dropped = {}, Counter(data.dropped)
    for task, examples in data.examples.items():
        reasons = judge(examples)
        dropped.update(reason for reason in reasons if reason)
        kept[task] = tuple(e for e, reason in zip(examples, reasons, strict=True) if not reason)
    kept = {task: examples for task, examples in kept.items() if examples}
    if not kept:
        raise LoclinError(
            f"expected examples to keep in {data.source}, found none: {data.read} read, dropped "
            f"{counted(dropped)}: mend the data or choose other data"
        )
    return replace(data, examples=kept, dropped=dict(dropped))


def cleaned(data: TaskData) -> TaskData:
    """Drop what no model can be asked, or asked twice: empty texts, repetitions, contradictions.

    Repetition and contradiction are judged within a task. Of examples with the same prompt and
    answer the first stays; of a prompt with different answers nothing stays, since no one can say
    which is right.

    Raises:
        LoclinError: nothing is left, or a task whose gold answer is always the same although there
            are options: a model could then be right without reading.

    >>> lines = ("a =", " b"), ("a =", " c"), ("d =", " e")
    >>> examples = tuple(Example(prompt=p, answer=a) for p, a in lines)
    >>> cleaned(TaskData(source="pool", examples={"copy": examples}, read=3)).dropped
    {'with contradictory answers to one prompt': 2}
    """
    data = sifted(sifted(data, _empty), _repeated)
    for task, examples in data.examples.items():
        answers = {e.answer for e in examples}
        if len(answers) == 1 and all(e.options for e in examples):
            raise LoclinError(
                f"expected at least two different right answers in task {task!r} of {data.source}, "
                f"found only {answers.pop()!r} in all {len(examples)} examples: add examples of "
                "the other options"
            )
    return data


def merged(parts: Sequence[TaskData]) -> TaskData:
    """Several sources as one: the tasks of all of them.

    Raises:
        LoclinError: one task in two sources.

    >>> examples = {t: (Example(prompt=t, answer=" x"),) for t in "ab"}
    >>> parts = [TaskData(source=f"{t}.jsonl", read=1, examples={t: examples[t]}) for t in "ab"]
    >>> merged(parts).summary()
    'a.jsonl and b.jsonl: 2 read, 2 kept in 2 tasks (a 1, b 1)'
    """
    home: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    for part in parts:
        for task in part.examples:
            if task in home:
                raise LoclinError(
                    f"expected every task in one file, found {task!r} in {home[task]} and "
                    f"{part.source}: name the files, or the task of their records, differently"
                )
            home[task] = part.source
        dropped.update(part.dropped)
    return TaskData(
        source=" and ".join(part.source for part in parts),
        examples={task: examples for part in parts for task, examples in part.examples.items()},
        read=sum(part.read for part in parts),
        dropped=dict(dropped),
        notes=tuple(note for part in parts for note in part.notes),
        turns={prompt: turns for part in parts for prompt, turns in part.turns.items()},
    )


def _empty(examples: Sequence[Example]) -> list[str]:
    def reason(e: Example) -> str:
        if not e.prompt.strip():
            return "with an empty prompt"
        if not e.answer.strip():
            return "with an empty answer"
        return "" if all(o.strip() for o in e.options) else "with an empty option"

    return [reason(e) for e in examples]


def _repeated(examples: Sequence[Example]) -> list[str]:
    answers: dict[str, set[str]] = {}
    for e in examples:
        answers.setdefault(e.prompt, set()).add(e.answer)
    seen: set[str] = set()
    reasons = []
    for e in examples:
        if len(answers[e.prompt]) > 1:
            reasons.append("with contradictory answers to one prompt")
        else:
            reasons.append("repeating an earlier one" if e.prompt in seen else "")
        seen.add(e.prompt)
    return reasons


def grouped_splits(
    data: TaskData, shares: Mapping[str, float], *, seed: int
) -> dict[str, dict[str, tuple[Example, ...]]]:
    """Cut every task at the same groups: a passage asked about in two tasks lies in one split.

    Returns:
        By split, then by task.

    Raises:
        LoclinError: the shares do not sum to 1, or a task would have no example in a split.

    >>> examples = {
    ...     task: tuple(Example(prompt=f"{task}{i}", answer=" x", group=f"{i}") for i in range(10))
    ...     for task in ("copy", "next")
    ... }
    >>> data = TaskData(source="pool", read=20, examples=examples)
    >>> parts = grouped_splits(data, {"train": 0.8, "test": 0.2}, seed=0)
    >>> {e.group for e in parts["test"]["copy"]} == {e.group for e in parts["test"]["next"]}
    True
    """
    parts = split([e for examples in data.examples.values() for e in examples], shares, seed=seed)
    home = {e.group or e.prompt: name for name, part in parts.items() for e in part}
    made = {
        name: {
            task: tuple(e for e in es if home[e.group or e.prompt] == name)
            for task, es in data.examples.items()
        }
        for name in shares
    }
    for name, tasks in made.items():
        for task, examples in tasks.items():
            if not examples:
                groups = len({e.group or e.prompt for e in data.examples[task]})
                raise LoclinError(
                    f"expected examples of task {task!r} in every split, found {groups} groups, "
                    f"none for {name!r}: give more examples or larger shares"
                )
    return made
