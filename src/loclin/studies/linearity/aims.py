"""The directions that the loss is followed along, at the pretrained and at the damaged point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loclin.curvature import top_eigenpairs
from loclin.errors import LoclinError
from loclin.geometry.subspace import Subspace
from loclin.seeds import derived
from loclin.studies.bench import Bench
from loclin.studies.course import recovery
from loclin.studies.directions import norm_matched_noise, task_vectors
from loclin.studies.linearity.config import Config
from loclin.studies.verdict import LABEL

Vector = Float[Tensor, " D"]
Product = Callable[[Tensor], Tensor]
#: D-wide vectors held at once, about: the aims, the points, and the basis in which the eigenvector
#: is searched.
HELD = 40
GRADIENT, MATCHED, RANDOM, TASK = "gradient", "norm-matched noise", "random", "task vector"


@dataclass(frozen=True, eq=False, kw_only=True)
class Aim:
    """A direction to look along.

    Attributes:
        name: of its kind.
        vector: of any length; of its own where it has one.
        whole: whether its length means something: a displacement, which can be taken as a whole.
        on: the task it belongs to, where there is one for every task.
    """

    name: str
    vector: Vector
    whole: bool = False
    on: str | None = None


def common_aims(
    bench: Bench[Config], gradient: Vector, product: Product, *, seed: int
) -> list[Aim]:
    """What is drawn at every point: the gradient, two kinds of noise, the directions of most
    curvature.

    Args:
        bench: of the run, the space standing at the point.
        gradient: of the loss that is followed; the norm-matched noise has its norms, tensor by
            tensor.
        product: v ↦ Hv of the same loss.
        seed: of the noise.
    """
    space = bench.space
    start = space.noise(seed=derived(seed, "lanczos")).to(gradient)
    remedy = "lower --hessian-directions, raise --window-examples or choose another --seed"
    _, top = top_eigenpairs(product, start, bench.config.hessian_directions, remedy=remedy)
    return [
        Aim(name=GRADIENT, vector=gradient),
        Aim(
            name=MATCHED,
            vector=norm_matched_noise(space, gradient[None], seed=derived(seed, "matched"))[0],
        ),
        Aim(name=RANDOM, vector=space.noise(seed=derived(seed, "random"))),
        *(Aim(name=f"top curvature {i}", vector=vector) for i, vector in enumerate(top, 1)),
    ]


def task_aims(bench: Bench[Config], *, seed: int) -> list[Aim]:
    """θ_task − θ₀ of every task, the space standing at θ₀."""
    config, tasks = bench.config, bench.problem.tasks
    vectors = task_vectors(
        bench.problem,
        bench.space,
        len(tasks),
        batch=config.batch,
        lr=config.adamw_lr,
        steps=config.task_vector_steps,
        seed=seed,
    )
    return [
        Aim(name=TASK, vector=v, whole=True, on=task)
        for v, task in zip(vectors, tasks, strict=True)
    ]


def recovery_name(optimiser: str) -> str:
    """The name of a recovery's displacement."""
    return f"recovery, {LABEL[optimiser]}"


def recovery_aims(bench: Bench[Config], damaged: Vector) -> list[Aim]:
    """Of both optimisers' recoveries: θ_T − θ_D; θ_k − θ_D, the sum of the first k updates; vectors
    of the prefix basis Q_k.

    Each the same recovery as in the other studies of this run. The end points and the first k
    updates are read as they are, however updates are kept. Vector j of Q_k is what update j adds to
    the span of those before it (measures §3).
    """
    config, found = bench.config, []
    for optimiser in config.learning_rates():
        ends: dict[int, Tensor] = {}

        def keep(t: int, ends: dict[int, Tensor] = ends) -> None:
            if t in (config.k, config.steps):
                ends[t] = bench.space.read()

        label = LABEL[optimiser]
        way = recovery(
            bench,
            optimiser,
            bench.task,
            damaged,
            config.steps,
            order="recovery",
            exactly=config.k,
            after_step=keep,
        )
        found.append(
            Aim(name=recovery_name(optimiser), vector=ends[config.steps] - damaged, whole=True)
        )
        found.append(
            Aim(name=f"first updates, {label}", vector=ends[config.k] - damaged, whole=True)
        )
        basis = Subspace.spanned_by(way.head).basis
        if len(basis) < config.k:
            raise LoclinError(
                f"expected {config.k} independent first updates by {label}, found {len(basis)}: "
                "lower --k or change the learning rate"
            )
        found += [
            Aim(name=f"prefix {j}, {label}", vector=basis[j - 1]) for j in config.prefix_vectors
        ]
    return found


def chosen_examples(count: int, of: int, *, seed: int) -> list[int]:
    """Which examples of a split are followed, drawn without order."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:count].tolist()
