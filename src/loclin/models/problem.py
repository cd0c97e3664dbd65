"""A model together with what it is asked: the value that every study works with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.curvature import NoSecondDerivative
from loclin.errors import LoclinError
from loclin.tasks.batch import Batch, collate, either, exact_match, other_answers
from loclin.tasks.choices import Choices, choose, collate_choices, option_log_probabilities
from loclin.tasks.example import Example

CLEARLY = 0.1  # share of the way from answers without reading to perfect ones
DESTROYED = 0.05  # exact match below which a task counts as destroyed (measures §1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """A causal language model and its task data in disjoint splits.

    Attributes:
        model, tokenizer: the model in evaluation mode, with or without an adapter.
        examples: by split, then by task; no group (input sequence, passage, fact) is in two.
        notes: what was loaded and what was dropped, in sentences.

    >>> import loclin
    >>> problem = loclin.load("sequences-small")
    >>> problem.score("test", "copy") > problem.known_from("copy")
    True
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    examples: Mapping[str, Mapping[str, tuple[Example, ...]]]
    notes: tuple[str, ...] = ()
    _batches: dict[tuple[str, str], Batch] = field(default_factory=dict, init=False, repr=False)
    _choices: dict[tuple[str, str], Choices] = field(default_factory=dict, init=False, repr=False)

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters())
        kind = type(self.model).__name__
        parts = {name: sum(map(len, part.values())) for name, part in self.examples.items()}
        return f"Problem({kind} of {size} weights; {', '.join(self.tasks)}; examples {parts})"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in order."""
        return tuple(next(iter(self.examples.values())))

    def batch(self, name: str, task: str) -> Batch:
        """One task's examples of one split as tensors on the model's device, made once.

        Raises:
            LoclinError: a split or task that is not there.
        """
        self._check(name, task)
        if (name, task) not in self._batches:
            self._batches[name, task] = self.collate(self.examples[name][task])
        return self._batches[name, task]

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as tensors on the model's device."""
        return collate(examples, self.tokenizer).to(self.model.device)

    def has_options(self, task: str) -> bool:
        """Whether the task is to choose among options rather than to answer freely."""
        return all(e.options for part in self.examples.values() for e in part[task])

    def chance(self, task: str) -> float:
        """Score of a uniform guess, the mean of 1/options; 0 for free answers."""
        if not self.has_options(task):
            return 0.0
        shown = self.examples["test"][task]
        return sum(1 / len(e.options) for e in shown) / len(shown)

    def without_reading(self, task: str) -> float:
        """Best score without the question: of guessing, or of always the commonest answer."""
        answers = Counter(e.answer for e in self.examples["test"][task])
        return max(self.chance(task), max(answers.values()) / sum(answers.values()))

    def known_from(self, task: str) -> float:
        """Score from which a task counts as known: b + 0.1(1 − b), b = `without_reading`."""
        blind = self.without_reading(task)
        return blind + CLEARLY * (1 - blind)

    def only(self, tasks: Sequence[str]) -> Problem:
        """The same problem with some of its tasks."""
        examples = {n: {t: part[t] for t in tasks} for n, part in self.examples.items()}
        return replace(self, examples=examples)

    def destroyed_at(self, task: str) -> float:
        """Score up to which a task counts as destroyed: exact match of 0.05 (measures §1); with
        options what guessing gives, as a model that always gives the same one scores just that.
        """
        return max(DESTROYED, self.chance(task))

    def score(self, name: str, task: str) -> float:
        """Share of a split answered right: exact match of a right answer, or largest joint log p of
        the options. Errors as in `batch`.
        """
        self._check(name, task)
        if not self.has_options(task):
            right = exact_match(self.model, self.batch(name, task))
            others, owners = other_answers(self.examples[name][task])
            if others:
                right = either(right, exact_match(self.model, self.collate(others)), owners)
            return float(right.float().mean())
        if (name, task) not in self._choices:
            choices = collate_choices(self.examples[name][task], self.tokenizer)
            self._choices[name, task] = choices.to(self.model.device)
        return float(choose(self.model, self._choices[name, task]).float().mean())

    def _check(self, name: str, task: str) -> None:
        for what, wanted, there in (("split", name, self.examples), ("task", task, self.tasks)):
            if wanted not in there:
                raise LoclinError(
                    f"expected a {what} among {', '.join(there)}, found {wanted!r}: name one"
                )

    def one_answer(self, examples: Sequence[Example]) -> str:
        """A sentence where the model chooses the same option for all examples, whatever is right;
        "" elsewhere.
        """
        if len({e.answer for e in examples if e.options}) < 2:
            return ""
        some = [e for e in examples if e.options]
        with torch.no_grad():
            choices = collate_choices(some, self.tokenizer).to(self.model.device)
            places = option_log_probabilities(self.model, choices).argmax(1).tolist()
        answers = {e.options[place] for e, place in zip(some, places, strict=True)}
        if len(answers) > 1:
            return ""
        return f"the model answers {answers.pop()!r} to all {len(some)} examples"


@contextmanager
def twice_differentiable(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Eager attention and experts inside: fused kernels have no double backward (measures §8).

    Raises:
        NoSecondDerivative: attention that cannot be made eager.

    >>> import loclin
    >>> problem = loclin.load("sequences-small")
    >>> space, batch = loclin.ParameterSpace(problem.model), problem.batch("test", "copy")
    >>> loss = lambda b: loclin.answer_loss(problem.model, b)
    >>> with twice_differentiable(problem.model):
    ...     bend = loclin.CurvatureOperator(space, loss, [batch]) @ space.read()
    >>> bend.shape == (space.dimension,)
    True
    """
    core = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    before, experts = core.config._attn_implementation, core.get_experts_implementation()
    try:
        core.set_attn_implementation("eager")
    except (ValueError, ImportError) as error:
        raise _fused(before) from error
    if core.config._attn_implementation != "eager":  # transformers only warns
        raise _fused(before)
    core.set_experts_implementation("eager")
    try:
        yield
    finally:
        core.set_attn_implementation(before)
        core.set_experts_implementation(experts)


def _fused(attention: str) -> NoSecondDerivative:
    return NoSecondDerivative(
        "expected a model whose attention can be made eager for second derivatives, found "
        f"{attention!r} alone: choose finite differences"
    )
