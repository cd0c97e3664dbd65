"""Some examples, asked where the model stands: loss and right answers of each, from one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loclin.errors import LoclinError
from loclin.models.problem import Problem
from loclin.tasks.batch import (
    IGNORED,
    Batch,
    answer_logits,
    answer_loss,
    either,
    other_answers,
    rows_at_once,
)
from loclin.tasks.choices import Choices, collate_choices, largest, option_log_probabilities
from loclin.tasks.example import Example


@dataclass(frozen=True, eq=False, kw_only=True)
class EvalSet:
    """Examples in folds that share no group, asked where the model stands.

    Attributes:
        problem, batch: the model, and the examples with their right answers.
        choices: with all their options, where the task is to choose.
        options: the token of every option, where each is one token; −1 beyond them.
        folds, count: the fold of each example, and how many there are.
        at_once: rows in a pass that is differentiated.
        others: other right answers of the examples, each a row, and whose they are.

    >>> import loclin
    >>> problem = loclin.load("sequences-small")
    >>> some = EvalSet.of(problem, problem.examples["test"]["copy"], folds=3)
    >>> sums, counts = some.tallies()  # losses of three folds, then right answers
    >>> bool((sums[:3] / counts[:3]).max() < 0.1), counts[3:].tolist()
    (True, [20.0, 20.0, 20.0])
    """

    problem: Problem
    batch: Batch
    choices: Choices | None
    options: Int[Tensor, "n most"] | None
    folds: Int[np.ndarray, " n"]
    count: int
    at_once: int
    others: tuple[Batch, Int[Tensor, " m"]] | None = None

    def __repr__(self) -> str:
        return f"EvalSet({len(self.batch)} examples in {self.count} folds)"

    @staticmethod
    def of(
        problem: Problem, examples: Sequence[Example], *, folds: int = 1, at_once: int = 64
    ) -> EvalSet:
        """These examples; their groups are dealt out to the folds in turn.

        Raises:
            LoclinError: fewer groups than folds.
        """
        groups = {g: i for i, g in enumerate(dict.fromkeys(e.group or e.prompt for e in examples))}
        if len(groups) < folds:
            raise LoclinError(
                f"expected at least one group of examples for each of {folds} folds, found "
                f"{len(groups)}: give more data or lower --folds"
            )
        choices = None
        if all(e.options for e in examples):
            choices = collate_choices(examples, problem.tokenizer).to(problem.model.device)
        others, owners = other_answers(examples)
        return EvalSet(
            others=(problem.collate(others), owners) if others else None,
            problem=problem,
            batch=problem.collate(examples),
            choices=choices,
            options=None if choices is None else _single_tokens(choices),
            folds=np.array([groups[e.group or e.prompt] % folds for e in examples]),
            count=folds,
            at_once=at_once,
        )

    @property
    def tokens(self) -> Float[np.ndarray, " folds"]:
        """Answer tokens of each fold: what its mean loss is taken over."""
        per_row = (self.batch.labels[:, 1:] != IGNORED).sum(1).cpu().numpy()
        return np.bincount(self.folds, per_row, minlength=self.count)

    def tallies(self) -> tuple[Float[np.ndarray, " twice"], Float[np.ndarray, " twice"]]:
        """Summed loss (nats) of every fold, then right answers of every fold; and how many tokens,
        then examples, those are.

        Both from the same passes. The losses are summed in float64, whatever the model's dtype.
        """
        each = [values.double().cpu().numpy() for values in self.answers()]
        sums = [np.bincount(self.folds, values, minlength=self.count) for values in each]
        return np.concatenate(sums), np.concatenate(
            [self.tokens, np.bincount(self.folds, minlength=self.count)]
        )

    @property
    def size(self) -> int:
        """Tokens that the model is given in all, padding included."""
        whole = self.choices if self.options is None else None
        return (whole.batch if whole else self.batch).input_ids.numel()

    @torch.no_grad()
    def answers(
        self, copies: int = 1
    ) -> tuple[Float[Tensor, " n_times_copies"], Bool[Tensor, " n_times_copies"]]:
        """Of every example, the summed loss of its right answer (nats, in float64), and whether it
        is answered right.

        With `copies` every pass holds its rows that many times, one whole set after the other, for
        a model that reads each set in its own way (`search.stacked`); the answers come set by set.
        """
        whole = self.choices if self.options is None else None
        if self.others is None:
            return self._whole_options(whole, copies) if whole else self._answers(copies)
        batch, owners = self.others
        losses, right = replace(self, others=None).answers(copies)
        _, more = replace(self, batch=batch, others=None).answers(copies)
        return losses, either(right.view(copies, -1), more.view(copies, -1), owners).flatten()

    def fold(self, number: int) -> Iterator[Batch]:
        """The examples of one fold, in batches small enough to differentiate."""
        chosen = torch.from_numpy(np.flatnonzero(self.folds == number)).to(
            self.batch.input_ids.device
        )
        return self.batch.rows(chosen).chunks(self.at_once)

    def loss(self, batch: Batch) -> tuple[Float[Tensor, ""], int]:
        """Summed loss (nats) of a batch and its answer tokens, for `ParameterSpace.gradient` and
        Hessian products.
        """
        return answer_loss(self.problem.model, batch)

    def _whole_options(self, choices: Choices, copies: int) -> tuple[Tensor, Tensor]:
        scores = option_log_probabilities(self.problem.model, choices, copies=copies)
        gold = choices.gold.repeat(copies)[:, None]
        return -scores.gather(1, gold)[:, 0].double(), largest(scores, gold)

    def _answers(self, copies: int) -> tuple[Tensor, Tensor]:
        model, losses, right = self.problem.model, [], []
        at_once = max(1, rows_at_once(model, self.batch) // copies)
        for rows in torch.arange(len(self.batch)).split(at_once):
            chunk = self.batch.rows(rows.to(self.batch.input_ids.device)).tiled(copies)
            logits, labels = answer_logits(model, chunk)
            kept = labels != IGNORED
            chosen, wanted = logits[kept].double(), labels[kept]
            tokens = torch.nn.functional.cross_entropy(chosen, wanted, reduction="none")
            sums = tokens.new_zeros(len(chunk)).index_add(0, kept.nonzero()[:, 0], tokens)
            if self.options is None:
                correct = ((logits.argmax(-1) == labels) | ~kept).all(-1)
            else:  # every row has one answer token: `chosen` is one row of logits for each
                shown = self.options[rows.to(self.options.device)].repeat(copies, 1)
                scores = chosen.gather(1, shown.clamp(min=0)).masked_fill(shown < 0, -torch.inf)
                gold = (shown == wanted[:, None]).int().argmax(1, keepdim=True)
                correct = largest(scores, gold)
            losses.append(sums.view(copies, -1))
            right.append(correct.view(copies, -1))
        return torch.cat(losses, dim=1).flatten(), torch.cat(right, dim=1).flatten()


def _single_tokens(choices: Choices) -> Int[Tensor, "n most"] | None:
    """The token of every option, or None where one has several."""
    kept = choices.batch.labels != IGNORED
    if not (kept.sum(1) == 1).all():
        return None
    tokens = choices.batch.labels[kept].split(choices.counts.tolist())
    return torch.nn.utils.rnn.pad_sequence(list(tokens), batch_first=True, padding_value=-1)
