"""Examples as tensors, and two scores from one forward pass: answer loss and exact match."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.tasks.example import Example
from loclin.tasks.tokens import continuations, text_tokens

IGNORED = -100  # the label that torch's cross entropy leaves out
LOGITS_AT_ONCE = 1 << 26  # numbers, in scoring: 256 MB of float32
TOKENS_AT_ONCE = 1 << 14  # in one forward pass, padding included


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Right-padded rows of prompt and answer tokens.

    `labels` holds the token itself on answer tokens, `IGNORED` elsewhere, not shifted.
    """

    input_ids: Int[Tensor, "n length"]
    attention_mask: Int[Tensor, "n length"]
    labels: Int[Tensor, "n length"]

    def __len__(self) -> int:
        return len(self.input_ids)

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same change of all three tensors."""
        return Batch(
            input_ids=change(self.input_ids),
            attention_mask=change(self.attention_mask),
            labels=change(self.labels),
        )

    def rows(self, index: Int[Tensor, " m"] | slice) -> Batch:
        """The chosen rows, cut to the longest of them."""
        length = int(self.attention_mask[index].sum(1).max())
        return self.each(lambda tensor: tensor[index][:, :length])

    def tiled(self, copies: int) -> Batch:
        """All rows so many times, one whole set after the other."""
        return self if copies == 1 else concatenate([self] * copies)

    def chunks(self, size: int) -> Iterator[Batch]:
        """Consecutive batches of at most `size` rows."""
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self.each(lambda tensor: tensor.to(device))


def as_batch(tensors: Mapping[str, Tensor]) -> Batch:
    """A batch from what Hugging Face's collators give; without labels every token is one.

    Raises:
        LoclinError: no input_ids.
    """
    if "input_ids" not in tensors:
        raise LoclinError(
            f"expected input_ids in a batch, found {', '.join(tensors) or 'nothing'}: tokenise it"
        )
    ids = tensors["input_ids"]
    mask = tensors.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    labels = tensors.get("labels")
    labels = torch.where(mask > 0, ids, IGNORED) if labels is None else labels
    return Batch(input_ids=ids, attention_mask=mask, labels=labels)


def collate(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Tokenise examples: each row is what the tokenizer makes of prompt and answer as one text
    (`tasks.tokens`).

    Raises:
        LoclinError: no examples, a prompt of no tokens before the answer, an answer of no tokens.
    """
    tokens = continuations(examples, tokenizer)
    prompts = [prompt for prompt, _ in tokens]
    answers = [after[e.answer] for e, (_, after) in zip(examples, tokens, strict=True)]
    _refuse_empty("a prompt", [e.prompt for e in examples], prompts)
    _refuse_empty("an answer", [e.answer for e in examples], answers)
    return padded([p + a for p, a in zip(prompts, answers, strict=True)], list(map(len, prompts)))


def prompts_batch(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Tokenise prompts alone, after the tokenizer's special tokens; no token has a label.

    Raises:
        LoclinError: no prompts, or a prompt of no tokens.
    """
    rows = text_tokens(prompts, tokenizer)
    _refuse_empty("a prompt", prompts, rows)
    return padded(rows, list(map(len, rows)))


def _refuse_empty(what: str, texts: Sequence[str], tokens: Sequence[list[int]]) -> None:
    for text, row in zip(texts, tokens, strict=True):
        if not row:
            raise LoclinError(f"expected {what} of at least one token, found {text!r}: fill it in")


def padded(rows: Sequence[list[int]], lengths: Sequence[int]) -> Batch:
    """Rows as long as the longest; no label on their prompts, of these lengths.

    Padded with token 0, which every embedding has (a padding token that was added to a tokenizer
    may lie outside); padded places are masked.
    """
    if not rows:
        raise LoclinError("expected at least one example, found none: give more data")
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    position = torch.arange(ids.shape[1])
    starts, ends = torch.tensor(lengths)[:, None], torch.tensor([len(r) for r in rows])[:, None]
    labels = torch.where((position >= starts) & (position < ends), ids, IGNORED)
    return Batch(input_ids=ids, attention_mask=(position < ends).long(), labels=labels)


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Stack batches into one as wide as the widest; the places added are masked."""
    width = max(b.input_ids.shape[1] for b in batches)

    def stacked(name: str, filling: int) -> Tensor:
        rows = [getattr(b, name) for b in batches]
        wide = [nn.functional.pad(r, (0, width - r.shape[1]), value=filling) for r in rows]
        return torch.cat(wide)

    return Batch(
        input_ids=stacked("input_ids", 0),
        attention_mask=stacked("attention_mask", 0),
        labels=stacked("labels", IGNORED),
    )


def answer_logits(
    model: nn.Module, batch: Batch
) -> tuple[Float[Tensor, "n predicted vocab"], Int[Tensor, "n predicted"]]:
    """Logits at the positions that predict an answer token in some row, and their labels.

    Other positions are left out before the output layer: they would be most of the memory.
    """
    predicting = (batch.labels[:, 1:] != IGNORED).any(0).nonzero().squeeze(1)
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
        logits_to_keep=predicting,
    ).logits
    return logits, batch.labels[:, predicting + 1]


