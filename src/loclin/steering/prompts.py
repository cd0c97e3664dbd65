"""Prompts with the two tokens that are compared after each: what every direction and every steering
effect is read from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.activations.blocks import bare, tokens_at_once
from loclin.errors import LoclinError
from loclin.geometry.gramian import at_least_float32
from loclin.models.pretrained import context_of
from loclin.steering.estimands import Form
from loclin.tasks.batch import IGNORED, LOGITS_AT_ONCE, Batch, padded, vocabulary_size
from loclin.tasks.example import Example, split
from loclin.tasks.tokens import continuations

Index = Int[np.ndarray, " m"] | Bool[np.ndarray, " n"] | Int[Tensor, " m"] | Sequence[int] | slice
YES = " yes"  # the positive option where nobody names one
#: Tokens of one pass that keeps what a backward pass needs, at most.
GRADED_AT_ONCE = 1 << 11


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptSet:
    """n prompts and, for each, the two tokens whose logits are compared after it.

    Attributes:
        batch: the prompts alone, right padded; every label `IGNORED`.
        toward, away: the tokens that count as + and as −.
        labels: class form: whether the right answer is the positive one. None in the paired form.
        gold: the right one of the two tokens.
        groups: what no two splits share, for each example.
        form: "class": all examples have the same two options, and toward is the positive one;
            "paired": toward is the right answer of each example.
        positive: the positive option, in the class form.
    """

    batch: Batch
    toward: Int[Tensor, " n"]
    away: Int[Tensor, " n"]
    labels: Bool[np.ndarray, " n"] | None
    gold: Int[Tensor, " n"]
    groups: tuple[str, ...]
    examples: tuple[Example, ...]
    form: Literal["class", "paired"]
    positive: str | None

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Every token that is compared."""
        return tuple(sorted({*self.toward.tolist(), *self.away.tolist()}))

    def rows(self, index: Index) -> PromptSet:
        """The chosen prompts, in the order of the index, cut to the longest of them.

        Raises:
            LoclinError: an index that chooses nothing.
        """
        chosen = np.arange(len(self))[index.cpu().numpy() if isinstance(index, Tensor) else index]
        if not len(chosen):
            raise LoclinError(
                f"expected at least one of {len(self)} prompts, found an index that chooses none: "
                "change it"
            )
        places = torch.from_numpy(chosen).to(self.toward.device)
        return replace(
            self,
            batch=self.batch.rows(places),
            toward=self.toward[places],
            away=self.away[places],
            labels=None if self.labels is None else self.labels[chosen],
            gold=self.gold[places],
            groups=tuple(self.groups[i] for i in chosen),
            examples=tuple(self.examples[i] for i in chosen),
        )

    def to(self, device: torch.device | str) -> PromptSet:
        """The same prompts on another device."""
        moved = {n: getattr(self, n).to(device) for n in ("batch", "toward", "away", "gold")}
        return replace(self, **moved)

    def answered(self, tokens: Int[Tensor, " n"]) -> Batch:
        """Each prompt with one token after it, and that token as its label: `answer_loss` then
        gives −log p(token | prompt).
        """
        one = torch.ones_like(self.batch.input_ids[:, :1])
        ends = self.batch.attention_mask.sum(1, keepdim=True)
        token = tokens[:, None].to(self.batch.input_ids)

        def longer(rows: Tensor, filling: int, placed: Tensor) -> Tensor:
            return torch.cat([rows, filling * one], dim=1).scatter(1, ends, placed)

        return Batch(
            input_ids=longer(self.batch.input_ids, 0, token),
            attention_mask=longer(self.batch.attention_mask, 0, one),
            labels=longer(self.batch.labels, IGNORED, token),
        )


def prompt_set(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    positive: str | None = None,
    device: torch.device | str,
) -> PromptSet:
    """Examples of two options as prompts with a token toward and a token away.

    Tokens that both options begin with (" (" of " (A)" and " (B)") go to the end of the prompt; the
    next one must differ, and what follows it must be the same in both.

    Args:
        examples: each with two options, its answer one of them.
        tokenizer: of the model.
        positive: the option that counts as +. By default " yes", or "yes" (after a line break, in a
            chat), where every example has it; without one the right answer does, the paired form.
        device: of the model.

    Raises:
        LoclinError: no examples; other than two options; an answer, or a positive option, that is
            none of them; several pairs of options in the class form; options that do not differ in
            one token; one class alone; a prompt of no tokens.
    """
    _two_options(examples)
    usual = (yes for yes in (YES, YES.strip()) if all(yes in e.options for e in examples))
    named = positive or next(usual, None)
    if named is not None and positive is None and len({frozenset(e.options) for e in examples}) > 1:
        named = None
    if named is not None:
        _one_pair(examples, named)
    plus = [named if named is not None else e.answer for e in examples]
    minus = [e.options[1 - e.options.index(p)] for e, p in zip(examples, plus, strict=True)]
    rows, toward, away = [], [], []
    tokens = continuations(examples, tokenizer)
    for (prompt, after), p, m in zip(tokens, plus, minus, strict=True):
        k = _shared(after, p, m)
        rows.append(prompt + after[p][:k])
        toward.append(after[p][k])
        away.append(after[m][k])
    if not all(rows):
        raise LoclinError("expected prompts of at least one token, found an empty one: fill it in")
    right = np.array([e.answer == p for e, p in zip(examples, plus, strict=True)])
    if named is not None and right.all() | ~right.any():
        raise LoclinError(
            f"expected examples of both classes, found {len(examples)} whose answer is "
            f"{'always' if right.all() else 'never'} {named!r}: give examples of the other one too"
        )
    return PromptSet(
        batch=padded(rows, list(map(len, rows))),
        toward=torch.tensor(toward),
        away=torch.tensor(away),
        labels=None if named is None else right,
        gold=torch.where(torch.from_numpy(right), torch.tensor(toward), torch.tensor(away)),
        groups=tuple(e.group or e.prompt for e in examples),
        examples=tuple(examples),
        form="paired" if named is None else "class",
        positive=named,
    ).to(device)


