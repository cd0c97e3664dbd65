import pytest

from loclin.errors import LoclinError
from loclin.tasks.example import Example
from loclin.tasks.sequences import sequence_examples
from loclin.tasks.wrong import with_wrong_answers


def test_wrong_answers_keep_their_distribution() -> None:
    right = sequence_examples(["copy"], 100, length=4, symbols=8, seed=0)["copy"]
    wrong = with_wrong_answers(right, seed=1)
    assert all(
        r.prompt == w.prompt and r.answer != w.answer for r, w in zip(right, wrong, strict=True)
    )
    assert sorted(r.answer for r in right) == sorted(w.answer for w in wrong)


def test_an_option_is_exchanged_for_another_of_the_same_question() -> None:
    right = [
        Example(prompt=str(i), answer=" no", options=(" yes", " no", f" {i}")) for i in range(50)
    ]
    wrong = with_wrong_answers(right, seed=0)
    assert all(w.answer in w.options and w.answer != " no" for w in wrong)
    assert len({w.answer for w in wrong}) > 2


def test_few_distinct_answers_are_still_all_wrong() -> None:
    right = [Example(prompt=str(i), answer=f" {i % 2}") for i in range(20)]
    assert all(
        w.answer != e.answer for w, e in zip(with_wrong_answers(right, seed=0), right, strict=True)
    )


def test_another_right_answer_is_not_wrong() -> None:
    right = [
        Example(prompt=str(i), answer=f" {i % 3}", also=(f" {(i + 1) % 3}",)) for i in range(30)
    ]
    wrong = with_wrong_answers(right, seed=0)
    pairs = zip(wrong, right, strict=True)
    assert not any(w.answer in (e.answer, *e.also) for w, e in pairs)
    with pytest.raises(LoclinError, match="at least 2 different answers"):
        with_wrong_answers([Example(prompt="a", answer=" b", also=(" c",))] * 2, seed=0)


def test_one_answer_alone_cannot_be_exchanged() -> None:
    right = [Example(prompt=str(i), answer=" same") for i in range(5)]
    with pytest.raises(
        LoclinError, match="at least 2 different answers to exchange, found 1 in 5 examples"
    ):
        with_wrong_answers(right, seed=0)
