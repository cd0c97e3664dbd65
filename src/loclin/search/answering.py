"""What a model answers where it stands, in words, for votes: the greedy answer, or draws at a
temperature (measures §11).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loclin.models.problem import Problem
from loclin.seeds import derived
from loclin.tasks.batch import IGNORED, Batch, answer_logits, rows_at_once
from loclin.tasks.choices import collate_choices, option_log_probabilities
from loclin.tasks.example import Example

#: From the scores of n rows (log-probabilities up to a constant of each), one column of each row.
Pick = Callable[[Float[Tensor, "n m"]], Int[Tensor, " n"]]


@torch.no_grad()
def answers(problem: Problem, examples: Sequence[Example]) -> list[str]:
    """The option of the largest joint log-probability, or greedy decoding; "" where the model gives
    none (nothing but special tokens, or scores that are no numbers).

    Free answers are decoded to as many tokens as the right answer has, which is what exact match
    asks; up to a token that ends the text. A right one is given back as the example spells it, its
    first spelling where there are several.

    Raises:
        LoclinError: no examples.
    """
    return _answers(problem, examples, [lambda scores: scores.argmax(1)])[0]


@torch.no_grad()
def sampled(
    problem: Problem, examples: Sequence[Example], count: int, *, temperature: float, seed: int
) -> list[list[str]]:
    """`count` draws from softmax(log p / T) for each example, as `answers` gives them: of the
    options, or token by token to the length of the right answer.

    The control of a vote at equal forward passes. Draws repeat with the seed, for the same examples
    in the same order.

    Raises:
        LoclinError: no examples.
    """
    generators = [torch.Generator().manual_seed(derived(seed, "sample", i)) for i in range(count)]
    picks = [partial(_draw, temperature=temperature, generator=g) for g in generators]
    return _answers(problem, examples, picks)


def _draw(
    scores: Float[Tensor, "n m"], *, temperature: float, generator: torch.Generator
) -> Int[Tensor, " n"]:
    """One draw for every row, by Gumbel's noise in float64: argmax(log p / T + G) is a draw from
    softmax(log p / T).
    """
    noise = -torch.empty(scores.shape, dtype=torch.float64).exponential_(generator=generator).log()
    return (scores.cpu().double() / temperature + noise).argmax(1)


def _answers(
    problem: Problem, examples: Sequence[Example], picks: Sequence[Pick]
) -> list[list[str]]:
    """An answer to every example, by each way to pick."""
    if examples and all(e.options for e in examples):
        choices = collate_choices(examples, problem.tokenizer).to(problem.model.device)
        scores = option_log_probabilities(problem.model, choices)
        broken = scores.isnan().any(1).tolist()
        chosen = [pick(scores.nan_to_num(-torch.inf)).tolist() for pick in picks]
        return [
            ["" if b else e.options[o] for e, b, o in zip(examples, broken, row, strict=True)]
            for row in chosen
        ]
    batch = problem.collate(examples)
    return [_texts(problem, examples, batch, pick) for pick in picks]


def _texts(problem: Problem, examples: Sequence[Example], batch: Batch, pick: Pick) -> list[str]:
    decoded: list[list[int]] = []
    for chunk in batch.chunks(rows_at_once(problem.model, batch)):
        decoded += _decoded(problem, chunk, pick)
    wanted = [row[row != IGNORED].tolist() for row in batch.labels.cpu()]
    made = []
    for e, tokens, right in zip(examples, decoded, wanted, strict=True):
        text = _text(problem, tokens)
        other = text.strip() in {a.strip() for a in e.also}
        made.append(e.answer if tokens == right or other else text)
    return made


def _decoded(problem: Problem, batch: Batch, pick: Pick) -> list[list[int]]:
    """Token by token over the places of the right answers; what stands after a place cannot reach
    it. Nothing for broken logits.
    """
    ids, kept = batch.input_ids.clone(), batch.labels != IGNORED
    starts, lengths = kept.int().argmax(1), kept.sum(1)
    broken = torch.zeros_like(lengths, dtype=torch.bool)
    for t in range(int(lengths.max())):
        rows = (lengths > t).nonzero()[:, 0]
        places = starts[rows] + t
        only = torch.full_like(batch.labels[rows], IGNORED).scatter(1, places[:, None], 0)
        step = Batch(input_ids=ids[rows], attention_mask=batch.attention_mask[rows], labels=only)
        logits, labels = answer_logits(problem.model, step)
        here = logits[labels != IGNORED]
        broken[rows] |= here.isnan().any(1)
        ids[rows, places] = pick(here.nan_to_num(-torch.inf)).to(ids.device)
    return [
        [] if b else row[k].tolist() for row, k, b in zip(ids, kept, broken.tolist(), strict=True)
    ]


def _text(problem: Problem, tokens: list[int]) -> str:
    end = problem.tokenizer.eos_token_id
    if end in tokens:
        tokens = tokens[: tokens.index(end)]
    return str(problem.tokenizer.decode(tokens, skip_special_tokens=True))
