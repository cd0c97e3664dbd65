"""What a run works with: the model as it is, and five parts of the examples that it shares with no
other run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from loclin.activations.blocks import blocks
from loclin.errors import LoclinError
from loclin.models import Problem, load
from loclin.models.pretrained import How
from loclin.parameters import ParameterSpace
from loclin.record import Row, finite
from loclin.search.splits import askable, learned
from loclin.seeds import derived
from loclin.steering.asked import Asked, ask
from loclin.steering.neutral import Neutral, neutral_text
from loclin.steering.parts import part_asked
from loclin.studies.bench import device
from loclin.studies.steering.config import PARTS, Config
from loclin.tasks.example import Example, dealt

Progress = Callable[[str, float], None]
Layered = Float[Tensor, "L d"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Material:
    """One run's surroundings.

    Attributes:
        config, run: what is asked, and which of its independent runs this is.
        problem: the model and all of its data.
        space: the weights that step.
        parts: "labels", "gradient", "shift", "choose" and "test" of this run, each as prompts with
            two tokens.
        neutral: text to see damage on.
        layers: all blocks.
        seed: of everything random in this run alone.
        progress: says what is being done.
    """

    config: Config
    run: int
    problem: Problem
    space: ParameterSpace
    parts: Mapping[str, Asked]
    neutral: Neutral
    layers: tuple[int, ...]
    seed: int
    progress: Progress

    @property
    def model(self) -> PreTrainedModel | PeftModel:
        """The model, in evaluation mode."""
        return self.problem.model

    @property
    def late(self) -> tuple[int, ...]:
        """The later half of the blocks."""
        return self.layers[len(self.layers) // 2 :]

    @property
    def class_form(self) -> bool:
        """Whether the examples have classes."""
        return self.parts["labels"].form == "class"

    def row(self, quantity: str, value: float | None, **context: Any) -> Row:
        """A row of this run; no value where the number is not finite."""
        return Row(quantity=quantity, value=finite(value), context={"run": self.run, **context})

    def by_layer(
        self, quantity: str, values: Float[Tensor, " L"] | np.ndarray, **context: Any
    ) -> list[Row]:
        """A row for every layer."""
        return [
            self.row(quantity, float(v), **context, layer=n)
            for n, v in zip(self.layers, values, strict=True)
        ]

    def at(
        self, quantity: str, values: Float[Tensor, " L"] | np.ndarray, chosen: int, **context: Any
    ) -> list[Row]:
        """Rows at the chosen layer, over the late layers (mean), and where it is largest over all
        layers.
        """
        found = places(np.asarray(values, dtype=float)[None], chosen)
        return [self.row(quantity, float(v[0]), **context, at=place) for place, v in found.items()]


def places(values: Float[np.ndarray, "m L"], chosen: int) -> dict[str, Float[np.ndarray, " m"]]:
    """The same three numbers of many draws."""
    half = values.shape[1] // 2
    return {"chosen": values[:, chosen], "late": values[:, half:].mean(1), "highest": values.max(1)}


def angle(a: Float[Tensor, "*a d"], b: Float[Tensor, "*b d"]) -> Float[Tensor, "*c"]:
    """Cosines in float64, NaN where a vector is zero: what is left of a vector without others may
    be nothing.
    """
    x, y = a.double(), b.double()
    lengths = x.norm(dim=-1) * y.norm(dim=-1)
    cosine = ((x * y).sum(-1) / lengths).clamp(-1, 1)
    return torch.where(lengths > 0, cosine, math.nan)


def gathered(config: Config, run: int, progress: Progress) -> Material:
    """Load the model and divide the examples; which examples a run gets depends on the settings
    alone.

    Raises:
        LoclinError: whatever is wrong with model or data; too few examples, and how many are
            needed.
    """
    how = How.of(config, device(config))
    problem = load(
        config.model,
        data=config.data,
        seed=config.seed,  # not the run's: all runs divide the same examples
        how=how,
        template=config.template,
        long=config.long,
        progress=progress,
    )
    return around(problem, config, run, progress)


def around(problem: Problem, config: Config, run: int, progress: Progress) -> Material:
    """The same for a model that is there already."""
    seed = derived(config.seed + run, "steering study")
    every = _examples(problem, config)
    positive = ask(every, problem.tokenizer, positive=config.positive, device="cpu").positive
    mine = divided(every, config)[run]
    parts = {
        name: part_asked(name, mine[name], problem.tokenizer, positive, problem.model.device)
        for name in PARTS
    }
    neutral = neutral_text(
        problem.model,
        problem.tokenizer,
        file=config.neutral,
        count=config.neutral_rows,
        tokens=config.neutral_tokens,
        seed=derived(seed, "neutral text"),
        answers=parts["test"].tokens,
    )
    return Material(
        config=config,
        run=run,
        problem=problem,
        space=ParameterSpace(problem.model, "*" if config.space == "full" else config.space),
        parts=parts,
        neutral=neutral,
        layers=tuple(range(len(blocks(problem.model, config.layers_path)))),
        seed=seed,
        progress=progress,
    )


def _examples(problem: Problem, config: Config) -> list[Example]:
    """All tasks together, without what a built-in model was trained or chosen on."""
    return askable(problem.examples, task=None, without=learned(config.model, config.data))


def divided(every: Sequence[Example], config: Config) -> list[dict[str, tuple[Example, ...]]]:
    """The parts of every run; no group is in two parts, of one run or of two.

    Raises:
        LoclinError: too few examples; it says how many are needed for so many runs.
    """
    sizes = {
        f"{run}/{part}": size for run in range(config.seeds) for part, size in config.sizes.items()
    }
    needed, groups = sum(sizes.values()), len({e.group or e.prompt for e in every})
    refused = (
        f"expected {needed} examples for {config.seeds} runs of {needed // config.seeds} each "
        f"({', '.join(f'{name} {size}' for name, size in config.sizes.items())}), found "
        f"{len(every)} in {groups} groups: give more "
        "data, fewer --seeds, or smaller parts (--labels, --gradient, --shift, --choose, --test)"
    )
    if len(every) < needed:
        raise LoclinError(refused)
    try:
        found = dealt(every, sizes, seed=config.seed, purpose="steering study")
    except LoclinError as error:
        if "examples for" in str(
            error
        ):  # enough examples, but the last of a group is left out where a part is full
            raise LoclinError(refused) from error
        raise
    return [{part: found[f"{run}/{part}"] for part in PARTS} for run in range(config.seeds)]


def halves(asked: Asked) -> tuple[Asked, Asked]:
    """Two halves of a part, by group; classes are shared out alike.

    Raises:
        LoclinError: examples of one group alone.
    """
    first: dict[str, int] = {}
    for i, group in enumerate(asked.groups):
        first.setdefault(group, i)
    order = sorted(
        first, key=lambda g: (asked.labels is not None and bool(asked.labels[first[g]]), first[g])
    )
    if len(order) < 2:
        raise LoclinError(
            f"expected examples of two groups or more in every part, found {len(order)}: give more "
            "data"
        )
    side = {group: i % 2 for i, group in enumerate(order)}
    home = np.array([side[group] for group in asked.groups])
    return asked.rows(home == 0), asked.rows(home == 1)