def prompts_within(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | PeftModel,
    *,
    positive: str | None,
    form: Form = "auto",
) -> PromptSet:
    """The examples as prompts within the model's context.

    Raises:
        LoclinError: as `prompt_set`, or one is longer.
    """
    prompts = prompt_set(examples, tokenizer, positive=positive, device=model.device)
    # the paired form reads the answer's token too
    longest = prompts.batch.input_ids.shape[1] + (prompts.labels is None or form == "paired")
    context = context_of(cast(PreTrainedModel, model))
    if context is not None and longest > context:
        raise LoclinError(
            f"expected prompts within the model's context of {context} tokens, found one of "
            f"{longest}: shorten it or leave it out"
        )
    return prompts


def prompt_halves(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | PeftModel,
    *,
    positive: str | None,
    seed: int,
) -> tuple[PromptSet, PromptSet]:
    """Two halves of the examples, both in the form of all of them; no group is in both.

    Raises:
        LoclinError: as `prompts_within`, or all the examples are one group.
    """
    whole = prompts_within(examples, tokenizer, model, positive=positive)
    parts = split(examples, {"step": 0.5, "read": 0.5}, seed=seed)
    place = {id(e): i for i, e in enumerate(examples)}
    step, read = (whole.rows([place[id(e)] for e in parts[n]]) for n in ("step", "read"))
    return step, read


def group_numbers(groups: Sequence[str]) -> list[int]:
    """For every example the number of its group, in order of appearance.

    >>> group_numbers(["a", "a", "b", "a"])
    [0, 0, 1, 0]
    """
    place = {g: i for i, g in enumerate(dict.fromkeys(groups))}
    return [place[g] for g in groups]


def pieces(model: nn.Module, batch: Batch) -> Iterator[Int[Tensor, " m"]]:
    """Rows of like length together: at most `GRADED_AT_ONCE` tokens, or fewer where these would
    take more than the weights (`tokens_at_once`), and logits after each within 256 MB.

    A single row always passes.
    """
    lengths = batch.attention_mask.sum(1).tolist()
    tokens, most = tokens_at_once(model, GRADED_AT_ONCE), LOGITS_AT_ONCE // vocabulary_size(model)
    piece: list[int] = []
    for row in sorted(range(len(batch)), key=lambda row: lengths[row]):
        size = len(piece) + 1
        if piece and (size > most or size * lengths[row] > tokens):
            yield torch.tensor(piece)
            piece = []
        piece.append(row)
    yield torch.tensor(piece)


def next_logits(model: nn.Module, batch: Batch) -> Float[Tensor, "n vocab"]:
    """Logits after the last real token of each right-padded row, in one pass, float32 or better;
    the output layer is run at that token alone.
    """
    last = batch.attention_mask.sum(1) - 1
    places, which = last.unique(return_inverse=True)
    row = torch.arange(len(batch), device=last.device)
    with ExitStack() as stack:
        head = getattr(bare(model), "get_output_embeddings", lambda: None)()
        if head is not None and len(places) > 1:

            def one(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                h = inputs[0]
                return (h[row.to(h.device), which.to(h.device)][:, None], *inputs[1:])

            stack.callback(head.register_forward_pre_hook(one).remove)
        logits = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            use_cache=False,
            logits_to_keep=places,
        ).logits
    if logits.shape[1] == 1:
        return at_least_float32(logits[:, 0])
    return at_least_float32(logits[row.to(logits.device), which.to(logits.device)])


def _two_options(examples: Sequence[Example]) -> None:
    if not examples:
        raise LoclinError("expected at least one example, found none: give more data")
    for e in examples:
        if len(set(e.options)) != 2 or len(e.options) != 2:
            raise LoclinError(
                f"expected examples of two options, found {len(set(e.options))} for the answer "
                f"{e.answer!r}: steering compares two; give records options, or --fields label=..."
            )
        if e.answer not in e.options:
            raise LoclinError(
                f"expected the answer among the options {e.options}, found {e.answer!r}: add it "
                "there"
            )


def _one_pair(examples: Sequence[Example], positive: str) -> None:
    pairs = {frozenset(e.options): e.options for e in examples}
    for pair in pairs.values():
        if positive not in pair:
            raise LoclinError(
                f"expected the positive option {positive!r} in every example, found the options "
                f"{pair}: name another one"
            )
    if len(pairs) > 1:
        found = " and ".join(map(str, sorted(pairs.values())[:2]))
        raise LoclinError(
            f"expected the same two options in every example, found {found}: name no positive one"
        )


def _shared(tokens: Mapping[str, list[int]], one: str, other: str) -> int:
    """How many tokens two options begin with alike; they must differ in the next one alone."""
    a, b = tokens[one], tokens[other]
    k = next((i for i, (s, t) in enumerate(zip(a, b, strict=False)) if s != t), min(len(a), len(b)))
    if min(len(a), len(b)) <= k or a[k + 1 :] != b[k + 1 :]:
        raise LoclinError(
            f"expected options that differ in one token, found {one!r} and {other!r} with the "
            f"tokens {a} and {b}: reword them"
        )
    return k
