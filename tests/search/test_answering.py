"""Greedy answers against decoding by the model itself; draws at a temperature against the
distribution they come from.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.search.answering import answers, sampled
from loclin.search.candidate import Candidate, Perturbed, candidates
from loclin.search.noise import Noise
from loclin.tasks.batch import collate, exact_match
from loclin.tasks.choices import collate_choices, option_log_probabilities
from loclin.tasks.example import Example
from tests.conftest import FAMILIES


@contextmanager
def moved(problem: Problem, *, sigma: float) -> Iterator[tuple[Perturbed, list[Candidate]]]:
    """Three candidates far enough out that some answers are wrong."""
    with Perturbed(ParameterSpace(problem.model), Noise()) as perturbed:
        yield perturbed, candidates(3, [sigma], seed=1)


def test_options_are_drawn_as_often_as_their_softmax_says(speaking: Problem) -> None:
    examples = next(iter(speaking.examples["test"].values()))[:6]
    scores = (
        option_log_probabilities(speaking.model, collate_choices(examples, speaking.tokenizer))
        .detach()
        .double()
    )
    temperature = 5.0
    expected = (scores / temperature).softmax(1)[:, 0].numpy()
    drawn = sampled(speaking, examples, 4000, temperature=temperature, seed=0)
    share = np.mean(
        [[a == e.options[0] for a, e in zip(row, examples, strict=True)] for row in drawn], axis=0
    )
    assert np.abs(share - expected).max() < 4.5 * np.sqrt(0.25 / 4000)
    assert 0.02 < expected.min() < expected.max() < 0.98  # or there would be nothing to draw


@pytest.mark.parametrize("kind", ["trained", "speaking"])
def test_without_temperature_the_greedy_answer_is_drawn(
    kind: str, request: pytest.FixtureRequest
) -> None:
    problem: Problem = request.getfixturevalue(kind)
    examples = [e for part in problem.examples["test"].values() for e in part[:8]]
    greedy = answers(problem, examples)
    assert sampled(problem, examples, 2, temperature=1e-4, seed=3) == [greedy, greedy]


def test_free_answers_vary_and_repeat_by_seed(trained: Problem) -> None:
    examples = [e for part in trained.examples["test"].values() for e in part[:8]]
    drawn = sampled(trained, examples, 3, temperature=5.0, seed=0)
    assert drawn == sampled(trained, examples, 3, temperature=5.0, seed=0)
    assert drawn[0] != drawn[1]
    assert drawn != sampled(trained, examples, 3, temperature=5.0, seed=1)
    cold = sampled(trained, examples, 1, temperature=0.1, seed=0)[0]
    assert [a == e.answer for a, e in zip(cold, examples, strict=True)].count(True) > 0.9 * len(
        examples
    )


def test_broken_logits_give_no_answer(trained: Problem, speaking: Problem) -> None:
    for problem in (trained, speaking):
        examples = next(iter(problem.examples["test"].values()))[:2]
        weight = next(problem.model.parameters())
        before = weight.detach().clone()
        with torch.no_grad():
            weight.fill_(torch.nan)
        try:
            assert sampled(problem, examples, 1, temperature=1.0, seed=0) == [["", ""]]
        finally:
            with torch.no_grad():
                weight.copy_(before)
    with pytest.raises(LoclinError, match="at least one example"):
        sampled(trained, [], 1, temperature=1.0, seed=0)


@pytest.mark.parametrize("name", ["trained", "speaking"])
def test_answers_are_right_where_the_score_says_so(
    name: str, request: pytest.FixtureRequest
) -> None:
    problem: Problem = request.getfixturevalue(name)
    task = problem.tasks[0]
    examples = problem.examples["damage"][task]
    every: list[bool] = []
    with moved(problem, sigma=0.1 if name == "speaking" else 0.05) as (perturbed, group):
        for c in group:
            perturbed.place(c)
            given = answers(problem, examples)
            right = [a == e.answer for a, e in zip(given, examples, strict=True)]
            assert np.mean(right) == pytest.approx(problem.score("damage", task))
            every += right
    assert len(set(every)) == 2


@torch.no_grad()
def decoded(model: PreTrainedModel, ids: list[int], count: int) -> list[int]:
    """Greedy decoding of one prompt by itself, without padding."""
    for _ in range(count):
        ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[len(ids) - count :]


@pytest.mark.parametrize("family", FAMILIES)
def test_free_answers_are_greedy_decoding(
    family: str,
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = families[family], tokenizers[family]
    examples = [
        Example(prompt="the cat", answer=" sat on the mat"),
        Example(prompt="do cats purr? yes, they do.", answer=" (A)"),
        Example(prompt="a", answer=" dog"),
    ]
    problem = Problem(model=model, tokenizer=tokenizer, examples={"test": {"t": tuple(examples)}})
    expected = []
    for e in examples:
        count = len(tokenizer(e.answer, add_special_tokens=False)["input_ids"])
        tokens = decoded(model, tokenizer(e.prompt)["input_ids"], count)
        end = tokenizer.eos_token_id
        tokens = tokens[: tokens.index(end)] if end in tokens else tokens
        expected.append(tokenizer.decode(tokens, skip_special_tokens=True))
    assert answers(problem, examples) == expected
    own = [
        replace(e, answer=text)
        for e, text in zip(examples, expected, strict=True)
        if text.isascii() and text
    ]
    right = exact_match(model, collate(own, tokenizer)).tolist() if own else []
    given = answers(replace(problem, examples={"test": {"t": tuple(own)}}), own) if own else []
    for e, text, exact in zip(
        own, given, right, strict=True
    ):  # where the text is read back as the same tokens
        assert text == e.answer or not exact


def test_a_model_that_gives_nothing_answers_nothing(
    trained: Problem,
    speaking: Problem,
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    for problem in (trained, speaking):
        with moved(problem, sigma=1e30) as (perturbed, group):
            perturbed.place(group[0])
            assert answers(problem, problem.examples["damage"][problem.tasks[0]][:3]) == [""] * 3
    ending, end = copy.deepcopy(families["gpt2"]), tokenizers["gpt2"].eos_token_id

    def finished(_: nn.Module, __: Any, output: Any) -> None:
        output.logits[..., end] = 1e4

    ending.register_forward_hook(finished)
    problem = Problem(model=ending, tokenizer=tokenizers["gpt2"], examples={})
    assert answers(problem, [Example(prompt="the cat", answer=" sat on")]) == [""]
