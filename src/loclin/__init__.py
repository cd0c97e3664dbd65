"""loclin: which local linear structure does a trained network really have, at what scale?

A task and a model give a loss. The loss lives in two spaces, weights and activations. Studies
measure straight lines in them, compare them with nulls, and write a record that a page is drawn
from.

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
>>> # share of the future that lies in the span of the first k updates
>>> held = loclin.future_capture(loclin.gramian(updates), [1, 2, 3])
>>> bool(held[0] > 0.8 and held[2] > 0.99)
True

Reading order. The library: `tasks/` (what a model is asked), `models/` (a model with its tasks),
`parameters` (weights as one point of R^D), `curvature`, `window`, `training` (the loop and its
trajectory), `geometry/` (captures, subspaces, spectra), `theory` and `law` (what they are worth
when nothing is there), `stats`, `activations/`, `search/`, `steering/`, `schedules/`. The studies:
`run/` (record, runner, workers), `studies/` (a folder a question), `report/`, `cli`.
"""

from typing import TYPE_CHECKING

from loclin.lazy import public

if TYPE_CHECKING:
    from loclin.curvature import CurvatureOperator as CurvatureOperator
    from loclin.curvature import top_eigenpairs as top_eigenpairs
    from loclin.curvature import trace as trace
    from loclin.errors import LoclinError as LoclinError
    from loclin.geometry.gramian import cross_capture as cross_capture
    from loclin.geometry.gramian import future_capture as future_capture
    from loclin.geometry.gramian import gramian as gramian
    from loclin.geometry.gramian import prefix_capture as prefix_capture
    from loclin.geometry.krylov import lanczos as lanczos
    from loclin.geometry.spectrum import effective_ranks as effective_ranks
    from loclin.geometry.spectrum import principal_directions as principal_directions
    from loclin.geometry.subspace import Subspace as Subspace
    from loclin.geometry.subspace import random_subspace as random_subspace
    from loclin.models.evaluation import EvalSet as EvalSet
    from loclin.models.loading import load as load
    from loclin.models.problem import Problem as Problem
    from loclin.options import LoadOptions as LoadOptions
    from loclin.pairs import Objective as Objective
    from loclin.pairs import bracket as bracket
    from loclin.pairs import interference as interference
    from loclin.pairs import order_effect as order_effect
    from loclin.pairs import order_onset as order_onset
    from loclin.parameters import ParameterSpace as ParameterSpace
    from loclin.run.opened import open_run as open  # noqa: F401
    from loclin.search.random_search import random_search as random_search
    from loclin.stats import Estimate as Estimate
    from loclin.stats import over_runs as over_runs
    from loclin.steering.vector import SteeringVector as SteeringVector
    from loclin.tasks.batch import answer_loss as answer_loss
    from loclin.tasks.example import Example as Example
    from loclin.training import Trajectory as Trajectory
    from loclin.training import record as record_training  # noqa: F401
    from loclin.training import train as train
    from loclin.window import linear_window as linear_window

__getattr__, __all__ = public(
    "loclin",
    {
        "CurvatureOperator": "curvature",
        "Estimate": "stats",
        "EvalSet": "models.evaluation",
        "Example": "tasks.example",
        "LoadOptions": "options",
        "LoclinError": "errors",
        "Objective": "pairs",
        "ParameterSpace": "parameters",
        "Problem": "models.problem",
        "SteeringVector": "steering.vector",
        "Subspace": "geometry.subspace",
        "Trajectory": "training",
        "answer_loss": "tasks.batch",
        "bracket": "pairs",
        "cross_capture": "geometry.gramian",
        "effective_ranks": "geometry.spectrum",
        "future_capture": "geometry.gramian",
        "gramian": "geometry.gramian",
        "interference": "pairs",
        "lanczos": "geometry.krylov",
        "linear_window": "window",
        "load": "models.loading",
        "open": "run.opened:open_run",
        "order_effect": "pairs",
        "order_onset": "pairs",
        "over_runs": "stats",
        "prefix_capture": "geometry.gramian",
        "principal_directions": "geometry.spectrum",
        "random_search": "search.random_search",
        "random_subspace": "geometry.subspace",
        "record_training": "training:record",
        "top_eigenpairs": "curvature",
        "trace": "curvature",
        "train": "training",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
