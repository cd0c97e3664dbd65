"""Three routes to a vector: against plain passes and loops, on a planted model, as long as they
say, without a trace.
"""

import copy
import inspect  # the types that tests check would refuse before the functions do
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin import steering
from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.steering.averages import loss_of
from loclin.steering.compare import cosines
from loclin.steering.estimands import Estimand
from loclin.steering.gradient import step_direction
from loclin.steering.prompts import prompt_halves, prompt_set
from loclin.steering.routes import from_gradient, from_labels, from_search
from loclin.steering.search import SIZE, perturbed_shifts, winners_vector
from loclin.tasks.example import Example, split
from tests.steering.test_prompts import LETTERS


def examples(problem: Problem, count: int = 64) -> tuple[Example, ...]:
    pool = [e for task in problem.tasks for e in problem.examples["test"][task]]
    return tuple(pool[:: len(pool) // count][:count])


def state(problem: Problem, example: Example, block: int) -> torch.Tensor:
    """h of a block that is not the last, at the last prompt token, by a pass of its own."""
    ids = torch.tensor([problem.tokenizer(example.prompt)["input_ids"]])
    with torch.no_grad():
        found: torch.Tensor = problem.model(input_ids=ids, output_hidden_states=True).hidden_states[
            block + 1
        ][0, -1]
    return found


def test_labels_give_the_difference_of_the_class_means(speaking: Problem) -> None:
    some = examples(speaking)
    vector = from_labels(speaking.model, speaking.tokenizer, some, layers=[0])
    means = [
        torch.stack([state(speaking, e, 0) for e in some if e.answer == side]).mean(0)
        for side in (" yes", " no")
    ]
    assert torch.allclose(vector.directions[0], means[0] - means[1], atol=1e-5)
    assert (vector.route, vector.position, vector.model_type, vector.blocks) == (
        "labels",
        "last",
        "gpt2",
        2,
    )
    assert (
        vector.norm
        == "the mean activation of prompts whose answer is ' yes' less that of the others (64 "
        "prompts)"
    )
    assert "/" not in vector.model
    assert dict(vector.about) == {"form": "class", "positive": " yes"}
    turned = from_labels(speaking.model, speaking.tokenizer, some, layers=[0], positive=" no")
    assert torch.allclose(turned.directions[0], -vector.directions[0], atol=1e-5)


def test_the_paired_form_is_a_mean_over_answers(speaking: Problem) -> None:
    some = examples(speaking)
    vector = from_labels(speaking.model, speaking.tokenizer, some, layers=[0], form="paired")
    words = {
        side: speaking.tokenizer(side, add_special_tokens=False)["input_ids"]
        for side in (" yes", " no")
    }
    differences = []
    for e in some:
        both = []
        for side in (" yes", " no"):
            ids = torch.tensor([speaking.tokenizer(e.prompt)["input_ids"] + words[side]])
            with torch.no_grad():
                both.append(
                    speaking.model(input_ids=ids, output_hidden_states=True).hidden_states[1][0, -1]
                )
        differences.append(both[0] - both[1])
    assert torch.allclose(vector.directions[0], torch.stack(differences).mean(0), atol=1e-5)
    assert vector.position == "answer"
    assert vector.about["form"] == "paired"


@pytest.mark.parametrize("estimand", ["E1", "E2", "E3"])
def test_a_gradient_step_is_read_on_the_half_that_did_not_make_it(
    speaking: Problem, estimand: Estimand
) -> None:
    some = examples(speaking)
    space = ParameterSpace(speaking.model)
    before = space.read()
    vector = from_gradient(speaking.model, speaking.tokenizer, some, estimand=estimand, eta=1e-3)
    assert torch.equal(space.read(), before)
    parts = split(some, {"step": 0.5, "read": 0.5}, seed=0)
    step = prompt_set(parts["step"], speaking.tokenizer, device="cpu")
    weights = step_direction(speaking.model, space, step, loss=loss_of(estimand))
    sides = []
    for way in (1, -1):
        with space.restored():
            space.add(weights * (way * 1e-3 * before.norm()))
            sides.append({e: state(speaking, e, 0) for e in parts["read"]})
    moved = {e: (sides[0][e] - sides[1][e]) / 2 for e in parts["read"]}
    by_answer = {
        side: torch.stack([m for e, m in moved.items() if e.answer == side]).mean(0)
        for side in (" yes", " no")
    }
    expected = (
        by_answer[" yes"] - by_answer[" no"]
        if estimand == "E3"
        else torch.stack(list(moved.values())).mean(0)
    )
    assert torch.cosine_similarity(vector.directions[0], expected, dim=0) > 0.9999
    labels = from_labels(speaking.model, speaking.tokenizer, parts["read"])
    for layer in (0, 1):
        assert float(vector.directions[layer].norm()) == pytest.approx(
            float(labels.directions[layer].norm()), rel=1e-4
        )
    assert vector.route == f"gradient step, {estimand}"
    assert dict(vector.about) == {
        "eta": "0.001",
        "space": "full",
        "form": "class",
        "positive": " yes",
        "seed": "0",
    }


def test_the_search_takes_its_winners_and_leaves_the_weights(speaking: Problem) -> None:
    some, space = examples(speaking), ParameterSpace(speaking.model)
    before = space.read()
    found = [
        from_search(speaking.model, speaking.tokenizer, some, count=6, winners=2, seed=s)
        for s in (0, 0, 1)
    ]
    assert torch.equal(space.read(), before)
    assert all(torch.equal(found[0].directions[n], found[1].directions[n]) for n in (0, 1))
    assert found[0].cosine(found[2])[1] < 0.99
    parts = split(some, {"step": 0.5, "read": 0.5}, seed=0)
    search, read = (
        prompt_set(parts[n], speaking.tokenizer, device="cpu") for n in ("step", "read")
    )
    found_again = perturbed_shifts(
        speaking.model, space, search, read, count=6, best=2, layers=[0, 1], seed=0
    )
    raw = winners_vector(found_again, 2)
    assert torch.allclose(
        cosines(raw, torch.stack(list(found[0].directions.values()))), torch.ones(2), atol=1e-5
    )
    assert dict(found[2].about) == {
        "n": "6",
        "k": "2",
        "size": f"{SIZE:g}",
        "space": "full",
        "form": "class",
        "positive": " yes",
        "seed": "1",
    }
    with pytest.raises(LoclinError, match="expected 1 to 6 winners, found 7"):
        from_search(speaking.model, speaking.tokenizer, some, count=6, winners=7)


def test_what_cannot_be_asked_is_refused(
    speaking: Problem,
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    some = examples(speaking)
    with pytest.raises(LoclinError, match="found 2"):
        from_labels(speaking.model, speaking.tokenizer, some, layers=[2])
    yes = [e for e in some if e.answer == " yes"]
    with pytest.raises(LoclinError, match="expected examples of both classes, found"):
        from_gradient(speaking.model, speaking.tokenizer, yes)
    model, tokenizer = families["gpt2"], tokenizers["gpt2"]
    with pytest.raises(
        LoclinError, match="expected examples with a positive option for the class form, found none"
    ):
        from_labels(model, tokenizer, LETTERS, form="class")
    with pytest.raises(
        LoclinError, match="expected examples with a positive option for E3, found none"
    ):
        from_gradient(model, tokenizer, LETTERS, estimand="E3")
    lettered = from_gradient(model, tokenizer, LETTERS, layers=[-1])
    assert lettered.layers == (1,)
    assert dict(lettered.about) == {"eta": "0.001", "space": "full", "form": "paired", "seed": "0"}
    with pytest.raises(LoclinError, match="expected form among auto, class, paired, found 'pairs'"):
        inspect.unwrap(from_labels)(speaking.model, speaking.tokenizer, some, form="pairs")  # type: ignore[arg-type]
    with pytest.raises(LoclinError, match="expected estimand among E1, E2, E3, found 'E4'"):
        inspect.unwrap(from_gradient)(speaking.model, speaking.tokenizer, some, estimand="E4")  # type: ignore[arg-type]
    for eta in (0.0, -1e-3, float("nan"), float("inf")):
        with pytest.raises(LoclinError, match="expected eta above 0 and finite, found"):
            from_gradient(speaking.model, speaking.tokenizer, some, eta=eta)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_prompts_beyond_the_context_are_refused(
    family: str,
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = families[family], tokenizers[family]
    context = model.config.max_position_embeddings

    def padded(length: int) -> list[Example]:
        """Prompts of so many tokens, those that both options begin with included."""
        found = []
        for e in LETTERS:
            while prompt_set([e], tokenizer, device="cpu").batch.input_ids.shape[1] < length:
                e = replace(e, prompt=f",{e.prompt}")
            found.append(e)
        return found

    whole = padded(context - 1)  # and one token of the answer
    assert from_labels(model, tokenizer, whole).layers == (0, 1)
    long = padded(context)
    for route in (from_labels, from_gradient, from_search):
        with pytest.raises(
            LoclinError,
            match=f"within the model's context of {context} tokens, found one of {context + 1}",
        ):
            route(model, tokenizer, long)


def test_both_halves_have_the_form_of_all_the_examples(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    """Two pairs of options, of which one half happens to hold one alone: asked by itself it would
    be of the class form.
    """
    model, tokenizer = families["gpt2"], tokenizers["gpt2"]
    pool = [
        Example(prompt=f"{i} cats ?", answer=" no", options=(" no", " cat"), group=str(i))
        for i in range(12)
    ]
    parts = split(pool, {"step": 0.5, "read": 0.5}, seed=0)
    mixed = [
        replace(e, answer=(" yes", " no")[i % 2], options=(" yes", " no"))
        if e in parts["read"]
        else e
        for i, e in enumerate(pool)
    ]
    step, read = prompt_halves(mixed, tokenizer, model, positive=None, seed=0)
    assert (step.form, read.form) == ("paired", "paired")
    assert {e.options for e in read.examples} == {(" yes", " no")}
    assert not {*step.groups} & {*read.groups}
    assert [e.prompt for e in step.examples] == [e.prompt for e in parts["step"]]


def test_half_precision_is_refused_where_steps_are_small(speaking: Problem) -> None:
    half = copy.deepcopy(speaking.model).bfloat16()
    with pytest.raises(LoclinError, match="expected weights in float32 or better"):
        from_gradient(half, speaking.tokenizer, examples(speaking))


def test_the_public_names_are_these() -> None:
    assert steering.from_gradient is from_gradient
    assert steering.from_labels is from_labels
    assert steering.from_search is from_search


def last_state(problem: Problem, text: str, block: int) -> torch.Tensor:
    """h of a block that is not the last, at the last token, by a pass of its own."""
    ids = problem.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = problem.model(input_ids=ids, output_hidden_states=True).hidden_states
    found: torch.Tensor = states[block + 1][0, -1]
    return found


def test_two_lists_of_texts_give_the_difference_of_their_means(speaking: Problem) -> None:
    some = [e.prompt for e in speaking.examples["test"][speaking.tasks[0]][:5]]
    positive, negative = some[:2], some[2:]
    vector = steering.from_pairs(speaking.model, speaking.tokenizer, positive, negative, layers=[0])
    expected = torch.stack([last_state(speaking, text, 0) for text in positive]).mean(0)
    expected -= torch.stack([last_state(speaking, text, 0) for text in negative]).mean(0)
    assert torch.allclose(vector.directions[0], expected, atol=1e-5)
    assert vector.norm == "the mean of 2 texts less that of 3"
    assert len(repr(vector)) < 300


def test_one_text_is_no_list_of_texts(speaking: Problem) -> None:
    with pytest.raises(LoclinError, match=r"found one text: give \[text\]"):
        steering.from_pairs(speaking.model, speaking.tokenizer, "rome", ["anna"])


def test_a_list_without_texts_is_refused(speaking: Problem) -> None:
    with pytest.raises(LoclinError, match="expected positive and negative texts, found 1 and 0"):
        steering.from_pairs(speaking.model, speaking.tokenizer, ["yes"], [])
