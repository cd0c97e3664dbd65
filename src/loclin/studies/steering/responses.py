"""Random directions of activations, beside which effects stand."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from loclin.seeds import derived


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
