"""What schedules have in common: which examples score and choose, batches in one order, specialists
that are made once, dropout drawn by the seed.
"""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from loclin.models import Problem
from loclin.models.lora import Lora, attach
from loclin.parameters import ParameterSpace
from loclin.schedules.comparison import Trained
from loclin.updates import UpdateStorage
from tests.schedules.compared import OPTIONS, TASKS, comparison


def test_examples_that_choose_strengths_do_not_choose_schedules(trained: Problem) -> None:
    made = comparison(trained, options=replace(OPTIONS, curve_examples=1000))
    for chosen, validated, task in zip(made.choice_sets, made.validation_sets, TASKS, strict=True):
        rows = [
            {tuple(r) for r in eval_set.batch.input_ids.tolist()}
            for eval_set in (chosen, validated)
        ]
        assert not rows[0] & rows[1]
        assert sum(map(len, rows)) == len(trained.examples["validate"][task])


def test_curves_are_scored_on_some_of_the_test_examples(trained: Problem) -> None:
    made = comparison(trained)
    for few, many in zip(made.curve_sets, made.test_sets, strict=True):
        assert (len(few.batch), len(many.batch)) == (8, 12)
        assert torch.equal(few.batch.input_ids, many.batch.input_ids[:8])


def test_a_point_is_scored_where_it_is_and_the_space_stays(trained: Problem) -> None:
    made = comparison(trained)
    here = made.space.read()
    found = made.evaluate_at(made.start, made.test_sets)
    assert torch.equal(made.space.read(), here)
    assert found.shape == (2, 2)
    with made.space.restored():
        made.space.write(made.start)
        assert np.array_equal(made.evaluate(made.test_sets), found)
        for (loss, score), eval_set in zip(found, made.test_sets, strict=True):
            total, tokens = eval_set.loss(eval_set.batch)
            assert loss == pytest.approx(float(total.detach()) / tokens, rel=1e-5)
            assert 0 <= score <= 1


def test_every_schedule_meets_the_batches_in_one_order(trained: Problem) -> None:
    made = comparison(trained)
    first, again, other = made.stream("copy"), made.stream("copy"), made.stream("copy", order="x")
    batches = [next(stream).input_ids for stream in (first, again, other)]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_a_specialist_is_trained_once_for_each_order_of_the_data(trained: Problem) -> None:
    made = comparison(trained)
    first = made.specialist("copy")
    assert made.specialist("copy") is first
    assert not torch.equal(made.specialist("copy", order="again").end, first.end)
    assert first.evaluations == made.share == 6
    assert [mark for mark, _ in first.curve] == [4]


def test_a_training_that_goes_on_holds_what_was_before(trained: Problem) -> None:
    made = comparison(trained)
    first = made.specialist("copy")
    found = made.trained(
        "on", [("swap",)] * 4, {"swap": made.stream("swap")}, after=first, prepared=2
    )
    assert isinstance(found, Trained)
    assert found.phases[0] is first.phases[0]
    assert found.evaluations == 12
    assert [mark for mark, _ in found.curve] == [4, 8, 12]
    # what is prepared trains nothing: the curve's place within it is scored at the first's end
    early = made.trained(
        "on", [("swap",)] * 3, {"swap": made.stream("swap")}, after=first, prepared=3
    )
    assert np.array_equal(early.curve[1][1], made.evaluate_at(first.end, made.curve_sets))


def test_lora_and_its_dropout_are_trained_and_kept_updates_sum_to_the_way(trained: Problem) -> None:
    model = attach(deepcopy(trained.model), Lora(rank=2, dropout=0.5), seed=0)  # type: ignore[arg-type]
    problem = Problem(model=model, tokenizer=trained.tokenizer, examples=trained.examples)
    space = ParameterSpace(model)
    without, drawn, again = (
        comparison(
            problem, space=space, start=space.read(), dropout=dropout, storage=UpdateStorage()
        )
        for dropout in (False, True, True)
    )
    ends = [made.specialist("copy") for made in (without, drawn, again)]
    assert torch.equal(ends[1].end, ends[2].end)
    assert not torch.equal(ends[0].end, ends[1].end)
    path = ends[1].path
    assert path is not None
    assert torch.allclose(path.displacement, ends[1].end - drawn.start, atol=1e-6)
    assert np.isfinite(path.losses.numpy()).all()
