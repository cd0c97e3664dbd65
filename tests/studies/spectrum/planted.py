"""Gradients of known rank."""

import numpy as np
import torch

from loclin.parameters import ParameterSpace
from loclin.studies.spectrum.gradients import Gradients
from loclin.updates import UpdateStorage


def gathered(rows: torch.Tensor, space: ParameterSpace) -> Gradients:
    """As they would be kept."""
    norms = torch.stack(
        [torch.stack([t.norm() for t in space.by_tensor(g).values()]) for g in rows]
    ).double()
    return Gradients(space=space, storage=UpdateStorage(), rows=rows, norms=norms)


def planted(
    rank: int | None, rng: np.random.Generator, space: ParameterSpace, *, crowded: bool = False
) -> torch.Tensor:
    """32 of them, isotropic or of a rank with a little noise, a few of which carry the energy; or
    with most of it in the smallest tensor.
    """
    rows = rng.standard_normal((32, space.dimension))
    if rank is not None:
        shared = rng.standard_normal((32, rank)) @ rng.standard_normal((rank, space.dimension))
        rows = 0.05 * rows + shared
    if crowded:
        rows[:, -min(space.sizes) :] *= 20
    rows *= np.exp(1.5 * rng.standard_normal((32, 1)))
    return torch.from_numpy(rows).float()
