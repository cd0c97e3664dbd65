"""The rows of tokens that a model reads: those of the whole text, cut into prompt and answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.tasks.example import Example


def special_tokens_around(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text that has tokens of its own."""
    (bare,), (whole,) = (_ids([text], tokenizer, special=special) for special in (False, True))
    starts = range(len(whole) - len(bare) + 1)
    start = next((i for i in starts if whole[i : i + len(bare)] == bare), 0)
    return whole[:start], whole[start + len(bare) :]


def text_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokens of whole texts: special tokens once, before the text, and none after it.

    A text that begins with the tokenizer's special tokens, as chat templates write them, gets no
    second ones. An end token that the tokenizer puts after a text is left out: an answer follows.
    """
    if not texts:
        return []
    rows = _ids(texts, tokenizer, special=False)
    probe = next((text for text, row in zip(texts, rows, strict=True) if row), texts[0])
    first, _ = special_tokens_around(tokenizer, probe)
    return [r if r[: len(first)] == first else [*first, *r] for r in rows]


def _ids(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, special: bool
) -> list[list[int]]:
    try:
        rows = tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
    except Exception as error:  # tokenizers raise plain ones, for example without an unknown token
        first = " ".join(str(error).split())[:120]
        raise LoclinError(
            f"expected a tokenizer that reads every text, found {type(error).__name__} ({first}): "
            "save the tokenizer again, or take other data"
        ) from error
    return [list(row) for row in rows]


def continuations(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[list[int], dict[str, list[int]]]]:
    """For every example the tokens of its prompt, and those that follow with each answer or option.

    A text is tokenised as a whole, since tokens can reach over the border and what begins a text
    can get a space of its own. The prompt's are the longest beginning that the prompt alone and
    the prompt with each of its options share, so that options are compared after the same tokens.
    """
    spelled = [(e.answer, *e.options, *e.also) for e in examples]
    pairs = list(zip(examples, spelled, strict=True))
    distinct = [t for e, texts in pairs for t in (e.prompt, *(e.prompt + text for text in texts))]
    distinct = list(dict.fromkeys(distinct))
    rows = dict(zip(distinct, text_tokens(distinct, tokenizer), strict=True))
    made = []
    for e, texts in pairs:
        whole = {text: rows[e.prompt + text] for text in texts}
        columns = zip(rows[e.prompt], *whole.values(), strict=False)
        prompt = [c[0] for c in takewhile(lambda column: len({*column}) == 1, columns)]
        made.append((prompt, {text: row[len(prompt) :] for text, row in whole.items()}))
    return made
