"""How every prompt answers to the strength of several vectors, and of random ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from loclin.seeds import derived
from loclin.steering.effect import Change, Response, logit_differences, response
from loclin.steering.prompts import PromptSet


def responses(
    model: nn.Module,
    prompts: PromptSet,
    changes: Mapping[str, Change],
    strengths: Sequence[float],
    *,
    progress: Callable[[float], None],
) -> dict[str, Response]:
    """The response to every change by its name; the model as it is is measured once."""
    before, found = logit_differences(model, prompts), {}
    for i, (name, change) in enumerate(changes.items()):
        found[name] = response(model, prompts, change, strengths, before=before)
        progress((i + 1) / len(changes))
    return found


def random_vectors(
    lengths: Mapping[int, float], width: int, *, count: int, seed: int
) -> list[dict[int, Tensor]]:
    """Directions that know nothing, as long as the vector at each layer; a function of (seed,
    number, layer) alone.
    """

    def one(number: int, layer: int) -> Tensor:
        drawn = torch.Generator().manual_seed(derived(seed, "random activation", number, layer))
        z = torch.randn(width, generator=drawn, dtype=torch.float64)
        scaled: Tensor = z * (lengths[layer] / z.norm())
        return scaled.float()

    return [{layer: one(i, layer) for layer in lengths} for i in range(count)]
