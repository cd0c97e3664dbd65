"""loclin: which local linear structure does a trained network really have, at what scale?

A task and a model give a loss; the loss lives in two spaces, weights and activations; studies
measure straight lines in those spaces, compare them with nulls, and write a record that a report
reads.

Do the first steps of a training run span the rest of it? With any module and any loop:

>>> import torch, loclin
>>> inputs = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
>>> model = torch.nn.Linear(8, 1)
>>> space = loclin.ParameterSpace(model)
>>> points = [space.read()]
>>> for _ in range(20):
...     loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
...     model.zero_grad(); loss.backward()
...     space.add(torch.cat([p.grad.reshape(-1) for p in space.parameters]), scale=-0.05)
...     points.append(space.read())
>>> updates = torch.stack(points).diff(dim=0)
>>> held = loclin.future_capture(loclin.gramian(updates), [1, 2, 3])  # share of the future in the first k updates' span
>>> bool(held[0] > 0.8 and held[2] > 0.99)
True

Reading order: `tasks/` (what a model is asked), `models` (the built-in ones), `parameters` (weights
as one point of R^D), `training` (the loop and its trajectory), `geometry/` (captures, subspaces,
spectra), `theory` (what they are worth when nothing is there), `law` (of random search), `stats`,
`activations/` (outputs of blocks), `search/` (candidates by seed), `steering/` (vectors and what
they do), `schedules/` (several tasks in one loop), `studies/` (the questions), `record` (the run
folder), `report/`, `cli`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loclin.errors import LoclinError as LoclinError
    from loclin.geometry.gramian import cross_capture as cross_capture
    from loclin.geometry.gramian import future_capture as future_capture
    from loclin.geometry.gramian import gramian as gramian
    from loclin.geometry.gramian import prefix_capture as prefix_capture
    from loclin.geometry.spectrum import effective_ranks as effective_ranks
    from loclin.geometry.spectrum import principal_directions as principal_directions
    from loclin.geometry.subspace import Subspace as Subspace
    from loclin.geometry.subspace import random_subspace as random_subspace
    from loclin.models import load as load
    from loclin.parameters import ParameterSpace as ParameterSpace
    from loclin.stats import Estimate as Estimate
    from loclin.stats import over_runs as over_runs
    from loclin.training import Trajectory as Trajectory
    from loclin.training import record as record_training  # noqa: F401
    from loclin.training import train as train

#: Public name -> where it lives. Imported on first use, so that `loclin --help` need not wait for
#: torch.
_HOMES = {
    "Estimate": "stats.Estimate",
    "LoclinError": "errors.LoclinError",
    "ParameterSpace": "parameters.ParameterSpace",
    "Subspace": "geometry.subspace.Subspace",
    "Trajectory": "training.Trajectory",
    "cross_capture": "geometry.gramian.cross_capture",
    "effective_ranks": "geometry.spectrum.effective_ranks",
    "future_capture": "geometry.gramian.future_capture",
    "gramian": "geometry.gramian.gramian",
    "load": "models.load",
    "over_runs": "stats.over_runs",
    "prefix_capture": "geometry.gramian.prefix_capture",
    "principal_directions": "geometry.spectrum.principal_directions",
    "random_subspace": "geometry.subspace.random_subspace",
    "record_training": "training.record",
    "train": "training.train",
}

__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'loclin' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].rpartition(".")
    return getattr(import_module(f"loclin.{module}"), attribute)
