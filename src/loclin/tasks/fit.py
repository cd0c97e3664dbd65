"""Whether a model can read the examples at all: its tokenizer's words, its context, its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.tasks.choices import check_options
from loclin.tasks.data import TaskData, sifted
from loclin.tasks.example import Example

Long = Literal["drop", "fail"]


def fit(
    data: TaskData, tokenizer: PreTrainedTokenizerBase, *, context: int | None, long: Long = "drop"
) -> TaskData:
    """Drop, or refuse, the examples that a model cannot read, and check the options of the rest.

    Dropped: answers and options of no tokens, or with a word that the tokenizer does not know;
    prompts that exceed the context (None: no limit) together with their longest answer, which
    `long` = "fail" refuses instead.

    Raises:
        LoclinError: a longer prompt with "fail"; nothing left; an option that begins another.
    """

    def unreadable(examples: Sequence[Example]) -> list[str]:
        return [_unreadable(answers, tokenizer) for answers in _answers(examples, tokenizer)]

    data = sifted(data, unreadable)
    if context is not None:
        data = _within(data, tokenizer, context, long)
    every = [e for examples in data.examples.values() for e in examples]
    notes = (*_unknown_words(every, tokenizer), *check_options(every, tokenizer))
    return replace(data, notes=(*data.notes, *notes))


def _within(
    data: TaskData, tokenizer: PreTrainedTokenizerBase, context: int, long: Long
) -> TaskData:
    everything = [e for examples in data.examples.values() for e in examples]
    lengths = dict(zip(everything, _lengths(everything, tokenizer), strict=True))
    longer = [n for n in lengths.values() if n > context]
    if longer and long == "fail":
        raise LoclinError(
            f"expected prompts with answers of at most {context} tokens, the model's context, "
            f"found {len(longer)} longer in {data.source}, the longest of {max(longer)}: shorten "
            "them or let them be dropped"
        )
    reason = f"longer than the context of {context} tokens"
    return sifted(data, lambda examples: [reason if lengths[e] > context else "" for e in examples])


def _answers(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
) -> list[list[list[int]]]:
    """For every example, the tokens of its options, or of its answer where there are none."""
    texts = [e.options or (e.answer,) for e in examples]
    distinct = sorted({text for several in texts for text in several})
    ids = tokenizer(distinct, add_special_tokens=False)["input_ids"]
    tokens = dict(zip(distinct, ids, strict=True))
    return [[tokens[text] for text in several] for several in texts]


def _lengths(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    prompts = tokenizer([e.prompt for e in examples], verbose=False)["input_ids"]
    longest = (max(map(len, answers)) for answers in _answers(examples, tokenizer))
    return [len(prompt) + n for prompt, n in zip(prompts, longest, strict=True)]


def _unknown(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens of unknown words: the built-in word-level tokenizers use their padding."""
    return {t for t in (tokenizer.unk_token_id, tokenizer.pad_token_id) if t is not None}


def _unreadable(answers: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> str:
    if not all(answers):
        return "with an answer of no tokens"
    unknown = _unknown(tokenizer)
    lost = any(unknown & set(a) for a in answers)
    return "with an answer that the tokenizer has no words for" if lost else ""


def _unknown_words(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, ...]:
    prompts, unknown = [e.prompt for e in examples], _unknown(tokenizer)
    rows = tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]
    count = sum(bool(unknown & set(row)) for row in rows)
    note = f"{count} of {len(prompts)} prompts hold words that the tokenizer does not know"
    return (note,) if count else ()
