"""Families of directions to hold a recovery against: fixed beforehand, or controls (measures §3, §4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.gramian import gramian
from loclin.geometry.lora import LowRank, low_rank_gramian
from loclin.geometry.spectrum import principal_directions
from loclin.geometry.subspace import random_subspace
from loclin.models import Problem, twice_differentiable
from loclin.parameters import ParameterSpace
from loclin.seeds import derived
from loclin.studies.recovery.bench import Bench
from loclin.studies.recovery.config import Config
from loclin.tasks.batch import Batch, answer_loss
from loclin.training import Trajectory, make_optimiser, minibatches, train

Directions = Float[Tensor, "k D"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """Ordered directions, as every space of the study sees them; the basis of size k is the span of the first k.

    Attributes:
        rows: in the trained coordinates, or their sketches where the updates are sketched.
        weights: with LoRA, what the directions are in ΔW, one adapted weight after the other.
        exact: the first rows in the trained coordinates, for training that is confined to them.
    """

    rows: Float[Tensor, "k columns"]
    exact: Float[Tensor, "j D"]
    weights: Callable[[], Iterator[LowRank]] | None = None


def products(bench: Bench, first: Family, second: Family | None = None) -> dict[str, Float[np.ndarray, "n m"]]:
    """Inner products of two families, or of one with itself, in every space of the study (`Config.spaces`)."""
    flat = gramian(first.rows, None if second is None else second.rows)
    trained = bench.config.spaces[-1]
    if first.weights is None:
        return {trained: flat}
    if second is None:
        found = [low_rank_gramian([w]) for w in first.weights()]
    else:
        assert second.weights is not None
        found = [low_rank_gramian([w], [v]) for w, v in zip(first.weights(), second.weights(), strict=True)]
    return {"weights": np.sum(found, axis=0), trained: flat}


def steps_family(bench: Bench, real: Trajectory) -> Family:
    """The updates of a recorded recovery."""
    factors = bench.factors
    weights = None if factors is None else lambda: factors.steps(real.start, real.updates)
    return Family(rows=real.updates, exact=real.head, weights=weights)


def tangent_family(bench: Bench, point: Float[Tensor, " D"], rows: Directions) -> Family:
    """Directions at a point."""
    factors = bench.factors
    weights = None if factors is None else lambda: factors.directions(point, rows)
    return Family(rows=bench.keeping.seen(bench.space, rows), exact=rows, weights=weights)


def chord_family(bench: Bench, point: Float[Tensor, " D"], rows: Directions) -> Family:
    """Displacements from a point, not small: ΔW is not linear in the factors."""
    factors = bench.factors
    weights = None if factors is None else lambda: factors.chords(point, rows)
    return Family(rows=bench.keeping.seen(bench.space, rows), exact=rows, weights=weights)


def disjoint_batches(data: Batch, size: int, count: int, *, seed: int, skip: int = 0) -> list[Batch]:
    """`count` batches that share no example, the first `skip` of the shuffle left to somebody else.

    Raises:
        LoclinError: the split is too small for them.
    """
    needed = (skip + count) * size
    if needed > len(data):
        raise LoclinError(
            f"expected at least {needed} examples for {skip + count} disjoint batches of {size}, found {len(data)}: "
            "lower --gradients, --rank-gradients or --gradient-batch"
        )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[skip * size : needed]
    return [data.rows(rows) for rows in order.split(size)]


def batch_gradients(problem: Problem, space: ParameterSpace, batches: list[Batch]) -> Float[Tensor, "n D"]:
    """The gradient of each batch at the current point."""
    return torch.stack([space.gradient(lambda b: answer_loss(problem.model, b), [batch]) for batch in batches])


def hessian_directions(problem: Problem, space: ParameterSpace, data: Batch, k: int, *, seed: int) -> Directions:
    """Eigenvectors of the k algebraically largest Hessian eigenvalues at the current point, largest first.

    By ARPACK's restarted Lanczos on Hessian-vector products, to a relative residual of 1 %; eigenvectors that have not
    converged to it are said to be missing rather than made up.

    Raises:
        LoclinError: fewer than k converge.
    """

    def product(vector: np.ndarray) -> np.ndarray:
        v = torch.from_numpy(vector.astype(np.float32)).reshape(-1).to(data.input_ids.device)
        hv = space.hessian_product(lambda b: answer_loss(problem.model, b), [data], v)
        result: np.ndarray = hv.cpu().numpy()
        return result

    shape = (space.dimension, space.dimension)
    start = space.noise(seed=seed).cpu().numpy()
    operator = LinearOperator(shape, matvec=product, dtype=np.float32)
    try:
        with twice_differentiable(problem.model):
            values, vectors = eigsh(operator, k=k, which="LA", v0=start, tol=1e-2, ncv=4 * k + 5, maxiter=20)
    except ArpackNoConvergence as error:
        found = len(error.eigenvalues)
        raise LoclinError(f"expected {k} Hessian eigenvectors to converge, found {found}: lower --k") from error
    order = np.argsort(-values)
    return torch.from_numpy(np.ascontiguousarray(vectors[:, order].T)).to(data.input_ids.device)


def task_vectors(problem: Problem, space: ParameterSpace, config: Config, k: int, *, seed: int) -> Directions:
    """k task vectors θ_task − θ₀ from the pretrained point, where the space stands: the tasks in turn, each time in a new order.

    One round over the tasks gives one vector per task; further rounds, with other data orders, fill up to k.
    """
    origin, vectors = space.read(), []
    for i in range(k):
        task = problem.tasks[i % len(problem.tasks)]
        with space.restored():
            batches = minibatches(problem.batch("recovery", task), config.batch, seed=derived(seed, task, i))
            optimiser = make_optimiser("adamw", space, config.adamw_lr)
            train(problem.model, space, batches, optimiser, config.task_vector_steps)
            vectors.append(space.read() - origin)
    return torch.stack(vectors)


def norm_matched_noise(space: ParameterSpace, like: Directions, *, seed: int) -> Directions:
    """One random direction for each given one, isotropic within every tensor and of the same norm there.

    Real updates put unequal weight on the tensors; a basis that is isotropic over all of them is too weak a null.
    """
    rows = []
    for i, row in enumerate(like):
        noise = space.by_tensor(space.noise(seed=derived(seed, i)))
        scaled = [z * (v.norm() / z.norm()) for z, v in zip(noise.values(), space.by_tensor(row).values(), strict=True)]
        rows.append(torch.cat([z.reshape(-1) for z in scaled]))
    return torch.stack(rows)


def static_families(bench: Bench, damaged: Float[Tensor, " D"], *, seed: int) -> Iterator[tuple[str, Family]]:
    """Bases fixed before recovery starts (measures §4), the space standing at the pretrained point θ₀."""
    problem, space, config = bench.problem, bench.space, bench.config
    data, origin, k = problem.batch("gradients", bench.task), space.read(), config.k
    batches = disjoint_batches(data, config.gradient_batch, config.gradients, seed=derived(seed, "basis"))
    at_origin = principal_directions(batch_gradients(problem, space, batches), k).basis
    yield "gradients at θ₀", tangent_family(bench, origin, at_origin)
    vectors = task_vectors(problem, space, config, k, seed=derived(seed, "task vectors"))
    yield "task vectors", chord_family(bench, origin, vectors)
    with space.restored():
        space.write(damaged)
        there = principal_directions(batch_gradients(problem, space, batches), k).basis
        shown = problem.batch("recovery", bench.task)
        few = minibatches(shown, min(config.hessian_batch, len(shown)), seed=derived(seed, "hessian"))
        curved = hessian_directions(problem, space, next(few), k, seed=derived(seed, "lanczos"))
    yield "gradients at θ_D", tangent_family(bench, damaged, there)
    yield "Hessian at θ_D", tangent_family(bench, damaged, curved)
    random = random_subspace(k, space.dimension, seed=derived(seed, "random")).basis.to(damaged)
    yield "random", tangent_family(bench, damaged, random)


def control_families(bench: Bench, real: Trajectory, *, seed: int) -> Iterator[tuple[str, Family]]:
    """Controls of measures §3 drawn at θ_D: plain minibatch gradients, noise with the norms of the updates.

    Args:
        bench: of the run.
        real: the recorded recovery.
        seed: of the gradients' batches and of the noise.
    """
    problem, space, longest = bench.problem, bench.space, max(bench.config.ks)
    with space.restored():
        space.write(real.start)
        order = derived(seed, "independent gradients")
        batches = minibatches(problem.batch("recovery", bench.task), bench.config.batch, seed=order)
        gradients = batch_gradients(problem, space, [next(batches) for _ in range(longest)])
    yield "minibatch gradients", tangent_family(bench, real.start, gradients)
    noise = norm_matched_noise(space, real.head[:longest], seed=derived(seed, "noise"))
    yield "norm-matched noise", tangent_family(bench, real.start, noise)
