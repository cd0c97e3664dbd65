import pytest

from loclin.errors import LoclinError
from loclin.tasks.sequences import TASKS, sequence_examples, vocabulary, with_wrong_answers

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
    words = set(vocabulary(8))
    assert all(set((e.prompt + e.answer).split()) <= words for e in posed["sort"])
    assert posed == sequence_examples(["copy", "sort"], 100, length=4, symbols=8, seed=0)


def test_wrong_answers_keep_their_distribution() -> None:
    right = sequence_examples(["copy"], 100, length=4, symbols=8, seed=0)["copy"]
    wrong = with_wrong_answers(right, seed=1)
    assert all(r.prompt == w.prompt and r.answer != w.answer for r, w in zip(right, wrong, strict=True))
    assert sorted(r.answer for r in right) == sorted(w.answer for w in wrong)


def test_bad_requests_are_refused() -> None:
    with pytest.raises(LoclinError, match="unknown task 'fly': expected one of copy, reverse"):
        sequence_examples(["fly"], 1, length=4, symbols=8, seed=0)
    with pytest.raises(LoclinError, match="at most 8 distinct sequences"):
        sequence_examples(["copy"], 9, length=4, symbols=2, seed=0)
    with pytest.raises(LoclinError, match="2 to 26 symbols, found 30"):
        sequence_examples(["copy"], 9, length=4, symbols=30, seed=0)
    with pytest.raises(LoclinError, match="at least 2 examples"):
        with_wrong_answers(sequence_examples(["copy"], 1, length=4, symbols=8, seed=0)["copy"], seed=0)
