"""The directions that the loss is followed along, at the pretrained and at the damaged point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from loclin.curvature import top_eigenpairs
from loclin.errors import LoclinError
from loclin.geometry.krylov import Product
from loclin.geometry.subspace import Subspace
from loclin.seeds import derived
from loclin.studies.context import RunContext
from loclin.studies.damage import recovery
from loclin.studies.directions import norm_matched_noise, task_vectors
from loclin.studies.linearity.names import FIRST, GRADIENT, MATCHED, RANDOM, RECOVERY, TASK
from loclin.studies.linearity.settings import LinearitySettings
from loclin.studies.names import OPTIMISERS

Vector = Float[Tensor, " D"]
#: D-wide vectors held at once, about: the directions, the points, and the basis in which
#: eigenvectors are searched.
HELD = 40


@dataclass(frozen=True, eq=False, kw_only=True)
class NamedDirection:
    """A direction to follow the loss along.

    Attributes:
        name: of its kind.
        vector: of any length.
        whole: whether that length means something: a displacement, which can be taken as a whole.
        on: the task it belongs to, where there is one for every task.
    """

    name: str
    vector: Vector
    whole: bool = False
    on: str | None = None


def common_directions(
    ctx: RunContext[LinearitySettings], gradient: Vector, product: Product, *, seed: int
) -> list[NamedDirection]:
    """What every point has: the gradient, noise with its norms by tensor, noise, and the directions
    of most curvature, by products with H of the same loss.
    """
    space = ctx.space
    start = space.noise(seed=derived(seed, "lanczos")).to(gradient)
    remedy = "lower --hessian-directions, raise --window-examples or choose another --seed"
    _, top = top_eigenpairs(product, ctx.settings.hessian_directions, start=start, remedy=remedy)
    (matched,) = norm_matched_noise(space, gradient[None], seed=derived(seed, "matched"))
    random = space.noise(seed=derived(seed, "random"))
    named = {GRADIENT: gradient, MATCHED: matched, RANDOM: random}
    named |= {f"top curvature {i}": vector for i, vector in enumerate(top, 1)}
    return [NamedDirection(name=name, vector=vector) for name, vector in named.items()]


def task_directions(ctx: RunContext[LinearitySettings], *, seed: int) -> list[NamedDirection]:
    """θ_task − θ₀ of every task, the space standing at θ₀."""
    settings, tasks = ctx.settings, ctx.problem.tasks
    vectors = ctx.kept_vectors(
        "task vectors",
        lambda: task_vectors(
            ctx.problem,
            ctx.space,
            len(tasks),
            batch=settings.batch,
            lr=settings.adamw_lr,
            steps=settings.task_vector_steps,
            seed=seed,
        ),
    )
    pairs = zip(vectors, tasks, strict=True)
    return [NamedDirection(name=TASK, vector=v, whole=True, on=task) for v, task in pairs]


def recovery_directions(
    ctx: RunContext[LinearitySettings], damaged: Vector
) -> Iterator[NamedDirection]:
    """Of both optimisers' recoveries: θ_T − θ_D; θ_k − θ_D, the sum of the first k updates; vectors
    of the prefix basis Q_k.

    Each the same recovery as in the other studies of this run, its points read as they are. Vector
    j of Q_k is what update j adds to the span of those before it (measures §3).
    """
    settings, k = ctx.settings, ctx.settings.k
    for optimiser in settings.learning_rates():
        way = partial(_recovered, ctx, optimiser, damaged)
        end, after_k, *head = ctx.kept_vectors(f"recovery by {optimiser}", way)
        yield NamedDirection(name=RECOVERY[optimiser], vector=end - damaged, whole=True)
        yield NamedDirection(name=FIRST[optimiser], vector=after_k - damaged, whole=True)
        basis, label = Subspace.spanned_by(torch.stack(head)).basis, OPTIMISERS[optimiser]
        if len(basis) < k:
            raise LoclinError(
                f"expected {k} independent first updates by {label}, found {len(basis)}: lower --k "
                "or change the learning rate"
            )
        for j in settings.prefix_vectors:
            yield NamedDirection(name=f"prefix {j}, {label}", vector=basis[j - 1])


def _recovered(
    ctx: RunContext[LinearitySettings], optimiser: str, damaged: Vector
) -> Float[Tensor, "k_plus_2 D"]:
    """θ_T and θ_k of a recovery, and its first k updates."""
    k, steps, ends = ctx.settings.k, ctx.settings.steps, dict[int, Tensor]()

    def keep(t: int) -> None:
        if t in (k, steps):
            ends[t] = ctx.space.read()

    way = recovery(
        ctx, optimiser, ctx.task, damaged, steps, order="recovery", head=k, after_step=keep
    )
    return torch.stack([ends[steps], ends[k], *way.head[:k]])
