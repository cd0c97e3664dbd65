"""The five disjoint parts of the examples, each as prompts with a token toward and a token away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.models.problem import Problem
from loclin.search.splits import askable, examples_hash, learned
from loclin.steering.prompts import PromptSet, prompt_set
from loclin.studies.steering.names import PARTS
from loclin.studies.steering.settings import SteerSettings
from loclin.tasks.example import Example, dealt


@dataclass(frozen=True, eq=False, kw_only=True)
class Splits:
    """Examples by what they serve; no group and no prompt is in two.

    Attributes:
        labels: make the vector from labels and the gradient of the logits.
        gradient: make the gradient, or the scores of a search.
        shift: show what a step does to activations.
        choose: pick the layer.
        test: measure the effect.
    """

    labels: PromptSet
    gradient: PromptSet
    shift: PromptSet
    choose: PromptSet
    test: PromptSet

    def hash(self) -> str:
        """A digest of all parts: the examples, word for word and in order."""
        return examples_hash([e for name in PARTS for e in getattr(self, name).examples])


def split_examples(problem: Problem, settings: SteerSettings) -> Splits:
    """Divide the examples that a built-in model did not learn from.

    Every part has the form of all the examples: one that happens to hold one class is an error, not
    another form.

    Raises:
        LoclinError: too few examples (the message says how many are needed), no such task, options
            that cannot be compared by one token, a part of one class, E3 or the class form without
            classes.
    """
    without = learned(settings.model, settings.data)
    every = askable(problem.examples, task=settings.task, without=without)
    dealt_out = dealt(every, settings.sizes, seed=settings.seed, purpose="steering parts")
    tokenizer, device = problem.tokenizer, problem.model.device
    positive = prompt_set(every, tokenizer, positive=settings.positive, device="cpu").positive
    found = Splits(
        **{n: split_prompts(n, dealt_out[n], tokenizer, positive, device) for n in PARTS}
    )
    for name, refused in (("form", "class"), ("estimand", "E3")):
        if found.labels.labels is None and getattr(settings, name) == refused:
            raise LoclinError(
                f"expected examples with a positive option for --{name} {refused}, found none that "
                f"all of them have: name it with --positive, or take another --{name}"
            )
    return found


def split_prompts(
    name: str,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    positive: str | None,
    device: torch.device | str,
) -> PromptSet:
    """One part, by its name, with the positive option of all the data (None: the paired form).

    Raises:
        LoclinError: the part cannot be asked so, or happens to hold one pair of options of several.
    """
    try:
        found = prompt_set(examples, tokenizer, positive=positive, device=device)
    except LoclinError as error:
        raise LoclinError(f"in the {name} part: {error}") from error
    if found.positive != positive:
        raise LoclinError(
            f"in the {name} part: expected the options of all the data, found those with "
            f"{found.positive!r} alone: take one --task, or more examples"
        )
    return found
