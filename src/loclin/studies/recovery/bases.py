"""Families of directions to hold a recovery against: fixed beforehand, or controls (measures §3,
§4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from jaxtyping import Float
from torch import Tensor

from loclin.geometry.spectrum import principal_directions
from loclin.geometry.subspace import random_subspace
from loclin.seeds import derived
from loclin.studies.context import RunContext
from loclin.studies.damage import recovery
from loclin.studies.directions import (
    batch_gradients,
    disjoint_batches,
    hessian_directions,
    norm_matched_noise,
    task_vectors,
)
from loclin.studies.families import Family, family_at, steps_family
from loclin.studies.names import MINIBATCH, RANDOM
from loclin.studies.recovery import names
from loclin.studies.recovery.settings import RecoverySettings
from loclin.training import Trajectory, minibatches


def static_families(
    ctx: RunContext[RecoverySettings], damaged: Float[Tensor, " D"]
) -> Iterator[tuple[str, Family]]:
    """Bases fixed before recovery starts (measures §4), and a random one; the space is at θ₀."""
    settings, problem, space = ctx.settings, ctx.problem, ctx.space
    seed = derived(ctx.seed, "static")
    data, origin, k = problem.batch("gradients", ctx.task), space.read(), settings.k
    size, order = settings.gradient_batch, derived(seed, "basis")
    batches = disjoint_batches(data, size, settings.gradients, seed=order)
    at_origin = principal_directions(batch_gradients(problem, space, batches), k).basis
    yield names.AT_ORIGIN, family_at(ctx, origin, at_origin)
    vectors = task_vectors(
        problem,
        space,
        k,
        batch=settings.batch,
        lr=settings.adamw_lr,
        steps=settings.task_vector_steps,
        seed=derived(seed, "task vectors"),
    )
    yield names.TASK_VECTORS, family_at(ctx, origin, vectors, chords=True)
    with space.restored():
        space.write(damaged)
        there = principal_directions(batch_gradients(problem, space, batches), k).basis
        shown = problem.batch("recovery", ctx.task)
        size = min(settings.hessian_batch, len(shown))
        few = next(minibatches(shown, size, seed=derived(seed, "hessian")))
        curved = hessian_directions(problem, space, few, k, seed=derived(seed, "lanczos"))
    yield names.AT_DAMAGED, family_at(ctx, damaged, there)
    yield names.HESSIAN, family_at(ctx, damaged, curved)
    random = random_subspace(k, space.dimension, seed=derived(seed, "random")).basis.to(damaged)
    yield RANDOM, family_at(ctx, damaged, random)


def control_families(
    ctx: RunContext[RecoverySettings],
    optimiser: str,
    damaged: Mapping[str, Tensor],
    real: Trajectory,
) -> Iterator[tuple[str, Family]]:
    """Controls of measures §3: the first updates of other recoveries; minibatch gradients at θ_D;
    noise with the norms of the updates.

    Args:
        damaged: θ_D of the task, and of the other one where there is one.
        real: the recorded recovery.
    """
    settings, problem, space = ctx.settings, ctx.problem, ctx.space
    longest = min(max(settings.ks), 3 * settings.k)  # further ones illustrate nothing
    others = [(names.ANOTHER_RUN, ctx.task, "independent")]
    others += [(names.ANOTHER_TASK, ctx.other, "other")] if ctx.other is not None else []
    for name, task, order in others:
        start, head = damaged[task], settings.head
        again = recovery(ctx, optimiser, task, start, longest, order=order, head=head)
        yield name, steps_family(ctx, again)
    seed = derived(ctx.seed, "controls", optimiser)
    with space.restored():
        space.write(real.start)
        drawn = derived(seed, "independent gradients")
        batches = minibatches(problem.batch("recovery", ctx.task), settings.batch, seed=drawn)
        gradients = batch_gradients(problem, space, [next(batches) for _ in range(longest)])
    yield MINIBATCH, family_at(ctx, real.start, gradients)
    noise = norm_matched_noise(space, real.head[:longest], seed=derived(seed, "noise"))
    yield names.NOISE, family_at(ctx, real.start, noise)