def _token_losses(
    model: nn.Module, batch: Batch
) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, "n predicted"]]:
    """−log p of every answer token (nats, float32 or better), and where in the rows they stand."""
    logits, labels = answer_logits(model, batch)
    kept = labels != IGNORED
    chosen = logits[kept]
    precise = chosen.float() if chosen.dtype in (torch.float16, torch.bfloat16) else chosen
    return nn.functional.cross_entropy(precise, labels[kept], reduction="none"), kept


def answer_loss(
    model: nn.Module, batch: Batch | Mapping[str, Tensor]
) -> tuple[Float[Tensor, ""], int]:
    """−Σ log p(token | all before it) over the answer tokens (nats), and how many there are.

    A sum and a count rather than a mean: batches of different lengths then add up without bias.
    A dictionary of a Hugging Face data collator (input_ids, labels, attention_mask), n×length each,
    is a batch too; `LoclinError` where it has no input_ids.

    >>> import loclin
    >>> problem = loclin.load("sequences-small")
    >>> total, tokens = answer_loss(problem.model, problem.batch("test", "copy"))
    >>> tokens, bool(total / tokens < 0.1)  # 60 answers of four tokens; nats a token
    (240, True)
    """
    losses, kept = _token_losses(model, batch if isinstance(batch, Batch) else as_batch(batch))
    return losses.sum(), int(kept.sum())


def answer_log_probabilities(model: nn.Module, batch: Batch) -> Float[Tensor, " n"]:
    """Joint log-probability of each row's whole answer: Σ log p over its tokens (nats)."""
    losses, kept = _token_losses(model, batch)
    return losses.new_zeros(len(batch)).index_add(0, kept.nonzero()[:, 0], -losses)


def mean_answer_loss(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Mean negative log-likelihood per answer token, in nats."""
    total, count = answer_loss(model, batch)
    return total / count


def language_and_answer_loss(
    model: nn.Module, batch: Batch, *, language: float
) -> Float[Tensor, ""]:
    """Mean loss per answer token plus `language` times that per token of both, in nats."""
    every = torch.where(batch.attention_mask > 0, batch.input_ids, IGNORED)
    losses, kept = _token_losses(model, replace(batch, labels=every))
    answers = (batch.labels[:, 1:] != IGNORED)[kept]
    return losses[answers].mean() + language * losses.mean()


def vocabulary_size(model: nn.Module) -> int:
    """How many logits the model gives for a token."""
    config: Any = model.config
    return int(config.get_text_config().vocab_size)


def rows_at_once(model: nn.Module, batch: Batch) -> int:
    """Rows of one forward pass, whose logits at all answer positions may take 256 MB."""
    positions = max(int((batch.labels[:, 1:] != IGNORED).any(0).sum()), 1)
    return max(1, min(512, LOGITS_AT_ONCE // (positions * vocabulary_size(model))))


@torch.no_grad()
def exact_match(
    model: nn.Module, batch: Batch, *, batch_size: int | None = None
) -> Bool[Tensor, " n"]:
    """For every row, whether greedy decoding would give the whole answer.

    By teacher forcing in one pass: as long as every earlier token is right, the model sees what it
    would have decoded itself.
    """
    right = []
    for chunk in batch.chunks(batch_size or rows_at_once(model, batch)):
        logits, labels = answer_logits(model, chunk)
        right.append(((logits.argmax(-1) == labels) | (labels == IGNORED)).all(-1))
    return torch.cat(right)


def other_answers(examples: Sequence[Example]) -> tuple[list[Example], Int[Tensor, " m"]]:
    """Every other right answer (`Example.also`) as the answer of an example, and whose it is."""
    made = [(i, replace(e, answer=a, also=())) for i, e in enumerate(examples) for a in e.also]
    return [e for _, e in made], torch.tensor([i for i, _ in made], dtype=torch.long)


def either(
    right: Bool[Tensor, "*sets n"], others: Bool[Tensor, "*sets m"], owners: Int[Tensor, " m"]
) -> Bool[Tensor, "*sets n"]:
    """Whether an example's answer or one of its others is matched."""
    return right.int().index_add(-1, owners.to(right.device), others.int()) > 0
