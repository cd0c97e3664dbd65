"""Which examples may be asked, and the digests that tell them apart."""

import pytest

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.search.splits import PARTS, askable, examples_hash, learned
from loclin.tasks.example import Example, dealt

POOL = [Example(prompt=f"{i} =", answer=" x", group=f"g{i // 3}") for i in range(90)]


def test_hashes_tell_every_word_and_the_order() -> None:
    first = examples_hash(POOL[:2])
    assert first == examples_hash(POOL[:2])
    assert first != examples_hash(POOL[1::-1])
    assert first != examples_hash(
        [POOL[0], Example(prompt=POOL[1].prompt, answer=" y", group=POOL[1].group)]
    )


def test_what_a_model_was_trained_on_is_not_asked(trained: Problem) -> None:
    every = askable(trained.examples, task=None, without=())
    fresh = askable(trained.examples, task="swap", without=("train", "validate"))
    taught = {e.prompt for name in ("train", "validate") for e in trained.examples[name]["swap"]}
    assert not taught & {e.prompt for e in fresh}
    assert len(fresh) < len(every) / len(trained.tasks)
    with pytest.raises(LoclinError, match="unknown task 'divide': expected one of copy"):
        askable(trained.examples, task="divide", without=())


def test_a_built_in_model_has_learned_its_own_data_alone() -> None:
    assert learned("sequences", ()) == learned("sequences", ("sequences",)) == ("train", "validate")
    assert (
        learned("sequences", ("sequences", "mine.jsonl")) == learned("gpt2", ("mine.jsonl",)) == ()
    )


def test_test_is_the_same_whatever_is_taken_for_the_other_parts() -> None:
    """The order of the parts: select, which users change most, is dealt last."""
    sizes = {"select": 20, "validate": 10, "test": 30}
    assert tuple(sizes) == PARTS
    small = dealt(POOL, sizes | {"select": 5, "validate": 3}, seed=0, purpose="search split")
    assert small["test"] == dealt(POOL, sizes, seed=0, purpose="search split")["test"]
