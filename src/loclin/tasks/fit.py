"""Whether a model can read the examples at all: its tokenizer's words, its context, its options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Literal

from transformers import PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.tasks.choices import check_options
from loclin.tasks.data import TaskData, sifted
from loclin.tasks.example import Example
from loclin.tasks.tokens import continuations, special_tokens_around

Long = Literal["drop", "fail"]


def fit(
    data: TaskData,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int | None,
    vocabulary: int | None = None,
    long: Long = "drop",
) -> TaskData:
    """Drop, or refuse, the examples that a model cannot read, and check the options of the rest.

    Dropped: answers and options of no tokens, or with a word that the tokenizer does not know;
    tokens that the model's embedding of so many rows (None: any) does not have; prompts that exceed
    the context (None: no limit) together with their longest answer, which `long` = "fail" refuses
    instead.

    Raises:
        LoclinError: a longer prompt with "fail"; nothing left; an option that begins another.
    """
    every = [e for examples in data.examples.values() for e in examples]
    tokens = dict(zip(every, continuations(every, tokenizer), strict=True))
    unknown = _unknown(tokenizer)

    def unreadable(examples: Sequence[Example]) -> list[str]:
        return [_unreadable(*tokens[e], unknown, vocabulary) for e in examples]

    data = sifted(data, unreadable)
    if context is not None:
        lengths = {e: len(p) + max(map(len, after.values())) for e, (p, after) in tokens.items()}
        data = _within(data, lengths, context, long)
    kept = [e for examples in data.examples.values() for e in examples]
    count = sum(bool(unknown & set(tokens[e][0])) for e in kept)
    note = f"{count} of {len(kept)} prompts hold words that the tokenizer does not know"
    notes = ((note,) if count else (), _around(kept, tokenizer), check_options(kept, tokenizer))
    return replace(data, notes=(*data.notes, *chain.from_iterable(notes)))


def _within(data: TaskData, lengths: Mapping[Example, int], context: int, long: Long) -> TaskData:
    kept = [e for examples in data.examples.values() for e in examples]
    longer = [lengths[e] for e in kept if lengths[e] > context]
    if longer and long == "fail":
        raise LoclinError(
            f"expected prompts with answers of at most {context} tokens, the model's context, "
            f"found {len(longer)} longer in {data.source}, the longest of {max(longer)}: shorten "
            "them or let them be dropped"
        )
    reason = f"longer than the context of {context} tokens"
    return sifted(data, lambda examples: [reason if lengths[e] > context else "" for e in examples])


def _unknown(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens of unknown words: the built-in word-level tokenizers use their padding.

    A token that begins or ends texts, as chat templates write them, is known whatever else it
    serves for.
    """
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    return {t for t in (tokenizer.unk_token_id, tokenizer.pad_token_id) if t is not None} - ends


def _unreadable(
    prompt: Sequence[int],
    answers: Mapping[str, Sequence[int]],
    unknown: set[int],
    vocabulary: int | None,
) -> str:
    if not prompt:
        return "with a prompt of no tokens before the answer"
    if not all(answers.values()):
        return "with an answer of no tokens"
    if any(unknown & set(a) for a in answers.values()):
        return "with an answer that the tokenizer has no words for"
    outside = vocabulary and max(max(row) for row in (prompt, *answers.values())) >= vocabulary
    return "with tokens that the model's embedding does not have" if outside else ""


def _around(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Remarks on special tokens that are left out."""
    before, after = special_tokens_around(tokenizer, examples[0].prompt)
    begin, end = tokenizer.decode(before), tokenizer.decode(after)
    count = sum(bool(before) and e.prompt.startswith(begin) for e in examples)
    if count:
        yield f"{count} of {len(examples)} prompts begin with {begin!r} themselves: no second one"
    if after:
        yield f"the tokenizer puts {end!r} after every text: it is left out"
