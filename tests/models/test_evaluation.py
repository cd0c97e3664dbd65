"""An EvalSet against the same numbers by the plain functions."""

import copy
from dataclasses import replace

import pytest
import torch

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.models.evaluation import EvalSet
from loclin.search.answering import answers
from loclin.tasks.batch import answer_loss
from loclin.tasks.wrong import with_wrong_answers


@pytest.mark.parametrize("name", ["trained", "speaking"])
def test_tallies_are_the_loss_and_the_score_of_the_plain_functions(
    name: str, request: pytest.FixtureRequest
) -> None:
    problem: Problem = request.getfixturevalue(name)
    task = problem.tasks[0]
    examples = problem.examples["damage"][task]
    eval_set = EvalSet.of(problem, examples, folds=3)
    sums, counts = eval_set.tallies()
    with torch.no_grad():
        loss, tokens = answer_loss(problem.model, problem.batch("damage", task))
    assert sums[:3].sum() == pytest.approx(float(loss), rel=1e-5)
    assert counts[:3].sum() == tokens
    assert sums[3:].sum() / counts[3:].sum() == pytest.approx(problem.score("damage", task))
    assert counts[3:].sum() == len(examples)
    assert (eval_set.choices is None) == (name == "trained")
    homes: dict[str, set[int]] = {}
    for e, fold in zip(examples, eval_set.folds, strict=True):
        homes.setdefault(e.group or e.prompt, set()).add(int(fold))
    assert all(len(folds) == 1 for folds in homes.values())
    assert (counts[3:] > 0).all()


def test_options_of_one_token_are_scored_from_the_prompts_alone(speaking: Problem) -> None:
    eval_set = EvalSet.of(speaking, speaking.examples["test"][speaking.tasks[0]], folds=4)
    assert eval_set.options is not None
    whole = replace(eval_set, options=None)
    for quick, slow in zip(eval_set.tallies(), whole.tallies(), strict=True):
        assert quick == pytest.approx(slow, rel=1e-5)


def test_options_of_several_tokens_or_of_unequal_number_are_scored_whole(speaking: Problem) -> None:
    shown = speaking.examples["test"][speaking.tasks[0]][:6]
    longer = [replace(e, options=(*e.options, " red red")) for e in shown[:3]]
    assert EvalSet.of(speaking, [*longer, *shown[3:]]).options is None
    more = [replace(e, options=(*e.options, " red")) for e in shown[:3]]
    eval_set = EvalSet.of(speaking, [*more, *shown[3:]])
    assert eval_set.options is not None
    assert (eval_set.options < 0).sum() == 3
    whole = replace(eval_set, options=None)
    assert eval_set.tallies()[0] == pytest.approx(whole.tallies()[0], rel=1e-5)


def test_fewer_groups_than_folds_are_refused(trained: Problem) -> None:
    few = trained.examples["test"][trained.tasks[0]][:3]
    with pytest.raises(
        LoclinError,
        match="one group of examples for each of 5 folds, found 3: give more data or lower",
    ):
        EvalSet.of(trained, few, folds=5)


def test_any_of_several_right_answers_counts(trained: Problem) -> None:
    """The loss is of the first; the score of one is that of the other spelled first."""
    right = list(trained.examples["test"]["copy"][:6])
    wrong = with_wrong_answers(right, seed=0)
    pairs = enumerate(zip(wrong, right, strict=True))
    several = [replace(w, also=(e.answer,) if i % 2 else ()) for i, (w, e) in pairs]
    plain, both = EvalSet.of(trained, wrong), EvalSet.of(trained, several)
    losses, correct = both.answers()
    assert torch.equal(losses, plain.answers()[0])
    assert not plain.answers()[1].any()
    assert correct.tolist() == [False, True] * 3
    assert both.answers(copies=2)[1].tolist() == [False, True] * 6
    problem = replace(trained, examples={"test": {"copy": tuple(several)}})
    assert problem.score("test", "copy") == 0.5
    spoken = answers(problem, several)
    assert [s == e.answer for s, e in zip(spoken, several, strict=True)] == [False, True] * 3


def test_one_answer_to_everything_is_noticed(speaking: Problem) -> None:
    examples = speaking.examples["test"]["colour"][:20]
    assert len({e.answer for e in examples}) == 2
    assert speaking.one_answer(examples) == ""
    head = speaking.model.get_output_embeddings()
    yes = speaking.tokenizer(" yes", add_special_tokens=False)["input_ids"][0]
    biased = copy.deepcopy(speaking.model)
    biased.get_output_embeddings().register_forward_hook(
        lambda module, given, logits: logits + 1e3 * torch.eye(head.out_features)[yes]
    )
    problem = replace(speaking, model=biased)
    assert problem.one_answer(examples).startswith("the model answers ' yes' to all 20 examples")
    assert problem.one_answer([e for e in examples if e.answer == " no"]) == ""
