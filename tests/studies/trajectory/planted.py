"""Runs with known answers, given as points in memory."""

import numpy as np
import torch
from torch import Tensor

from loclin.models.points import Points
from loclin.run.rows import Row
from loclin.studies.trajectory.measure import run_part
from loclin.studies.trajectory.movement import Run, run_of
from loclin.studies.trajectory.settings import KS


def points_of(
    tensors: dict[str, Tensor], steps: tuple[int | None, ...] | None = None, **kwargs: object
) -> Points:
    """Points in memory: each tensor stacked over the points."""
    count = len(next(iter(tensors.values())))

    def read(name: str, rows: slice) -> Tensor:
        return tensors[name].reshape(count, *(tensors[name].shape[1:] or (1,)))[:, rows]

    return Points(
        labels=tuple(f"checkpoint-{i}" for i in range(count)),
        steps=steps or tuple(range(count)),
        shapes={name: tuple(t.shape[1:]) for name, t in tensors.items()},
        adapted={},
        read=read,
        **kwargs,  # type: ignore[arg-type]
    )


def walk(updates: np.ndarray) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros((1, updates.shape[1])), updates.cumsum(0)]))


def run_along(updates: np.ndarray, **change: object) -> Run:
    """A run of one tensor that takes these steps."""
    return run_of(points_of({"w": walk(updates)}, **change))  # type: ignore[arg-type]


def rows_of(run: Run, *, ks: tuple[int, ...] = KS, shuffles: int = 19) -> list[Row]:
    return list(run_part(run, ks, shuffles, seed=0).rows)
