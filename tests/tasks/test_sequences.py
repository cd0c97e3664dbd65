import pytest

from loclin.errors import LoclinError
from loclin.tasks.sequences import TASKS, SequenceTasks, sequence_examples

EXPECTED = {
    "copy": (2, 0, 1, 3, 1),
    "reverse": (1, 3, 1, 0, 2),
    "sort": (0, 1, 1, 2, 3),
    "increment": (3, 1, 2, 0, 2),
    "swap": (0, 2, 3, 1, 1),
    "rotate": (0, 1, 3, 1, 2),
    "halves": (1, 3, 1, 2, 0),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_does_what_its_name_says(task: str) -> None:
    assert TASKS[task]((2, 0, 1, 3, 1), 4) == EXPECTED[task]


def test_examples_are_distinct_inputs_posed_for_every_task() -> None:
    posed = sequence_examples(["copy", "sort"], 100, length=4, symbols=8, seed=0)
    assert len({e.group for e in posed["copy"]}) == 100
    assert [e.group for e in posed["copy"]] == [e.group for e in posed["sort"]]
    words = set(SequenceTasks(symbols=8).words())
    assert all(set((e.prompt + e.answer).split()) <= words for e in posed["sort"])
    assert posed == sequence_examples(["copy", "sort"], 100, length=4, symbols=8, seed=0)


def test_the_task_data_are_the_examples_of_every_task() -> None:
    small = SequenceTasks(tasks=("copy", "sort"), length=4, symbols=8, pool=100)
    data = small.examples(seed=3)
    assert data.examples == sequence_examples(["copy", "sort"], 100, length=4, symbols=8, seed=3)
    assert data.read == data.kept == 200
    longest = max(len((e.prompt + e.answer).split()) for e in data.examples["sort"])
    assert longest == small.longest


def test_bad_requests_are_refused() -> None:
    with pytest.raises(LoclinError, match="unknown task 'fly': expected one of copy, reverse"):
        sequence_examples(["fly"], 1, length=4, symbols=8, seed=0)
    with pytest.raises(LoclinError, match="at most 8 distinct sequences"):
        sequence_examples(["copy"], 9, length=4, symbols=2, seed=0)
    with pytest.raises(LoclinError, match="2 to 26 symbols, found 30"):
        sequence_examples(["copy"], 9, length=4, symbols=30, seed=0)
