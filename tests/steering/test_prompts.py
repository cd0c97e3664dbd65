"""Prompts with two tokens: which they are, where the common beginning goes, and what is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.steering import prompts as subject
from loclin.steering.prompts import PromptSet, next_logits, pieces, prompt_set
from loclin.tasks.batch import IGNORED, answer_log_probabilities, collate, vocabulary_size
from loclin.tasks.example import Example
from tests.conftest import FAMILIES

Models = dict[str, PreTrainedModel]
Tokenizers = dict[str, PreTrainedTokenizerBase]

PROMPTS = (
    "do cats purr?",
    "x",
    "the cat sat on the mat and the dog ran after it?",
    "(A) or (B)?",
    "it sat on it?",
)
CLASSES = [
    Example(
        prompt=p,
        answer=(" yes", " no")[i % 2],
        options=(" yes", " no") if i % 3 else (" no", " yes"),
        group=f"g{i}",
    )
    for i, p in enumerate(PROMPTS)
]
LETTERS = [
    Example(prompt=p, answer=(" (A)", " (B)")[i % 2], options=(" (A)", " (B)"))
    for i, p in enumerate(PROMPTS)
]


def dense_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1]


@pytest.mark.parametrize("family", FAMILIES)
def test_class_form_of_one_token_options(
    families: Models, tokenizers: Tokenizers, family: str
) -> None:
    tokenizer = tokenizers[family]
    asked = prompt_set(CLASSES, tokenizer, device="cpu")
    yes, no = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (" yes", " no"))
    shared = next(i for i in range(len(yes)) if yes[i] != no[i])
    assert (asked.form, asked.positive, len(asked)) == ("class", " yes", 5)
    assert asked.toward.tolist() == [yes[shared]] * 5
    assert asked.away.tolist() == [no[shared]] * 5
    assert asked.labels is not None
    assert asked.labels.tolist() == [True, False, True, False, True]
    assert asked.gold.tolist() == [yes[shared], no[shared]] * 2 + [yes[shared]]
    assert asked.groups == ("g0", "g1", "g2", "g3", "g4")
    assert (asked.batch.labels == IGNORED).all()
    for row, mask, prompt in zip(
        asked.batch.input_ids, asked.batch.attention_mask, PROMPTS, strict=True
    ):
        assert row[mask > 0].tolist() == tokenizer(prompt)["input_ids"] + yes[:shared]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_common_beginning_goes_to_the_prompt(
    families: Models, tokenizers: Tokenizers, family: str
) -> None:
    tokenizer = tokenizers[family]
    asked = prompt_set(LETTERS, tokenizer, device="cpu")
    assert (asked.form, asked.positive, asked.labels) == ("paired", None, None)
    assert torch.equal(asked.gold, asked.toward)
    assert tokenizer.convert_ids_to_tokens(asked.toward.tolist()) == ["A", "B", "A", "B", "A"]
    assert tokenizer.convert_ids_to_tokens(asked.away.tolist()) == ["B", "A", "B", "A", "B"]
    for row, mask, prompt in zip(
        asked.batch.input_ids, asked.batch.attention_mask, PROMPTS, strict=True
    ):
        assert tokenizer.decode(row[mask > 0], skip_special_tokens=True) == prompt + " ("
    named = prompt_set(LETTERS, tokenizer, positive=" (B)", device="cpu")
    assert named.form == "class"
    assert named.labels is not None
    assert named.labels.tolist() == [False, True] * 2 + [False]
    assert tokenizer.convert_ids_to_tokens(named.toward.tolist()) == ["B"] * 5
    assert torch.equal(named.gold, asked.gold)


def test_yes_after_a_line_break_has_no_space(tokenizers: Tokenizers) -> None:
    broken = [
        replace(e, prompt=e.prompt + "\n", answer=e.answer.strip(), options=("yes", "no"))
        for e in CLASSES
    ]
    found = prompt_set(broken, tokenizers["llama"], device="cpu")
    assert (found.form, found.positive) == ("class", "yes")
    assert found.labels is not None
    assert found.labels.tolist() == [True, False, True, False, True]


def test_yes_beside_other_options_is_the_paired_form(tokenizers: Tokenizers) -> None:
    mixed = [CLASSES[0], Example(prompt="x", answer=" (", options=(" yes", " ("))]
    asked = prompt_set(mixed, tokenizers["gpt2"], device="cpu")
    assert (asked.form, asked.labels) == ("paired", None)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_after_a_prompt_is_what_one_prompt_alone_gives(
    families: Models, tokenizers: Tokenizers, family: str
) -> None:
    model, asked = families[family], prompt_set(LETTERS, tokenizers[family], device="cpu")
    with torch.no_grad():
        found = next_logits(model, asked.batch)
        joint = answer_log_probabilities(model, asked.answered(asked.away))
    for i in range(len(asked)):
        ids = asked.batch.input_ids[i][asked.batch.attention_mask[i] > 0].tolist()
        expected = dense_logits(model, ids)
        assert torch.allclose(found[i], expected, rtol=1e-4, atol=1e-4)
        assert torch.isclose(
            joint[i], expected.log_softmax(-1)[asked.away[i]], rtol=1e-4, atol=1e-4
        )


def test_answered_rows_equal_collated_ones(speaking: Problem) -> None:
    examples = list(speaking.examples["test"]["colour"])[:7]
    asked = prompt_set(examples, speaking.tokenizer, device="cpu")
    ours, plain = asked.answered(asked.gold), collate(examples, speaking.tokenizer)
    assert torch.equal(ours.attention_mask, plain.attention_mask)
    assert torch.equal(ours.labels, plain.labels)
    assert torch.equal(ours.input_ids * ours.attention_mask, plain.input_ids * plain.attention_mask)


def test_rows_and_pieces(
    families: Models, tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = families["gpt2"], prompt_set(CLASSES, tokenizers["gpt2"], device="cpu")
    for index in (np.array([3, 1]), torch.tensor([3, 1]), [3, 1]):
        part = asked.rows(index)
        assert part.groups == ("g3", "g1")
        assert part.examples == (CLASSES[3], CLASSES[1])
        assert torch.equal(part.gold, asked.gold[[3, 1]])
        assert part.labels is not None
        assert not part.labels.any()
        assert part.batch.input_ids.shape[1] == int(asked.batch.attention_mask[[3, 1]].sum(1).max())
    assert (
        len(asked.rows(np.array([True, False, True, False, False])))
        == len(asked.rows(slice(0, 2)))
        == 2
    )
    lengths = asked.batch.attention_mask.sum(1)
    two = 2 * vocabulary_size(model)
    for tokens, logits, most in (
        (1 << 11, 1 << 26, 5),
        (1, 1 << 26, 1),
        (1 << 11, 1, 1),
        (1 << 11, two, 2),
    ):
        monkeypatch.setattr(subject, "GRADED_AT_ONCE", tokens)
        monkeypatch.setattr(subject, "LOGITS_AT_ONCE", logits)
        found = list(pieces(model, asked.batch))
        assert max(map(len, found)) == most
        assert sorted(torch.cat(found).tolist()) == list(range(5))
        assert (lengths[torch.cat(found)].diff() >= 0).all()


@contextmanager
def in_passes_of(rows: int, model: nn.Module) -> Iterator[None]:
    """At most so many prompts in a pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "LOGITS_AT_ONCE", rows * vocabulary_size(model))
        yield


