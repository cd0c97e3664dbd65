"""A model's own samples, and how it goes on from them, as the capability to destroy."""

from __future__ import annotations

from collections import Counter
from itertools import chain, takewhile
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.seeds import derived
from loclin.tasks.batch import vocabulary_size
from loclin.tasks.data import TaskData, counted
from loclin.tasks.example import Example
from loclin.tasks.tokens import text_tokens

MOST_ROWS = 32  # rows drawn at most, for each example
HOPELESS = 512  # rows after which to give up if none of them is usable
UNREADABLE = "that do not read back as the same tokens"
ENDED = "after which the model ends at once"
REPEATED = "repeating an earlier one"

_VERBATIM = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}


def self_examples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    *,
    prompt_tokens: int = 8,
    answer_tokens: int = 4,
    seed: int,
    batch_size: int = 32,
) -> TaskData:
    """Prompts sampled from the model, each with the model's own greedy continuation as its answer.

    The untouched model's exact match is 1, up to round-off. A prompt is drawn at temperature 1 by
    the Gumbel-max trick, x_t = argmax(logits_t + G), with noise that is a function of (seed, row,
    step) alone; from the beginning-of-text token where there is one, else from a random token.
    Tokens that are no text by themselves are left out. An answer ends where the model would end.

    Kept are the first `count` rows that are different and survive being written as text and read
    back; fewer, with a note, if 32 rows for each did not yield them.

    Raises:
        LoclinError: counts below 1, tokens beyond the model's context, logits that are not numbers,
            no usable row.
    """
    names = ("samples", "prompt tokens", "answer tokens", "rows")
    for name, value in zip(names, (count, prompt_tokens, answer_tokens, batch_size), strict=True):
        if value < 1:
            raise LoclinError(
                f"expected to draw at least 1 of the {name}, found {value}: ask for more"
            )
    _check_context(model, tokenizer, prompt_tokens, answer_tokens)
    drawable, most = _drawable(model, tokenizer), count * MOST_ROWS
    numbers = (range(start, min(start + batch_size, most)) for start in range(0, most, batch_size))
    drawn = (
        _sampled(model, tokenizer, drawable, rows, length=prompt_tokens, seed=seed)
        for rows in numbers
    )
    posed = chain.from_iterable(
        _examples(model, tokenizer, prompts, answer_tokens) for prompts in drawn
    )
    kept: dict[str, Example] = {}
    dropped: Counter[str] = Counter()
    for row, made in enumerate(posed, start=1):  # lazily: no more are drawn than are needed
        if isinstance(made, str) or made.prompt in kept:
            dropped[made if isinstance(made, str) else REPEATED] += 1
        else:
            kept[made.prompt] = made
        if len(kept) == count or (not kept and row == HOPELESS):
            break
    return _summed_up(kept, dropped, count)


def _summed_up(kept: dict[str, Example], dropped: Counter[str], count: int) -> TaskData:
    read = len(kept) + dropped.total()
    if not kept:
        raise LoclinError(
            f"expected samples of the model that read back as text, found none in {read} draws: "
            f"dropped {counted(dropped)}: use a file of task data instead"
        )
    short = f"{count} samples were asked for, {len(kept)} are usable"
    return TaskData(
        source="the model's own samples",
        examples={"self": tuple(kept.values())},
        read=read,
        dropped=dict(dropped),
        notes=() if len(kept) == count else (short,),
    )


def _check_context(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_tokens: int,
    answer_tokens: int,
) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    special = max(tokenizer.num_special_tokens_to_add(), tokenizer.bos_token_id is not None)
    if context is not None and special + prompt_tokens + answer_tokens > context:
        raise LoclinError(
            f"expected samples within the model's context of {context} tokens, found "
            f"{prompt_tokens} prompt tokens, "
            f"{answer_tokens} answer tokens and {special} special: ask for fewer"
        )


def _drawable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Bool[Tensor, " vocab"]:
    """Tokens that are text by themselves: known to the tokenizer, not special, whole characters."""
    vocabulary = vocabulary_size(model)
    known = range(min(vocabulary, len(tokenizer)))
    special = {*tokenizer.all_special_ids}
    texts = tokenizer.batch_decode([[token] for token in known], **_VERBATIM)
    whole = [t for t in known if t not in special and texts[t] and "\ufffd" not in texts[t]]
    drawable = torch.zeros(vocabulary, dtype=torch.bool)
    drawable[whole] = True
    if not drawable.any():
        raise LoclinError(
            "expected a tokenizer with tokens that are text, found none: check the model's "
            "tokenizer"
        )
    return drawable


