"""Searches in spaces of very different dimension at θ_D, and in subspaces of equal k whose signal
density differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin import law
from loclin.geometry.krylov import Product, lanczos
from loclin.geometry.spectrum import principal_directions
from loclin.geometry.subspace import Subspace, random_subspace
from loclin.parameters import ParameterSpace
from loclin.record import Row
from loclin.search.candidate import Perturbed, candidates
from loclin.search.noise import Noise
from loclin.seeds import derived
from loclin.studies.bench import Bench
from loclin.studies.directions import batch_gradients, norm_matched_noise, task_vectors
from loclin.studies.search.around import GAUSSIAN, LARGEST, Around, gain_at, ladder_rows
from loclin.studies.search.config import Config
from loclin.studies.search.local import Local, in_space, in_subspace, second_order
from loclin.studies.search.scored import gains
from loclin.tasks.batch import Batch, answer_loss

Directions = Float[Tensor, "k D"]
Vector = Float[Tensor, " D"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Place:
    """A space to search in.

    Attributes:
        name: of it.
        local: what the law sees there.
        space: the coordinates.
        basis: orthonormal rows, where it is a subspace of them.
    """

    name: str
    local: Local
    space: ParameterSpace
    basis: Directions | None = None

    @property
    def dimension(self) -> int:
        """Its dimensions."""
        return self.space.dimension if self.basis is None else len(self.basis)


def static_plane(bench: Bench[Config], batches: list[Batch]) -> Subspace:
    """The plane that is fixed beforehand (measures §4): task vectors and principal gradients at θ₀,
    where the space stands.

    One task vector for each task, that of the run's own first, as far as k − 1 dimensions go; the
    gradients take the rest.

    Args:
        bench: of the run.
        batches: one gradient of the run's task each.
    """
    config, problem, space = bench.config, bench.problem, bench.space
    order = [bench.task, *(t for t in problem.tasks if t != bench.task)]
    count = min(len(order), config.k - 1)
    gradients = principal_directions(
        batch_gradients(problem, space, batches), config.k - count
    ).basis
    if not count:
        return Subspace(basis=gradients)
    own_first = replace(
        problem, examples={n: {t: part[t] for t in order} for n, part in problem.examples.items()}
    )
    seed = derived(bench.seed, "task vectors of the plane")
    vectors = task_vectors(
        own_first,
        space,
        count,
        batch=config.batch,
        lr=config.adamw_lr,
        steps=config.task_vector_steps,
        seed=seed,
    )
    return Subspace.spanned_by(torch.cat([vectors, gradients.to(vectors)]))


def subspaces(
    bench: Bench[Config],
    batches: list[Batch],
    recovery: Sequence[Batch],
    prefix: Directions,
    plane: Subspace,
) -> Mapping[str, Subspace]:
    """Subspaces of k dimensions at θ_D, where the space stands, all of them made from examples that
    score no candidate.

    Args:
        bench: of the run.
        batches: of gradients.
        recovery: recovery examples behind the Krylov space (measures §9).
        prefix: the first k updates of a recovery.
        plane: the static plane.
    """
    config, problem, space = bench.config, bench.problem, bench.space
    seed = derived(bench.seed, "subspaces")
    found = batch_gradients(problem, space, batches)
    few = found[: config.k]
    with second_order(
        problem, space, recovery, differences=config.products == "finite differences"
    ) as product:
        krylov = lanczos(
            product, space.gradient(partial(answer_loss, problem.model), recovery), config.k
        )
    return {
        "gradients at θ_D": principal_directions(found, config.k),
        "first updates": Subspace.spanned_by(prefix.to(found)),
        "static plane": plane,
        "Krylov": Subspace(basis=krylov.basis),
        "norm-matched noise": Subspace.spanned_by(
            norm_matched_noise(space, few, seed=derived(seed, "matched"))
        ),
        "random": Subspace(
            basis=random_subspace(config.k, space.dimension, seed=derived(seed, "random")).basis.to(
                found
            )
        ),
    }


def places(
    bench: Bench[Config],
    made: Mapping[str, Subspace],
    product: Product,
    gradient: Vector,
    scored: Sequence[Batch],
) -> list[Place]:
    """What the law sees in every subspace, and in the largest tensor alone where there are several.

    Args:
        bench: of the run, the space standing at θ_D, which nothing may move before this.
        made: the subspaces.
        product: v ↦ Hv of the scored loss.
        gradient: g of it.
        scored: its examples.
    """
    config, problem, space = bench.config, bench.problem, bench.space
    found = [
        Place(
            name=name, local=in_subspace(product, gradient, of.basis), space=space, basis=of.basis
        )
        for name, of in made.items()
    ]
    if len(space.names) == 1:
        return found
    name = max(zip(space.sizes, space.names, strict=True))[1]
    alone = ParameterSpace(problem.model, name)
    with second_order(
        problem, alone, scored, differences=config.products == "finite differences"
    ) as inner:
        piece = space.by_tensor(gradient)[name].reshape(-1)
        local = in_space(inner, alone, piece, config.probes, seed=derived(bench.seed, "largest"))
    return [*found, Place(name=LARGEST, local=local, space=alone)]


def space_rows(here: Around, found: Sequence[Place]) -> Iterator[Row]:
    """Searches in every space: the law there, and in subspaces of equal k what signal density says
    of the gain.

    All subspaces are searched at the same RMS radius, small enough that each is within the law's
    domain, and then each at its own reference σ.

    Args:
        here: θ_D.
        found: the spaces.
    """
    config, whole = here.bench.config, here.local.gradient**2
    planes = [p for p in found if p.basis is not None]
    radius = config.size * min(p.local.reference(config.n) * math.sqrt(p.dimension) for p in planes)
    ratios = []
    for done, place in enumerate(found):
        here.progress("searching in subspaces", done / len(found))
        yield here.row("dimension", float(place.dimension), space=place.name)
        if place.basis is None:
            sigma = config.size * place.local.reference(config.n)
            yield from _searched(here, place, sigma)[1]
            continue
        energy = place.local.gradient**2
        density = law.signal_density(energy, place.dimension)
        capture = min(energy / whole, 1.0)
        linear = law.subspace_linear_gain(radius=radius, n=config.n, density=density)
        gain, rows = _searched(here, place, radius / math.sqrt(place.dimension))
        yield from rows
        ratios.append(gain / linear if linear else math.nan)
        own = place.local.reference(config.n)
        best, _ = _searched(here, place, own)
        context: dict[str, Any] = {"space": place.name}
        yield here.row(
            "signal_density", density, null=whole / here.bench.space.dimension, **context
        )
        yield here.row(
            "signal_lift",
            law.lift(capture, here.bench.space.dimension, place.dimension),
            null=1.0,
            **context,
        )
        yield here.row("equal_radius_gain", gain, **context)
        yield here.row("equal_radius_law", linear, **context)
        yield here.row("best_gain", best, **context)
        yield here.row("best_gain_law", place.local.gain(config.n, own), **context)
        yield here.row(
            "best_gain_formula",
            law.subspace_best_gain(energy=energy, n=config.n, trace=place.local.trace),
            **context,
        )
    yield here.row("equal_radius", radius)
    yield here.row("density_ratio", float(np.median(ratios)), null=1.0)


def _searched(here: Around, place: Place, sigma: float) -> tuple[float, list[Row]]:
    """The gain of the best of n there, and the rows of the ladder."""
    with Perturbed(place.space, Noise(), basis=place.basis) as moved:
        drawn = candidates(here.bench.config.inside, [sigma], seed=derived(here.seed, place.name))
        found = gains(
            moved, here.exam, drawn, stacked=1 if place.basis is not None else here.stacked
        )
    context = {"space": place.name, "noise": GAUSSIAN, "size": here.bench.config.size}
    return gain_at(found, here.bench.config.n), list(
        ladder_rows(here, found, place.local, sigma, context)
    )
