"""Examples with options, scored by the joint log-probability of every option after the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.tasks.batch import (
    IGNORED,
    LOGITS_AT_ONCE,
    TOKENS_AT_ONCE,
    Batch,
    answer_log_probabilities,
    collate,
    vocabulary_size,
)
from loclin.tasks.example import Example
from loclin.tasks.tokens import continuations

# ends the note about options that begin alike
JOINT = "options are scored by their joint log-probability"


@dataclass(frozen=True, eq=False, kw_only=True)
class Choices:
    """n examples with all of their options: one row for each (example, option), in order.

    Attributes:
        batch: the prompt, then the option as its answer.
        counts, gold: how many options each example has, and the place of the right one.
    """

    batch: Batch
    counts: Int[Tensor, " n"]
    gold: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.counts)

    def to(self, device: torch.device | str) -> Choices:
        """The same choices on another device."""
        return Choices(
            batch=self.batch.to(device), counts=self.counts.to(device), gold=self.gold.to(device)
        )


def collate_choices(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Choices:
    """Tokenise every option of every example after its prompt.

    Raises:
        LoclinError: an example without options or whose answer is not among them, or what `collate`
            refuses.
    """
    for e in examples:
        if not e.options:
            raise LoclinError(
                f"expected examples with options, found none for the answer {e.answer!r}: use "
                "exact match"
            )
        if e.answer not in e.options:
            raise LoclinError(
                f"expected the answer among the options {e.options}, found {e.answer!r}: add it "
                "there"
            )
    rows = [replace(e, answer=option) for e in examples for option in e.options]
    return Choices(
        batch=collate(rows, tokenizer),
        counts=torch.tensor([len(e.options) for e in examples]),
        gold=torch.tensor([e.options.index(e.answer) for e in examples]),
    )


def option_log_probabilities(
    model: nn.Module, choices: Choices, *, tokens_at_once: int = TOKENS_AT_ONCE, copies: int = 1
) -> Float[Tensor, "n_times_copies most"]:
    """log p(option | prompt) = Σ_t log p(option_t | prompt, option_<t), in nats, float32 or better.

    The whole option counts: options that begin with the same token differ only later. Rows of like
    length go through the model together, in pieces that fit; no score depends on it beyond
    round-off. `copies` as in `EvalSet.answers`.

    Returns:
        One row for each example, −∞ where it has fewer options than others.
    """
    answers_at_once = LOGITS_AT_ONCE // (copies * vocabulary_size(model))
    pieces = list(_pieces(choices.batch, tokens_at_once // copies, answers_at_once))
    tiles = [choices.batch.rows(p).tiled(copies) for p in pieces]
    scores = torch.cat([answer_log_probabilities(model, t).view(copies, -1) for t in tiles], dim=1)
    in_order = scores[:, torch.cat(pieces).argsort().to(scores.device)].flatten()
    by_example = list(in_order.split(choices.counts.tolist() * copies))
    return nn.utils.rnn.pad_sequence(by_example, batch_first=True, padding_value=-torch.inf)


def _pieces(batch: Batch, tokens: int, answers_at_once: int) -> Iterator[Int[Tensor, " m"]]:
    """Rows by the place of their answer, cut where the next one would exceed a limit.

    The model gives logits for every row at each place where any row of the piece has an answer
    token: hence the order.
    """
    answers = [row.nonzero().flatten().tolist() for row in (batch.labels != IGNORED).cpu()]
    lengths = batch.attention_mask.sum(1).tolist()
    piece: list[int] = []
    longest, places = 0, set[int]()
    for row in sorted(range(len(batch)), key=lambda row: answers[row][0]):
        longest, places = max(longest, lengths[row]), places | set(answers[row])
        size = len(piece) + 1
        if piece and (size * longest > tokens or size * len(places) > answers_at_once):
            yield torch.tensor(piece)
            piece, longest, places = [], lengths[row], set(answers[row])
        piece.append(row)
    yield torch.tensor(piece)


@torch.no_grad()
def choose(
    model: nn.Module, choices: Choices, *, tokens_at_once: int = TOKENS_AT_ONCE
) -> Bool[Tensor, " n"]:
    """Whether each right option has the largest joint log-probability."""
    scores = option_log_probabilities(model, choices, tokens_at_once=tokens_at_once)
    return largest(scores, choices.gold.to(scores.device)[:, None])


def largest(scores: Float[Tensor, "n most"], gold: Int[Tensor, "n 1"]) -> Bool[Tensor, " n"]:
    """Whether the right option's score is above all others; a tie counts as wrong."""
    return (scores.gather(1, gold) > scores.scatter(1, gold, -torch.inf)).all(1)


def check_options(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, ...]:
    """Whether every option can win; a remark where examples have options that begin alike.

    An option that begins with all the tokens of another has at most the other's joint probability:
    `LoclinError`. Options that share their first token alone differ by those after it.
    """
    sharing = 0
    with_options = [e for e in examples if e.options]
    for e, (_, tokens) in zip(with_options, continuations(with_options, tokenizer), strict=True):
        # in this order an option that begins others stands right before one of them
        for short, long in pairwise(sorted(e.options, key=lambda option: tokens[option])):
            if tokens[long][: len(tokens[short])] == tokens[short]:
                raise LoclinError(
                    f"expected options of which none begins another, found {short!r} and {long!r} "
                    f"with the tokens {tokens[short]} and {tokens[long]}: reword them, the longer "
                    "could never win"
                )
        sharing += len({tuple(tokens[option][:1]) for option in e.options}) < len(e.options)
    if not sharing:
        return ()
    return (
        f"{sharing} of {len(examples)} examples have options with a common first token: {JOINT}",
    )