def _sampled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    drawable: Bool[Tensor, " vocab"],
    rows: range,
    *,
    length: int,
    seed: int,
) -> Int[Tensor, "n length"]:
    """Draw tokens for each row number, after the beginning-of-text token where there is one."""
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = torch.tensor(first, dtype=torch.long).expand(len(rows), -1)
    speak = _Speech(model)
    for step in range(length):
        logits = speak(ids) if ids.shape[1] else torch.zeros(len(rows), len(drawable))
        seeds = [derived(seed, "self", row, step) for row in rows]
        noise = torch.stack([_gumbel(len(drawable), seed=s) for s in seeds])
        drawn = (logits + noise).masked_fill(~drawable, -torch.inf).argmax(-1)
        ids = torch.cat([ids, drawn[:, None]], dim=1)
    return ids[:, -length:]


def _gumbel(size: int, *, seed: int) -> Float[Tensor, " size"]:
    """G = −ln E with E ~ Exp(1), in float64, where no E is ever 0."""
    generator = torch.Generator().manual_seed(seed)
    return -torch.empty(size, dtype=torch.float64).exponential_(generator=generator).log()


class _Speech:
    """Logits of the next token of growing rows, with the model's own cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.cache: Any = None
        self.read = 0

    @torch.no_grad()
    def __call__(self, ids: Int[Tensor, "n length"]) -> Float[Tensor, "n vocab"]:
        """Logits, on the CPU, after rows that begin with those of the call before."""
        fresh = ids[:, self.read :].to(self.model.device)
        mask = torch.ones_like(ids, device=fresh.device)
        output = self.model(
            input_ids=fresh,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if output.logits.isnan().any():
            raise LoclinError(
                "expected logits that are numbers, found NaN: the model's weights are broken, load "
                "it again"
            )
        self.cache = getattr(output, "past_key_values", None)
        self.read = 0 if self.cache is None else ids.shape[1]  # without one all is read again
        last: Tensor = output.logits[:, -1].cpu()
        return last


def _examples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Int[Tensor, "n length"],
    count: int,
) -> list[Example | str]:
    """For every prompt its example, or why there is none."""
    texts = tokenizer.batch_decode(prompts, **_VERBATIM)
    pairs = zip(texts, prompts.tolist(), strict=True)
    same = [text.strip() and _tokens(tokenizer, text) == ids for text, ids in pairs]
    readable = [text for text, survives in zip(texts, same, strict=True) if survives]
    spoken = iter(_continued(model, text_tokens(readable, tokenizer), count) if readable else [])
    return [
        _example(tokenizer, text, ids, next(spoken)) if survives else UNREADABLE
        for text, ids, survives in zip(texts, prompts.tolist(), same, strict=True)
    ]


def _continued(model: PreTrainedModel, prompts: list[list[int]], count: int) -> list[list[int]]:
    """The model's greedy continuation of prompts of one length."""
    ids, speak = torch.tensor(prompts), _Speech(model)
    for _ in range(count):
        ids = torch.cat([ids, speak(ids).argmax(-1)[:, None]], dim=1)
    return list(ids[:, len(prompts[0]) :].tolist())


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _example(
    tokenizer: PreTrainedTokenizerBase, prompt: str, ids: list[int], spoken: list[int]
) -> Example | str:
    """The prompt with what the model says up to a special token; or why that cannot be."""
    special = {*tokenizer.all_special_ids}
    answer = list(takewhile(lambda token: token not in special, spoken))
    if not answer:
        return ENDED
    alone = tokenizer.decode(answer, **_VERBATIM)
    # some tokenizers leave out the space before a first word, some read both texts alike
    after = tokenizer.decode(ids + answer, **_VERBATIM)
    texts = (after.removeprefix(prompt) if after.startswith(prompt) else alone, alone)
    row, *rows = text_tokens([prompt, *(prompt + text for text in texts)], tokenizer)
    for text, whole in zip(texts, rows, strict=True):
        if text.strip() and whole == row + answer:
            return Example(prompt=prompt, answer=text)
    return UNREADABLE
