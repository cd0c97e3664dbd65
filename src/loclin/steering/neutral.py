"""Damage: how far a change moves a model's next tokens on text that has nothing to do with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from loclin.activations.blocks import width
from loclin.errors import LoclinError
from loclin.seeds import derived
from loclin.steering.effect import Adding, Change, Dose, as_it_is, differences, under
from loclin.steering.prompts import PromptSet
from loclin.tasks.batch import (
    IGNORED,
    Batch,
    answer_logits,
    prompts_batch,
    rows_at_once,
    vocabulary_size,
)
from loclin.tasks.samples import self_examples
from loclin.tasks.tokens import text_tokens

DOUBLINGS = 20  # of a strength, before it is held to do nothing: a million times
DUE = 0.5  # of the probability: an answer is due where the answers have more
PRECISION = 1.01  # ratio between which strengths an answer lies


@dataclass(frozen=True, eq=False, kw_only=True)
class Neutral:
    """Plain text to see damage on.

    Attributes:
        batch: one passage a row; every token is a label.
        answers: tokens of the answers that are steered. Where the model as it is gives them more
            than half of the probability, an answer is due: moving it there is the effect, and
            counts as no damage.
        source: where the text comes from, in words.
        notes: remarks on what was taken.
    """

    batch: Batch
    answers: tuple[int, ...]
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Damage:
    """What a change does to the next tokens of neutral text.

    Attributes:
        kl: of every row, the mean of KL(p ‖ p′) in nats over its positions but those where an
            answer is due (`Neutral.answers`; 0 where no other is left), p the distribution of the
            next token before and p′ after the change.
        perplexity: exp of the mean negative log-likelihood per token of the text, after the change.
        perplexity_before: the same of the model as it is.
    """

    kl: Float[np.ndarray, " n"]
    perplexity: float
    perplexity_before: float


def neutral_text(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    file: Path | None,
    count: int,
    tokens: int,
    seed: int,
    answers: Sequence[int] = (),
) -> Neutral:
    """`count` passages of a file of plain text, one a line, cut to so many tokens or to the model's
    context.

    Without a file, what the model says by itself (`self_examples`), which may be fewer, with a
    note. `answers` are the tokens of the answers that are steered, see `Neutral`.

    Raises:
        LoclinError: a count below 1 or tokens below 2, a file that cannot be read or holds too few
            passages of two tokens or more, what `self_examples` refuses.
    """
    if count < 1 or tokens < 2:
        raise LoclinError(
            f"expected at least 1 passage of at least 2 tokens, found {count} of {tokens}: ask for "
            "more neutral text"
        )
    device, answers = next(model.parameters()).device, tuple(answers)
    config: Any = model.config
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if file is not None:
        longest = tokens if context is None else min(tokens, context)
        read = _passages(file, tokenizer, count=count, tokens=longest, seed=seed)
        return Neutral(batch=read.to(device), answers=answers, source=file.name)
    # one token more is said than is asked for, and there may be one of beginning
    special = max(tokenizer.num_special_tokens_to_add(), int(tokenizer.bos_token_id is not None))
    longest = tokens if context is None else min(tokens, context - 1 - special)
    seed = derived(seed, "neutral")
    data = self_examples(model, tokenizer, count, prompt_tokens=longest, answer_tokens=1, seed=seed)
    batch = _text_batch([e.prompt for e in data.examples["self"]], tokenizer).to(device)
    return Neutral(batch=batch, answers=answers, source=data.source, notes=data.notes)


def _passages(
    file: Path, tokenizer: PreTrainedTokenizerBase, *, count: int, tokens: int, seed: int
) -> Batch:
    if not file.is_file():
        raise LoclinError(f"expected a file of plain text, found none at {file}: check the path")
    try:
        lines = [s.strip() for s in file.read_text(encoding="utf-8-sig").split("\n") if s.strip()]
    except (UnicodeDecodeError, OSError) as error:
        raise LoclinError(
            f"expected UTF-8 text, found {type(error).__name__} in {file}: save it as plain text "
            "in UTF-8"
        ) from None
    rows = text_tokens(lines, tokenizer)
    long_enough = [line for line, row in zip(lines, rows, strict=True) if len(row) > 1]
    if len(long_enough) < count:
        raise LoclinError(
            f"expected at least {count} passages of 2 tokens or more, one a line, found "
            f"{len(long_enough)} in {file}: add lines, or ask for fewer"
        )
    drawn = sorted(range(len(long_enough)), key=lambda i: derived(seed, "neutral", i))[:count]
    return _text_batch([long_enough[i] for i in sorted(drawn)], tokenizer, tokens)


def _text_batch(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, tokens: int | None = None
) -> Batch:
    """Passages as rows, cut after so many tokens, every token of them a label."""
    whole = prompts_batch(texts, tokenizer)
    ids, mask = whole.input_ids[:, :tokens], whole.attention_mask[:, :tokens]
    return Batch(input_ids=ids, attention_mask=mask, labels=torch.where(mask > 0, ids, IGNORED))


@torch.no_grad()
def damages(model: nn.Module, neutral: Neutral, doses: Sequence[Dose]) -> list[Damage]:
    """KL(p ‖ p′) and perplexity of the next tokens of neutral text under every change (measures
    §13).

    Args:
        model: in evaluation mode, as it is outside the changes.
        neutral: the text. Its rows go through the model in chunks (`_chunks`).
        doses: the changes, each with its strength.
    """
    kl: list[list[np.ndarray]] = [[] for _ in doses]
    losses, before_them, tokens = np.zeros(len(doses)), 0.0, 0
    for chunk in _chunks(model, neutral):
        read = partial(_next_tokens, model, chunk)
        before, known = as_it_is(read, [change for change, _ in doses])
        before_them += before.loss
        tokens += int(before.kept.sum())
        for i, dose in enumerate(doses):
            after = under(read, dose, known)
            kl[i].append(_divergence(before, after, neutral.answers))
            losses[i] += after.loss
    return [
        Damage(
            kl=np.concatenate(each),
            perplexity=_exp(float(loss) / tokens),
            perplexity_before=_exp(before_them / tokens),
        )
        for each, loss in zip(kl, losses, strict=True)
    ]


class _NextTokens(NamedTuple):
    log_p: Float[Tensor, "n positions vocab"]
    kept: Bool[Tensor, "n positions"]  # where the rows have tokens at all
    loss: float  # −Σ log p of those that are there


def _next_tokens(model: nn.Module, chunk: Batch) -> _NextTokens:
    logits, labels = answer_logits(model, chunk)
    kept = labels != IGNORED
    half = logits.dtype in (torch.float16, torch.bfloat16)
    log_p = (logits.float() if half else logits).log_softmax(-1)
    chosen = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return _NextTokens(log_p=log_p, kept=kept, loss=-float(chosen[kept].sum()))


def _divergence(
    before: _NextTokens, after: _NextTokens, answers: Sequence[int]
) -> Float[np.ndarray, " n"]:
    """Mean over the positions of every row of Σ p (log p − log p′); what p rules out adds none."""
    p = before.log_p.exp()
    each = (before.log_p - after.log_p).mul_(p).masked_fill_(~(p > 0), 0.0).sum(-1)
    counted = before.kept & (p[..., list(answers)].sum(-1) <= DUE)
    means = torch.where(counted, each, 0.0).sum(1) / counted.sum(1).clamp(min=1)
    return means.clamp(min=0).cpu().numpy().astype(float)  # round-off alone brings it below


def _chunks(model: nn.Module, neutral: Neutral) -> list[Batch]:
    """Logits of a chunk are as many numbers as a sixteenth of the weights, or eight million: a
    comparison holds some six of them.
    """
    most = max(1 << 23, sum(p.numel() for p in model.parameters()) // 16)
    rows = most // (neutral.batch.input_ids.shape[1] * vocabulary_size(model))
    return list(neutral.batch.chunks(max(1, min(rows, rows_at_once(model, neutral.batch) // 2))))


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def at_equal_damage(
    model: nn.Module, prompts: PromptSet, neutral: Neutral, change: Change, target: float
) -> tuple[float, Float[np.ndarray, " n"]] | None:
    """The strength of a change at which the damage reaches a target, and what it adds to the logit
    difference of every prompt there; None where it never does. Arguments as of `strength_at_kl`.
    """
    strength = strength_at_kl(model, neutral, change, target)
    if strength is None:
        return None
    before, after = differences(model, prompts, [(change, strength)])
    return strength, after - before


@torch.no_grad()
def strength_at_kl(
    model: nn.Module, neutral: Neutral, change: Change, target: float, *, smallest: float = 2**-6
) -> float | None:
    """The strength > 0 of a change at which the mean KL on neutral text first reaches a target.

    Doubled from the smallest strength until the target is reached (halved first, where that is
    beyond it already), then bisected on the logarithm until two strengths in the ratio 1.01 have it
    between them. KL need not grow with the strength beyond there.

    Args:
        model, neutral: in evaluation mode, untouched afterwards; the text.
        change: a vector that is added (`adding`), a weight step, ...
        target: mean over rows of `Damage.kl`, in nats.
        smallest: strength to begin with.

    Returns:
        None where 2²⁰ times the smallest strength does not reach the target or 2⁻²⁰ times still
        passes it, or where KL stops being a number first.

    Raises:
        LoclinError: a target or smallest strength that is not positive and finite.
    """
    for name, value in {"KL": target, "smallest strength": smallest}.items():
        if not (math.isfinite(value) and value > 0):
            raise LoclinError(f"expected a positive, finite {name}, found {value}: change it")
    reads = [partial(_next_tokens, model, chunk) for chunk in _chunks(model, neutral)]
    # where all of it is small, the model as it is is kept; else begun again at its last block
    at_end: Change = nullcontext
    if isinstance(change, Adding):
        at_end = replace(change, vectors={-1: torch.zeros(width(model))})
    known = []
    for read in reads:
        before, start = as_it_is(read, [change, at_end])
        known.append(start)
    kept = before if len(reads) == 1 else None

    def kl(strength: float) -> float:
        rows = []
        for read, start in zip(reads, known, strict=True):
            plain = under(read, (at_end, 0.0), start) if kept is None else kept
            after = under(read, (change, strength), start)
            rows.append(_divergence(plain, after, neutral.answers))
        return float(np.concatenate(rows).mean())

    bracket = _bracket(kl, target, smallest)
    if bracket is None:
        return None
    low, high = bracket
    while high > low * PRECISION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if kl(middle) < target else (low, middle)
    return math.sqrt(low * high) if math.isfinite(kl(high)) else None


def _bracket(
    kl: Callable[[float], float], target: float, smallest: float
) -> tuple[float, float] | None:
    """Two strengths in the ratio 2: the first below the target, the second not (or no number)."""
    strength = smallest
    below = kl(strength) < target
    for _ in range(DOUBLINGS):
        strength = strength * 2 if below else strength / 2
        if (kl(strength) < target) != below:
            return (strength / 2, strength) if below else (strength, strength * 2)
    return None
