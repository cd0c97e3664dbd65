"""The damaged point seen to second order: gradient, Krylov basis, eigenvectors, random probes; and
the bases to hold them against.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.curvature import Probes, probes, top_eigenpairs
from loclin.geometry.krylov import Krylov, lanczos, preconditioned_lanczos
from loclin.geometry.subspace import random_subspace
from loclin.search.local_law import second_order
from loclin.seeds import derived
from loclin.studies.context import RunContext
from loclin.studies.directions import batch_gradients
from loclin.studies.families import Directions, Family, family_at
from loclin.studies.krylov.names import EIGENVECTORS, KRYLOV
from loclin.studies.krylov.settings import KrylovSettings
from loclin.studies.names import MINIBATCH, RANDOM
from loclin.tasks.batch import Batch, answer_loss
from loclin.training import minibatches

ADAM_EPSILON = 1e-8  # torch's default


@dataclass(frozen=True, eq=False, kw_only=True)
class Curved:
    """What is known of loss and gradients at θ_D.

    Attributes:
        krylov: K_k(H, g) of the mean loss.
        eigenvalues: the largest of H, in order.
        probes: for trace and Frobenius norm of H.
        families: the bases, each fixed before any step back is taken.
        preconditioned: K_k(M⁻¹H, M⁻¹g), AdamW's own.
    """

    krylov: Krylov
    eigenvalues: Float[np.ndarray, " k"]
    probes: Probes
    families: dict[str, Family]
    preconditioned: Family


def curved_at(ctx: RunContext[KrylovSettings], damaged: Float[Tensor, " D"]) -> Curved:
    """Everything at θ_D; the space is back where it was afterwards.

    g and H are those of the mean loss over the same examples, weighted by tokens. M is what AdamW
    divides by at the beginning: the root of the mean square of the minibatch gradients'
    coordinates, plus its ε.

    Raises:
        LoclinError: eigenvectors that do not converge, a loss that is not finite, attention that
            cannot be switched.
    """
    settings, problem, space = ctx.settings, ctx.problem, ctx.space
    most, seed = settings.most, derived(ctx.seed, "curvature")

    def loss(batch: Batch) -> tuple[Tensor, int]:
        return answer_loss(problem.model, batch)

    shown = problem.batch("recovery", ctx.task)
    examples = chosen(shown, settings.curvature_examples, seed=derived(seed, "examples"))
    chunks = list(examples.chunks(settings.curvature_chunk))
    with space.restored():
        space.write(damaged)
        batches = minibatches(shown, settings.batch, seed=derived(seed, "independent gradients"))
        gradients = batch_gradients(problem, space, [next(batches) for _ in range(most)])
        with second_order(problem, space, loss, chunks, settings.method) as product:
            g = space.gradient(loss, chunks)
            krylov = lanczos(product, g, most)
            start = derived(seed, "eigenvectors")
            values, vectors = top_eigenpairs(product, settings.k, seed=start)
            probed = probes(product, settings.probes, seed=seed)
            scale = (gradients.square().mean(0).sqrt() + ADAM_EPSILON) ** -0.5  # M^{−1/2}
            own = preconditioned_lanczos(product, g, scale, most).basis
    random = random_subspace(most, space.dimension, seed=derived(seed, "random")).basis.to(damaged)
    bases = {
        KRYLOV: _filled(krylov.basis, most),
        EIGENVECTORS: vectors,
        MINIBATCH: gradients,
        RANDOM: random,
    }
    return Curved(
        krylov=krylov,
        eigenvalues=values.cpu().double().numpy(),
        probes=probed,
        families={name: family_at(ctx, damaged, rows) for name, rows in bases.items()},
        preconditioned=family_at(ctx, damaged, _filled(own, most)),
    )


def chosen(data: Batch, count: int, *, seed: int) -> Batch:
    """`count` rows drawn without replacement."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.rows(order[:count])


def _filled(basis: Directions, size: int) -> Directions:
    """A basis of fewer rows, its space being invariant, filled up with zeros: they span nothing."""
    return torch.nn.functional.pad(basis, (0, 0, 0, size - len(basis)))
