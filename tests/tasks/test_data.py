import pytest

from loclin.errors import LoclinError
from loclin.tasks.data import TaskData, cleaned, grouped_splits, sifted
from loclin.tasks.example import Example


def made(*pairs: tuple[str, str], options: tuple[str, ...] = ()) -> TaskData:
    examples = tuple(Example(prompt=p, answer=a, options=options) for p, a in pairs)
    return TaskData(source="pool", examples={"copy": examples}, read=len(examples))


def test_what_is_empty_repeated_or_contradictory_is_dropped_and_counted() -> None:
    data = made(
        ("a =", " a"),
        ("b =", " b"),
        ("b =", " b"),
        ("c =", " c"),
        ("c =", " x"),
        (" ", " d"),
        ("e =", " "),
    )
    clean = cleaned(data)
    assert [e.prompt for e in clean.examples["copy"]] == ["a =", "b ="]
    assert clean.dropped == {
        "with an empty prompt": 1,
        "with an empty answer": 1,
        "repeating an earlier one": 1,
        "with contradictory answers to one prompt": 2,
    }
    assert clean.read == clean.kept + sum(clean.dropped.values()) == 7
    assert data.kept == 7  # the input is not changed
    assert cleaned(clean) == clean


def test_one_prompt_may_have_another_answer_in_another_task() -> None:
    tasks = {
        name: (Example(prompt="a b", answer=answer),)
        for name, answer in (("first", " a"), ("last", " b"))
    }
    assert cleaned(TaskData(source="pool", examples=tasks, read=2)).kept == 2


def test_a_task_without_examples_goes_and_no_examples_at_all_are_refused() -> None:
    tasks = {
        "copy": (Example(prompt="a", answer=" a"),),
        "empty": (Example(prompt="", answer=" a"),),
    }
    assert list(cleaned(TaskData(source="pool", examples=tasks, read=2)).examples) == ["copy"]
    with pytest.raises(
        LoclinError, match="keep in pool, found none: 1 read, dropped 1 with an empty answer"
    ):
        cleaned(made(("a =", "")))


def test_options_of_which_one_is_always_right_are_refused() -> None:
    options = (" yes", " no")
    with pytest.raises(
        LoclinError, match=r"task 'copy' of pool, found only ' yes' in all 2 examples"
    ):
        cleaned(made(("a?", " yes"), ("b?", " yes"), options=options))
    assert cleaned(made(("a?", " yes"), ("b?", " no"), options=options)).kept == 2
    assert cleaned(made(("a?", " yes"), ("b?", " yes"))).kept == 2  # free answers may be alike


def test_an_empty_option_is_dropped() -> None:
    with pytest.raises(LoclinError, match="1 with an empty option"):
        cleaned(made(("a?", " yes"), options=(" yes", " ")))


def test_the_summary_tells_every_reason_and_every_note() -> None:
    tasks = {name: (Example(prompt=name, answer=" a"),) for name in ("copy", "sort")}
    dropped = {"with an empty answer": 1, "repeating an earlier one": 3}
    data = TaskData(source="pool", examples=tasks, read=6, dropped=dropped, notes=("one remark",))
    assert data.summary() == (
        "pool: 6 read, 2 kept in 2 tasks (copy 1, sort 1); dropped 4: 3 repeating an earlier one, "
        "1 with an empty answer\n"
        "note: one remark"
    )
    assert sifted(data, lambda examples: [""] * len(examples)) == data


def test_a_group_lies_in_one_split_for_all_tasks() -> None:
    """Tasks that share only half of their groups: `split` on each alone would place the shared ones
    differently.
    """
    tasks = {
        name: tuple(
            Example(prompt=f"{name} {i}", answer=" x", group=str(i))
            for i in range(first, first + 40)
        )
        for name, first in (("copy", 0), ("sort", 20))
    }
    data = TaskData(source="pool", examples=tasks, read=80)
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    parts = grouped_splits(data, shares, seed=0)
    homes = [{e.group for es in parts[name].values() for e in es} for name in shares]
    assert sum(map(len, homes)) == 60 == len(set.union(*homes))
    assert all(sum(len(parts[name][task]) for name in shares) == 40 for task in tasks)
    assert parts == grouped_splits(data, shares, seed=0) != grouped_splits(data, shares, seed=1)


def test_a_task_that_misses_a_split_is_refused() -> None:
    tasks = {
        "copy": tuple(Example(prompt=f"copy {i}", answer=" x") for i in range(20)),
        "sort": (Example(prompt="sort 0", answer=" x"),),
    }
    with pytest.raises(
        LoclinError, match=r"task 'sort' in every split, found 1 groups, none for '(a|b)'"
    ):
        grouped_splits(
            TaskData(source="pool", examples=tasks, read=21), {"a": 0.5, "b": 0.5}, seed=0
        )
