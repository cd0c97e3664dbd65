"""Examples as tensors, and the two scores read from one forward pass: answer loss and exact match."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.tasks.example import Example

IGNORED = -100  # the label that torch's cross entropy leaves out


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Right-padded rows of prompt and answer tokens.

    Attributes:
        input_ids: tokens, padding included.
        attention_mask: 1 on real tokens.
        labels: the token itself on answer tokens, `IGNORED` elsewhere; not shifted (position i holds token i).
    """

    input_ids: Int[Tensor, "n length"]
    attention_mask: Int[Tensor, "n length"]
    labels: Int[Tensor, "n length"]

    def __len__(self) -> int:
        return len(self.input_ids)

    def rows(self, index: Int[Tensor, " m"] | slice) -> Batch:
        """The chosen rows, cut to the longest of them."""
        mask = self.attention_mask[index]
        length = int(mask.sum(1).max())
        return Batch(
            input_ids=self.input_ids[index][:, :length],
            attention_mask=mask[:, :length],
            labels=self.labels[index][:, :length],
        )

    def chunks(self, size: int) -> Iterator[Batch]:
        """Consecutive batches of at most `size` rows."""
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            labels=self.labels.to(device),
        )


def collate(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Tokenise examples: the prompt with the tokenizer's special tokens, the answer right after it without.

    Raises:
        LoclinError: no examples, a tokenizer without a padding token, or an answer of no tokens.
    """
    if not examples:
        raise LoclinError("expected at least one example, found none: give more data")
    if tokenizer.pad_token_id is None:
        raise LoclinError("expected a tokenizer with a padding token, found none: set tokenizer.pad_token")
    prompts = tokenizer([e.prompt for e in examples])["input_ids"]
    answers = tokenizer([e.answer for e in examples], add_special_tokens=False)["input_ids"]
    for example, answer in zip(examples, answers, strict=True):
        if not answer:
            raise LoclinError(f"expected an answer of at least one token, found {example.answer!r}: fill it in")
    rows = [torch.tensor(p + a) for p, a in zip(prompts, answers, strict=True)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=int(tokenizer.pad_token_id))
    position = torch.arange(ids.shape[1])
    starts = torch.tensor([len(p) for p in prompts])[:, None]
    ends = torch.tensor([len(r) for r in rows])[:, None]
    labels = torch.where((position >= starts) & (position < ends), ids, IGNORED)
    return Batch(input_ids=ids, attention_mask=(position < ends).long(), labels=labels)


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Stack batches of one width into one.

    Raises:
        LoclinError: the batches differ in width.
    """
    widths = {b.input_ids.shape[1] for b in batches}
    if len(widths) != 1:
        raise LoclinError(f"expected batches of one width, found widths {sorted(widths)}: collate them together")
    return Batch(
        input_ids=torch.cat([b.input_ids for b in batches]),
        attention_mask=torch.cat([b.attention_mask for b in batches]),
        labels=torch.cat([b.labels for b in batches]),
    )


def _answer_logits(
    model: nn.Module, batch: Batch
) -> tuple[Float[Tensor, "n predicted vocab"], Int[Tensor, "n predicted"]]:
    """Logits that predict each next token, and the labels they are held against."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return logits[:, :-1], batch.labels[:, 1:]


def answer_loss(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Summed negative log-likelihood of the answer tokens (nats), and how many there are.

    A sum and a count rather than a mean: batches of different lengths then add up without bias.
    """
    logits, labels = _answer_logits(model, batch)
    kept = labels != IGNORED
    chosen = logits[kept]
    precise = chosen.float() if chosen.dtype in (torch.float16, torch.bfloat16) else chosen
    loss = nn.functional.cross_entropy(precise, labels[kept], reduction="sum")
    return loss, int(kept.sum())


def mean_answer_loss(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Mean negative log-likelihood per answer token, in nats."""
    total, count = answer_loss(model, batch)
    return total / count


@torch.no_grad()
def exact_match(model: nn.Module, batch: Batch, *, batch_size: int = 512) -> Bool[Tensor, " n"]:
    """For every row, whether greedy decoding would give the whole answer.

    Scored by teacher forcing in one forward pass: as long as every earlier answer token is right, the model sees what it
    would have decoded itself, so "all tokens right under teacher forcing" equals "greedy decoding is right".
    """
    right = []
    for chunk in batch.chunks(batch_size):
        logits, labels = _answer_logits(model, chunk)
        right.append(((logits.argmax(-1) == labels) | (labels == IGNORED)).all(-1))
    return torch.cat(right)


def accuracy(model: nn.Module, batch: Batch) -> float:
    """Share of rows whose answer is matched exactly."""
    return float(exact_match(model, batch).double().mean())