def refused(
    message: str,
    examples: list[Example],
    tokenizer: PreTrainedTokenizerBase,
    positive: str | None = None,
) -> None:
    with pytest.raises(LoclinError, match=message):
        prompt_set(examples, tokenizer, positive=positive, device="cpu")


def test_what_cannot_be_compared_is_refused(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["gpt2"]
    bare = tokenizers["qwen2"]
    first = CLASSES[0]
    refused("at least one example, found none", [], tokenizer)
    refused("two options, found 0", [Example(prompt="x", answer="y")], tokenizer)
    refused("two options, found 3", [replace(first, options=(" yes", " no", " or"))], tokenizer)
    refused("two options, found 1", [replace(first, options=(" yes", " yes"))], tokenizer)
    refused("answer among the options", [replace(first, answer=" cat")], tokenizer)
    refused("both classes, found 3 whose answer is always ' yes'", CLASSES[::2], tokenizer)
    refused("both classes, found 2 whose answer is never ' yes'", CLASSES[1::2], tokenizer)
    refused("positive option ' cat' in every example", CLASSES, tokenizer, positive=" cat")
    refused(
        "positive option ' yes' in every example", [*CLASSES, *LETTERS], tokenizer, positive=" yes"
    )
    other = replace(first, options=(" yes", " cat"))
    refused("same two options in every example", [*CLASSES, other], tokenizer, positive=" yes")
    refused(
        "differ in one token",
        [Example(prompt="x", answer=" cat sat", options=(" cat sat", " dog ran"))],
        tokenizer,
    )
    refused(
        "differ in one token",
        [Example(prompt="x", answer=" cat", options=(" cat", " cat sat"))],
        tokenizer,
    )
    refused("prompts of at least one token", [replace(e, prompt="") for e in CLASSES], bare)
    with pytest.raises(LoclinError, match="found an index that chooses none"):
        some_asked(tokenizer).rows([])


def some_asked(tokenizer: PreTrainedTokenizerBase) -> PromptSet:
    return prompt_set(CLASSES, tokenizer, device="cpu")
