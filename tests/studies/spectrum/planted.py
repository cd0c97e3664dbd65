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


def planted(rank: int | None, rng: np.random.Generator, space: ParameterSpace) -> torch.Tensor:
    """32 of them, isotropic or of a rank with a little noise."""
    noise = torch.from_numpy(rng.standard_normal((32, space.dimension))).float()
    if rank is None:
        return noise
    shared = rng.standard_normal((32, rank)) @ rng.standard_normal((rank, space.dimension))
    return 0.05 * noise + torch.from_numpy(shared).float()
