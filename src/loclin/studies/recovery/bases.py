"""Families of directions to hold a recovery against: fixed beforehand, or controls (measures §3,
§4).
"""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from loclin.geometry.spectrum import principal_directions
from loclin.geometry.subspace import random_subspace
from loclin.seeds import derived
from loclin.studies.bench import Bench
from loclin.studies.directions import (
    batch_gradients,
    disjoint_batches,
    hessian_directions,
    norm_matched_noise,
    task_vectors,
)
from loclin.studies.families import Family, chord_family, tangent_family
from loclin.studies.recovery.config import Config
from loclin.training import Trajectory, minibatches


def static_families(
    bench: Bench[Config], damaged: Float[Tensor, " D"], *, seed: int
) -> Iterator[tuple[str, Family]]:
    """Bases fixed before recovery starts (measures §4), the space standing at the pretrained point
    θ₀.
    """
    config, problem, space = bench.config, bench.problem, bench.space
    data, origin, k = problem.batch("gradients", bench.task), space.read(), config.k
    batches = disjoint_batches(
        data, config.gradient_batch, config.gradients, seed=derived(seed, "basis")
    )
    at_origin = principal_directions(batch_gradients(problem, space, batches), k).basis
    yield "gradients at θ₀", tangent_family(bench, origin, at_origin)
    order = derived(seed, "task vectors")
    vectors = task_vectors(
        problem,
        space,
        k,
        batch=config.batch,
        lr=config.adamw_lr,
        steps=config.task_vector_steps,
        seed=order,
    )
    yield "task vectors", chord_family(bench, origin, vectors)
    with space.restored():
        space.write(damaged)
        there = principal_directions(batch_gradients(problem, space, batches), k).basis
        shown = problem.batch("recovery", bench.task)
        few = minibatches(
            shown, min(config.hessian_batch, len(shown)), seed=derived(seed, "hessian")
        )
        curved = hessian_directions(problem, space, next(few), k, seed=derived(seed, "lanczos"))
    yield "gradients at θ_D", tangent_family(bench, damaged, there)
    yield "Hessian at θ_D", tangent_family(bench, damaged, curved)
    random = random_subspace(k, space.dimension, seed=derived(seed, "random")).basis.to(damaged)
    yield "random", tangent_family(bench, damaged, random)


def control_families(
    bench: Bench[Config], real: Trajectory, *, seed: int
) -> Iterator[tuple[str, Family]]:
    """Controls of measures §3 drawn at θ_D: plain minibatch gradients, noise with the norms of the
    updates.

    Args:
        bench: of the run.
        real: the recorded recovery.
        seed: of the gradients' batches and of the noise.
    """
    config, problem, space = bench.config, bench.problem, bench.space
    longest = max(config.ks)
    with space.restored():
        space.write(real.start)
        order = derived(seed, "independent gradients")
        batches = minibatches(problem.batch("recovery", bench.task), config.batch, seed=order)
        gradients = batch_gradients(problem, space, [next(batches) for _ in range(longest)])
    yield "minibatch gradients", tangent_family(bench, real.start, gradients)
    noise = norm_matched_noise(space, real.head[:longest], seed=derived(seed, "noise"))
    yield "norm-matched noise", tangent_family(bench, real.start, noise)
