"""Directions of the trained coordinates that studies draw: gradients, Hessian eigenvectors, task
vectors, matched noise.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from loclin.curvature import hessian_operator, top_eigenpairs
from loclin.errors import LoclinError
from loclin.models import Problem, twice_differentiable
from loclin.parameters import ParameterSpace
from loclin.seeds import derived
from loclin.tasks.batch import Batch, answer_loss
from loclin.training import make_optimiser, minibatches, train

Directions = Float[Tensor, "k D"]


def disjoint_batches(
    data: Batch, size: int, count: int, *, seed: int, skip: int = 0
) -> list[Batch]:
    """`count` batches that share no example, the first `skip` of the shuffle left to somebody else.

    Raises:
        LoclinError: the split is too small for them.
    """
    needed = (skip + count) * size
    if needed > len(data):
        raise LoclinError(
            f"expected at least {needed} examples for {skip + count} disjoint batches of {size}, "
            f"found {len(data)}: "
            "lower the number of gradients or --gradient-batch"
        )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[
        skip * size : needed
    ]
    return [data.rows(rows) for rows in order.split(size)]


def batch_gradients(
    problem: Problem, space: ParameterSpace, batches: list[Batch]
) -> Float[Tensor, "n D"]:
    """The gradient of each batch at the current point."""
    return torch.stack(
        [space.gradient(lambda b: answer_loss(problem.model, b), [batch]) for batch in batches]
    )


def hessian_directions(
    problem: Problem, space: ParameterSpace, data: Batch, k: int, *, seed: int
) -> Directions:
    """Eigenvectors of the k algebraically largest Hessian eigenvalues at the current point, largest
    first.

    See `curvature.top_eigenpairs`, whose errors it raises.
    """
    with twice_differentiable(problem.model):
        operator = hessian_operator(space, lambda b: answer_loss(problem.model, b), [data])
        return top_eigenpairs(operator, space.noise(seed=seed), k)[1]


def task_vectors(
    problem: Problem, space: ParameterSpace, k: int, *, batch: int, lr: float, steps: int, seed: int
) -> Directions:
    """k task vectors θ_task − θ₀ from the pretrained point, where the space stands: the tasks in
    turn, each time in a new order.

    One round over the tasks gives one vector per task; further rounds, with other data orders, fill
    up to k.
    """
    origin, vectors = space.read(), []
    for i in range(k):
        task = problem.tasks[i % len(problem.tasks)]
        with space.restored():
            batches = minibatches(
                problem.batch("recovery", task), batch, seed=derived(seed, task, i)
            )
            optimiser = make_optimiser("adamw", space, lr)
            train(problem.model, space, batches, optimiser, steps)
            vectors.append(space.read() - origin)
    return torch.stack(vectors)


def norm_matched_noise(space: ParameterSpace, like: Directions, *, seed: int) -> Directions:
    """One random direction for each given one, isotropic within every tensor and of the same norm
    there.

    Real updates put unequal weight on the tensors; a basis that is isotropic over all of them is
    too weak a null.
    """
    rows = []
    for i, row in enumerate(like):
        noise = space.by_tensor(space.noise(seed=derived(seed, i)))
        scaled = [
            z * (v.norm() / z.norm())
            for z, v in zip(noise.values(), space.by_tensor(row).values(), strict=True)
        ]
        rows.append(torch.cat([z.reshape(-1) for z in scaled]))
    return torch.stack(rows)
