"""What a run of the claims works with, how its numbers become rows, and which examples it gets:
parts that it shares with no other run on its model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.progress import ProgressCallback
from loclin.run.rows import Row, finite
from loclin.seeds import derived
from loclin.stats import Scale, on_scale, unscaled
from loclin.steering.averages import space_of
from loclin.steering.neutral import Neutral
from loclin.steering.prompts import PromptSet
from loclin.studies.steering import names
from loclin.studies.steering.claims_settings import SteeringClaimsSettings
from loclin.studies.steering.context import (
    SteeringContext,
    every_layer,
    neutral_of,
    prompted,
    unlearned,
)
from loclin.tasks.example import Example, dealt

Layered = Float[Tensor, "L d"]
Values = Float[Tensor, " L"] | Float[np.ndarray, " L"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ClaimsContext(SteeringContext[SteeringClaimsSettings]):
    """One run's surroundings.

    Attributes:
        space: the weights that step.
        neutral: text to see damage on.
        chosen: the blocks at which claims are decided, by place, once they are chosen.
        seed: of everything random in this run alone.
        model_seed: of what all runs on its model share.
    """

    run: int
    space: ParameterSpace
    neutral: Neutral
    chosen: Mapping[str, int] = field(default_factory=dict)
    seed: int
    model_seed: int

    @property
    def class_form(self) -> bool:
        """Whether the examples have classes."""
        return self.parts["labels"].form == "class"

    def row(self, quantity: str, value: float | None, **context: Any) -> Row:
        """A row of this run; no value where the number is not finite."""
        return Row(quantity=quantity, value=finite(value), context={"run": self.run, **context})

    def by_layer(self, quantity: str, values: Values, **context: Any) -> list[Row]:
        """A row for every layer."""
        layers = zip(self.layers, values, strict=True)
        return [self.row(quantity, float(v), **context, layer=n) for n, v in layers]

    def at_places(self, quantity: str, values: Values, **context: Any) -> list[Row]:
        """A row for each of the `places` that claims are decided at."""
        scale = cast(Scale, self.settings.scales.get(quantity, "plain"))
        found = places(np.asarray(values, dtype=float)[None], self.chosen, scale)
        return [self.row(quantity, float(v[0]), **context, at=at) for at, v in found.items()]

    def both(self, quantity: str, values: Values, **context: Any) -> list[Row]:
        """Rows by layer, and at the places that claims are decided at."""
        at = self.at_places(f"{quantity}_at", values, **context)
        return [*self.by_layer(quantity, values, **context), *at]


def middle(layers: Sequence[int]) -> Sequence[int]:
    """The median third of the blocks, never the last of several: there a vector's effect is its
    readout and nothing else (measures §13).

    >>> [list(middle(range(count))) for count in (1, 2, 4, 12)]
    [[0], [0], [1, 2], [4, 5, 6, 7]]
    """
    third = len(layers) // 3
    return layers[third : len(layers) - max(1, third)] or layers[:1]


def late(layers: Sequence[int]) -> Sequence[int]:
    """The later half."""
    return layers[len(layers) // 2 :]


def places(
    values: Float[np.ndarray, "m L"], chosen: Mapping[str, int], scale: Scale = "fisher"
) -> dict[str, Float[np.ndarray, " m"]]:
    """Of every draw the values at the chosen blocks, the mean over the later half of them on a
    scale, and the largest.
    """
    half = on_scale(values[:, values.shape[1] // 2 :], scale)
    found = {place: values[:, layer] for place, layer in chosen.items()}
    return {**found, names.LATE: unscaled(half.mean(1), scale), names.HIGHEST: values.max(1)}


def cosine(a: Float[Tensor, "*a d"], b: Float[Tensor, "*b d"]) -> Float[Tensor, "*c"]:
    """In float64, NaN where a vector is zero: what is left of one without others may be nothing."""
    x, y = a.double(), b.double()
    lengths = x.norm(dim=-1) * y.norm(dim=-1)
    found = ((x * y).sum(-1) / lengths).clamp(-1, 1)
    return torch.where(lengths > 0, found, math.nan)


def make_context(
    problem: Problem, settings: SteeringClaimsSettings, run: int, progress: ProgressCallback
) -> ClaimsContext:
    """Divide the examples of the run's model; which of them a run gets depends on the settings
    alone.

    Raises:
        LoclinError: too few examples, and how many are needed; options that are not told apart by
            one token.
    """
    seed, model = derived(settings.seed + run, "steering study"), settings.of_model(run)
    every = unlearned(problem, settings, None)
    examples = divided(every, settings, seed=model)[run // settings.models]
    parts = prompted(examples, every, problem, settings)
    count, tokens, said = settings.neutral_rows, settings.neutral_tokens, "neutral text"
    return ClaimsContext(
        settings=settings,
        run=run,
        problem=problem,
        space=space_of(problem.model, settings.space),
        parts=parts,
        neutral=neutral_of(
            problem, settings, parts, count=count, tokens=tokens, seed=derived(seed, said)
        ),
        layers=every_layer(problem, settings),
        seed=seed,
        model_seed=model,
        progress=progress,
    )


def divided(
    every: Sequence[Example], settings: SteeringClaimsSettings, *, seed: int
) -> list[dict[str, tuple[Example, ...]]]:
    """The parts of every run on one model; no group is in two parts, of one run or of two."""
    runs, sizes = range(-(-settings.seeds // settings.models)), settings.sizes
    every_size = {f"{run}/{part}": size for run in runs for part, size in sizes.items()}
    try:
        found = dealt(
            every, every_size, seed=seed, purpose="steering study", spread=bool(settings.data)
        )
    except LoclinError as error:
        if "examples for" not in str(error):
            raise
        needed, groups = sum(sizes.values()), len({e.group or e.prompt for e in every})
        raise LoclinError(
            f"expected {needed * len(runs)} examples for {len(runs)} runs of {needed} each on "
            f"one model "
            f"({', '.join(f'{name} {size}' for name, size in sizes.items())}), found {len(every)} "
            f"in {groups} groups: give more data, fewer --seeds, or smaller parts (--labels, "
            "--gradient, --shift, --choose, --test)"
        ) from error
    return [{part: found[f"{run}/{part}"] for part in names.PARTS} for run in runs]


def halves(prompts: PromptSet) -> tuple[PromptSet, PromptSet]:
    """Two halves of a part, by group; classes are shared out alike."""
    first = {group: prompts.groups.index(group) for group in prompts.groups}
    labels = np.zeros(len(prompts), dtype=bool) if prompts.labels is None else prompts.labels
    order = sorted(first, key=lambda group: (bool(labels[first[group]]), first[group]))
    if len(order) < 2:
        raise LoclinError(
            f"expected examples of two groups or more in every part, found {len(order)}: give more "
            "data"
        )
    side = {group: i % 2 for i, group in enumerate(order)}
    home = np.array([side[group] for group in prompts.groups])
    return prompts.rows(home == 0), prompts.rows(home == 1)
