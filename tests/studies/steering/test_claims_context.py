from dataclasses import replace

import numpy as np
import pytest
import torch

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.progress import silent
from loclin.studies.steering.claims_context import (
    ClaimsContext,
    cosine,
    divided,
    halves,
    make_context,
    places,
)
from loclin.studies.steering.names import PARTS
from loclin.tasks.example import Example
from tests.studies.steering.conftest import TINY


def test_runs_share_no_example_and_none_the_model_learned_from(
    speaking: Problem, ctx: ClaimsContext
) -> None:
    second = make_context(speaking, TINY, 1, silent)
    held = [e for c in (ctx, second) for part in PARTS for e in c.parts[part].examples]
    assert len({e.prompt for e in held}) == len(held) == 2 * sum(TINY.sizes.values())
    home = {
        (e.group, part, c.run)
        for c in (ctx, second)
        for part in PARTS
        for e in c.parts[part].examples
    }
    assert len({group for group, *_ in home}) == len(home)
    learned = {
        e.group
        for split in ("train", "validate")
        for t in speaking.tasks
        for e in speaking.examples[split][t]
    }
    assert not learned & {group for group, *_ in home}
    again = make_context(speaking, TINY, 0, silent)
    assert [again.parts[p].examples for p in PARTS] == [ctx.parts[p].examples for p in PARTS]
    assert not torch.equal(ctx.neutral.batch.input_ids, second.neutral.batch.input_ids)


@pytest.mark.parametrize(("count", "size"), [(100, 1), (140, 5)])
def test_too_few_examples_say_how_many_are_needed_for_so_many_runs(count: int, size: int) -> None:
    """Too few; or enough, but in groups that do not fit."""
    pool = [
        Example(prompt=str(i), answer=" yes", options=(" yes", " no"), group=str(i // size))
        for i in range(count)
    ]
    needed = (
        rf"expected 136 examples for 2 runs of 68 each on one model \(labels 24, .*found {count} in"
    )
    with pytest.raises(LoclinError, match=needed):
        divided(pool, TINY, seed=0)


def test_a_part_of_one_class_is_refused_by_name(speaking: Problem) -> None:
    one = {
        s: {t: tuple(e for e in found if e.answer == " yes") for t, found in p.items()}
        for s, p in speaking.examples.items()
    }
    with pytest.raises(LoclinError, match="both classes"):
        make_context(replace(speaking, examples=one), TINY, 0, silent)


def test_halves_divide_groups_and_share_out_classes(ctx: ClaimsContext) -> None:
    one, other = halves(ctx.parts["labels"])
    assert len(one) + len(other) == TINY.labels
    assert not set(one.groups) & set(other.groups)
    assert one.labels is not None
    assert 0 < one.labels.sum() < len(one)
    with pytest.raises(LoclinError, match="two groups or more"):
        halves(replace(one, groups=("a",) * len(one)))


def test_cosines_and_places() -> None:
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[6.0, 8.0], [1.0, 0.0], [-2.0, 0.0]])
    assert cosine(a, b).tolist()[::2] == pytest.approx([1.0, -1.0])
    assert cosine(a, a)[1].isnan()
    values = np.array([[0.1, 0.5, 0.2, 0.4], [0.9, 0.0, 0.0, 0.2]])
    late = np.arctanh(values[:, 2:]).mean(1)
    for scale, expected in (("plain", [0.3, 0.1]), ("fisher", np.tanh(late))):
        found = places(values, {"middle": 1, "chosen": 2}, scale)  # type: ignore[arg-type]
        assert found.pop("late") == pytest.approx(expected)
        assert {k: v.tolist() for k, v in found.items()} == {
            "middle": [0.5, 0.0],
            "chosen": [0.2, 0.0],
            "highest": [0.5, 0.9],
        }


def test_runs_on_one_model_share_its_seed_and_divide_its_examples(speaking: Problem) -> None:
    settings = replace(TINY, seeds=4, models_per_claim=2)
    every = [make_context(speaking, settings, run, silent) for run in range(4)]
    assert [c.model_seed for c in every] == [0, 1, 0, 1]
    assert len({c.seed for c in every}) == 4
    first, third = ({e.prompt for p in PARTS for e in every[r].parts[p].examples} for r in (0, 2))
    assert not first & third
    own = replace(TINY, model="gpt2", data=("mine.jsonl",), seeds=4)
    assert (own.models, {own.of_model(run) for run in range(4)}) == (1, {0})


def test_answers_that_are_due_are_no_damage(ctx: ClaimsContext) -> None:
    tokenizer = ctx.problem.tokenizer
    said = {tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" yes", " no")}
    assert set(ctx.neutral.answers) == said
