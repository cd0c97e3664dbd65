"""Searches in spaces of very different dimension at θ_D, and in subspaces of equal k whose signal
density differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin import law
from loclin.geometry.krylov import Product, lanczos
from loclin.geometry.spectrum import principal_directions
from loclin.geometry.subspace import Subspace, random_subspace
from loclin.parameters import ParameterSpace
from loclin.run.rows import Row
from loclin.search.local_law import LocalLaw, second_order
from loclin.seeds import derived
from loclin.studies.directions import batch_gradients, norm_matched_noise, task_vectors
from loclin.studies.search import names
from loclin.studies.search.law_rows import ratio_rows
from loclin.studies.search.point import Gains, PointContext, SearchRun, SearchSpace
from loclin.tasks.batch import Batch, answer_loss


def static_plane(ctx: SearchRun, batches: list[Batch]) -> Subspace:
    """The plane that is fixed beforehand (measures §4): task vectors and principal gradients at θ₀,
    where the space stands.

    One task vector for each task, that of the run's own first, as far as k − 1 dimensions go; the
    gradients take the rest. Each batch gives one gradient of the run's task.
    """
    settings, problem, space = ctx.settings, ctx.problem, ctx.space
    order = [ctx.task, *(t for t in problem.tasks if t != ctx.task)]
    count = min(len(order), settings.k - 1)
    found = batch_gradients(problem, space, batches)
    gradients = principal_directions(found, settings.k - count).basis
    if not count:
        return Subspace(basis=gradients)
    own_first = {n: {t: part[t] for t in order} for n, part in problem.examples.items()}
    vectors = task_vectors(
        replace(problem, examples=own_first),
        space,
        count,
        batch=settings.batch,
        lr=settings.adamw_lr,
        steps=settings.task_vector_steps,
        seed=derived(ctx.seed, "task vectors of the plane"),
    )
    return Subspace.spanned_by(torch.cat([vectors, gradients.to(vectors)]))


def subspaces(
    ctx: SearchRun,
    batches: list[Batch],
    recovery: list[Batch],
    prefix: Float[Tensor, "k D"],
    plane: Subspace,
) -> Mapping[str, Subspace]:
    """Subspaces of k dimensions at θ_D, where the space stands, all of them made from examples that
    score no candidate: the first and the next k principal directions of gradients, the first
    updates of a recovery (`prefix`), the static plane, a Krylov space of recovery examples
    (measures §9), and two random ones.
    """
    problem, space, k = ctx.problem, ctx.space, ctx.settings.k
    seed = derived(ctx.seed, "subspaces")
    gradients = batch_gradients(problem, space, batches)
    loss = partial(answer_loss, problem.model)
    with second_order(problem, space, loss, recovery, ctx.settings.method) as product:
        krylov = lanczos(product, space.gradient(loss, recovery), k)
    matched = norm_matched_noise(space, gradients[:k], seed=derived(seed, "matched"))
    random = random_subspace(k, space.dimension, seed=derived(seed, "random"))
    principal = principal_directions(gradients, 2 * k).basis
    return {
        names.GRADIENTS: Subspace(basis=principal[:k]),
        names.LESSER: Subspace(basis=principal[k:]),
        names.UPDATES: Subspace.spanned_by(prefix.to(gradients)),
        names.STATIC: plane,
        names.KRYLOV: Subspace(basis=krylov.basis),
        names.MATCHED: Subspace.spanned_by(matched),
        names.RANDOM: Subspace(basis=random.basis.to(gradients)),
    }


def search_spaces(
    here: PointContext, made: Mapping[str, Subspace], product: Product
) -> list[SearchSpace]:
    """What the law sees in every subspace, and in the largest tensor alone where there are several.

    Nothing may move the space before this. The product is v ↦ Hv of the scored loss.
    """
    ctx, gradient = here.ctx, here.whole.gradient
    space, select = ctx.space, here.eval_set
    found = [
        replace(
            here.whole,
            name=name,
            law=LocalLaw.in_subspace(product, gradient, subspace.basis),
            basis=subspace.basis,
        )
        for name, subspace in made.items()
    ]
    if len(space.names) == 1:
        return found
    name = max(zip(space.sizes, space.names, strict=True))[1]
    alone, piece = ParameterSpace(ctx.problem.model, name), space.by_tensor(gradient)[name]
    batches, method = list(select.fold(0)), ctx.settings.method
    with second_order(ctx.problem, alone, select.loss, batches, method) as inner:
        seed, probes = derived(ctx.seed, "largest"), ctx.settings.probes
        local = LocalLaw.by_probes(inner, piece.reshape(-1), probes, seed=seed, noise=alone.noise)
    largest = SearchSpace(name=names.LARGEST, law=local, space=alone, gradient=piece.reshape(-1))
    return [*found, largest]


def space_rows(here: PointContext, spaces: Sequence[SearchSpace]) -> Iterator[Row]:
    """Searches in every space at the end of the law's domain there; in subspaces of equal k also at
    their own best σ, and all at one RMS radius, small enough for the domain of each.

    That the last goes with signal density is first order, true of any smooth loss, and decides
    nothing: it takes half of the candidates.
    """
    settings = here.ctx.settings
    n = settings.n
    inside = [s for s in spaces if s.basis is not None]
    radius = settings.size * min(s.law.reference(n) * math.sqrt(s.dimension) for s in inside)
    ratios = []
    for done, where in enumerate(spaces):
        here.progress("searching in subspaces", done / len(spaces))
        here.keep_law(where)
        yield here.row("dimension", float(where.dimension), space=where.name)
        end = where.law.domain(n)
        scored = here.search(where, settings.inside, end, at=names.DOMAIN_END)
        yield from ratio_rows(here, scored, where, end, at=names.DOMAIN_END)
        if where.basis is None:
            continue
        yield from _best_rows(here, where, scored)
        density = law.signal_density(where.law.gradient**2, where.dimension)
        linear = law.subspace_linear_gain(radius=radius, n=n, density=density)
        sigma, count = radius / math.sqrt(where.dimension), max(n, settings.inside // 2)
        gain = here.search(where, count, sigma, at=names.EQUAL_RADIUS).best_of(n)
        ratios.append(gain / linear if linear else math.nan)
        yield here.row("equal_radius_gain", gain, space=where.name)
        yield here.row("equal_radius_law", linear, space=where.name)
        yield from _density_rows(here, where, density)
    yield here.row("equal_radius", radius)
    yield here.row("density_ratio", float(np.median(ratios)), null=1.0)


def _best_rows(here: PointContext, where: SearchSpace, domain: Gains) -> Iterator[Row]:
    """The gain at the subspace's own best σ, σ* or the edge below it, beside the law's there. Where
    that is the end of the domain, `domain` was found there.
    """
    n, inside = here.ctx.settings.n, here.ctx.settings.inside
    sigma = where.law.reference(n)
    same = sigma == where.law.domain(n)
    if same:
        here.keep_gains(where, domain, at=names.BEST_SIGMA)
    scored = domain if same else here.search(where, inside, sigma, at=names.BEST_SIGMA)
    formula = law.subspace_best_gain(energy=where.law.gradient**2, n=n, trace=where.law.trace)
    yield here.row("best_gain", scored.best_of(n), space=where.name)
    yield here.row("best_gain_law", where.law.gain(n, sigma), space=where.name)
    yield here.row("best_gain_formula", formula, space=where.name)


def _density_rows(here: PointContext, where: SearchSpace, density: float) -> Iterator[Row]:
    """Signal density, beside that of all coordinates."""
    whole, dimension = here.law.gradient**2, here.ctx.space.dimension
    lift = law.lift(min(where.law.gradient**2 / whole, 1.0), dimension, where.dimension)
    yield here.row("signal_density", density, null=whole / dimension, space=where.name)
    yield here.row("signal_lift", lift, null=1.0, space=where.name)
