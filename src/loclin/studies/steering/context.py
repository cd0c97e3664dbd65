"""What every step works with: the model as it is, and disjoint parts of the examples, each as
prompts with a token toward and a token away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.activations.blocks import blocks
from loclin.errors import LoclinError
from loclin.models.problem import Problem
from loclin.progress import ProgressCallback
from loclin.search.splits import askable, examples_hash, learned
from loclin.steering.neutral import Neutral, neutral_text
from loclin.steering.prompts import PromptSet, prompt_set
from loclin.studies.steering.names import PARTS
from loclin.studies.steering.settings import SteeringSettings, SteerSettings
from loclin.tasks.example import Example, dealt

S = TypeVar("S", bound=SteeringSettings)
Parts = Mapping[str, PromptSet]


@dataclass(frozen=True, eq=False, kw_only=True)
class SteeringContext(Generic[S]):
    """What every step needs.

    Attributes:
        parts: examples by what they serve (`PARTS`); no group and no prompt is in two.
        layers: all blocks.
    """

    settings: S
    problem: Problem
    parts: Parts
    layers: tuple[int, ...]
    progress: ProgressCallback

    @property
    def model(self) -> PreTrainedModel | PeftModel:
        """The model, in evaluation mode."""
        return self.problem.model

    @property
    def at(self) -> dict[str, Any]:
        """Which blocks are read, and where they are."""
        return {"layers": self.layers, "path": self.settings.layers_path}

    def stage(self, text: str) -> Callable[[float], None]:
        """A stage begins; what shows the share of it that is done."""
        self.progress(text, 0.0)
        return partial(self.progress, text)


def every_layer(problem: Problem, settings: SteeringSettings) -> tuple[int, ...]:
    """The numbers of all blocks."""
    return tuple(range(len(blocks(problem.model, settings.layers_path))))


def unlearned(problem: Problem, settings: SteeringSettings, task: str | None) -> list[Example]:
    """The examples, of one task or all, that a built-in model was not trained or chosen on."""
    without = learned(settings.model, settings.data)
    return askable(problem.examples, task=task, without=without)


def split_examples(problem: Problem, settings: SteerSettings) -> Parts:
    """The parts of `loclin steer`, in the form of all the examples.

    Raises:
        LoclinError: too few examples (the message says how many are needed), no such task, options
            that cannot be compared by one token, a part of one class, E3 or the class form without
            classes.
    """
    every = unlearned(problem, settings, settings.task)
    purpose = "steering parts"
    dealt_out = dealt(
        every, settings.sizes, seed=settings.seed, purpose=purpose, spread=bool(settings.data)
    )
    parts = prompted(dealt_out, every, problem, settings)
    for name, refused in (("form", "class"), ("estimand", "E3")):
        if parts["labels"].labels is None and getattr(settings, name) == refused:
            raise LoclinError(
                f"expected examples with a positive option for --{name} {refused}, found none that "
                f"all of them have: name it with --positive, or take another --{name}"
            )
    return parts


def digest(parts: Parts) -> str:
    """Of the examples of all parts, word for word and in order."""
    return examples_hash([e for name in PARTS for e in parts[name].examples])


def prompted(
    dealt_out: Mapping[str, Sequence[Example]],
    every: Sequence[Example],
    problem: Problem,
    settings: SteeringSettings,
) -> Parts:
    """Parts of the examples as prompts, with the positive option of all of them."""
    tokenizer, device = problem.tokenizer, problem.model.device
    positive = prompt_set(every, tokenizer, positive=settings.positive, device="cpu").positive
    return {p: split_prompts(p, dealt_out[p], tokenizer, positive, device) for p in PARTS}


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


def neutral_of(
    problem: Problem,
    settings: SteeringSettings,
    parts: Parts,
    *,
    count: int,
    tokens: int,
    seed: int,
) -> Neutral:
    """Passages on which damage is seen; raises as `neutral_text` does."""
    file, answers = settings.neutral, parts["test"].tokens
    size: dict[str, Any] = {"file": file, "count": count, "tokens": tokens}
    return neutral_text(problem.model, problem.tokenizer, seed=seed, answers=answers, **size)
