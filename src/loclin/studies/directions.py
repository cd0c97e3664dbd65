"""Directions of the trained coordinates that studies draw: gradients, Hessian eigenvectors, task
vectors, matched noise.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from loclin.curvature import top_eigenpairs
from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.search.local_law import second_order
from loclin.seeds import derived
from loclin.tasks.batch import Batch, answer_loss
from loclin.training import make_optimiser, minibatches, train

Directions = Float[Tensor, "k D"]


def disjoint_batches(
    data: Batch, size: int, count: int, *, seed: int, skip: int = 0
) -> list[Batch]:
    """`count` batches that share no example, after the first `skip` of the same shuffle.

    Raises:
        LoclinError: the split is too small for them.
    """
    needed = (skip + count) * size
    if needed > len(data):
        raise LoclinError(
            f"expected at least {needed} examples for {skip + count} disjoint batches of {size}, "
            f"found {len(data)}: lower the number of gradients or --gradient-batch"
        )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return [data.rows(rows) for rows in order[skip * size : needed].split(size)]


def batch_gradients(
    problem: Problem, space: ParameterSpace, batches: list[Batch]
) -> Float[Tensor, "n D"]:
    """The gradient of each batch's mean loss at the current point."""
    return torch.stack(
        [space.gradient(lambda b: answer_loss(problem.model, b), [batch]) for batch in batches]
    )


def hessian_directions(
    problem: Problem, space: ParameterSpace, data: Batch, k: int, *, seed: int
) -> Directions:
    """Eigenvectors of the k algebraically largest Hessian eigenvalues at the current point, largest
    first; errors as of `curvature.top_eigenpairs`.
    """
    with second_order(problem, space, lambda b: answer_loss(problem.model, b), [data]) as product:
        return top_eigenpairs(product, k, seed=seed)[1]


def curvature_notes(problem: Problem, method: str = "double backward") -> list[str]:
    """How second derivatives are taken, where attention is switched for them, or they are not."""
    if method != "double backward":
        return ["curvature is taken by finite differences of gradients, a fallback"]
    own = problem.model.config._attn_implementation
    text = f"attention is switched from {own} to eager for second derivatives"
    return [] if own == "eager" else [text]


def task_vectors(
    problem: Problem, space: ParameterSpace, k: int, *, batch: int, lr: float, steps: int, seed: int
) -> Directions:
    """k task vectors θ_task − θ₀ from where the space stands: the tasks in turn, each time in a new
    data order.
    """
    origin, vectors = space.read(), []
    for i in range(k):
        task = problem.tasks[i % len(problem.tasks)]
        data = problem.batch("recovery", task)
        with space.restored():
            batches = minibatches(data, batch, seed=derived(seed, task, i))
            train(problem.model, space, batches, make_optimiser("adamw", space, lr), steps)
            vectors.append(space.read() - origin)
    return torch.stack(vectors)


def norm_matched_noise(space: ParameterSpace, like: Directions, *, seed: int) -> Directions:
    """One random direction for each row, isotropic within every tensor and of the same norm there.

    Real updates put unequal weight on the tensors; noise that is isotropic over all of them is too
    weak a null.
    """
    rows = []
    for i, row in enumerate(like):
        noise = space.by_tensor(space.noise(seed=derived(seed, i)))
        pairs = zip(noise.values(), space.by_tensor(row).values(), strict=True)
        rows.append(torch.cat([(z * (v.norm() / z.norm())).reshape(-1) for z, v in pairs]))
    return torch.stack(rows)
