"""The five disjoint parts of the examples, each as prompts with a token toward and a token away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.models.problem import Problem
from loclin.search.splits import askable, examples_hash, learned
from loclin.steering.asked import Asked, ask
from loclin.steering.config import PARTS, Config
from loclin.tasks.example import Example, dealt


@dataclass(frozen=True, eq=False, kw_only=True)
class Parts:
    """Examples by what they serve; no group and no prompt is in two.

    Attributes:
        labels: the vector from labels and the gradient of the logits are made from.
        gradient: the gradient, or the scores of a search.
        shift: what a step does to activations is read on.
        choose: picks the layer.
        test: measures the effect.
    """

    labels: Asked
    gradient: Asked
    shift: Asked
    choose: Asked
    test: Asked

    def hash(self) -> str:
        """A digest of all parts: the examples, word for word and in order."""
        return examples_hash([e for name in PARTS for e in getattr(self, name).examples])


def parted(problem: Problem, config: Config) -> Parts:
    """Divide the examples that a built-in model did not learn from; every part is asked in the same
    form.

    Args:
        problem: model, tokenizer and data.
        config: sizes of the parts, the task, the positive option, the seed.

    Raises:
        LoclinError: too few examples (the message says how many are needed), no such task, options
            that cannot be compared by one token, a part of one class, E3 or the class form without
            classes.
    """
    every = askable(problem.examples, task=config.task, without=learned(config.model, config.data))
    dealt_out = dealt(every, config.sizes, seed=config.seed, purpose="steering parts")
    # The form is a property of all the examples: a part that happens to hold one class is an error,
    # not another form.
    whole = ask(every, problem.tokenizer, positive=config.positive, device="cpu")
    tokenizer, device = problem.tokenizer, problem.model.device
    parts = {
        name: part_asked(name, dealt_out[name], tokenizer, whole.positive, device) for name in PARTS
    }
    found = Parts(**parts)
    if found.labels.labels is None:
        for name, value, refused in (
            ("form", config.form, "class"),
            ("estimand", config.estimand, "E3"),
        ):
            if value == refused:
                raise LoclinError(
                    f"expected examples with a positive option for --{name} {value}, found none "
                    "that all of them have: name it "
                    f"with --positive, or take another --{name}"
                )
    return found


def part_asked(
    name: str,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    positive: str | None,
    device: torch.device | str,
) -> Asked:
    """One part, asked in the form of all the data.

    Args:
        name: of the part, for the message.
        examples: of the part.
        tokenizer: the model's.
        positive: the option that counts as + in all the data; None where there is none.
        device: where the tokens go.

    Raises:
        LoclinError: the part cannot be asked so, or happens to hold one pair of options of several.
    """
    try:
        found = ask(examples, tokenizer, positive=positive, device=device)
    except LoclinError as error:
        raise LoclinError(f"in the {name} part: {error}") from error
    if (
        found.positive != positive
    ):  # examples of several pairs of options, of which this part happens to hold one
        raise LoclinError(
            f"in the {name} part: expected the options of all the data, found those with "
            f"{found.positive!r} alone: take one --task, or "
            "more examples"
        )
    return found


def group_numbers(groups: Sequence[str]) -> list[int]:
    """For every example the number of its group, in order of appearance.

    >>> group_numbers(["a", "a", "b", "a"])
    [0, 0, 1, 0]
    """
    place: Mapping[str, int] = {g: i for i, g in enumerate(dict.fromkeys(groups))}
    return [place[g] for g in groups]
