"""One training loop, and the trajectory that it takes through the parameter space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from loclin.errors import LoclinError
from loclin.geometry.subspace import Subspace
from loclin.parameters import ParameterSpace
from loclin.seeds import derived, seeded
from loclin.tasks.batch import Batch, mean_answer_loss
from loclin.updates import UpdateStorage

OptimiserName = Literal["sgd", "adamw"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectory:
    """T recorded updates from a starting point (measures §3).

    Attributes:
        start: θ before the first step.
        updates: u_t = θ_t − θ_{t−1}, one row per step, or their sketches.
        head: the first updates, whole even where the rest is sketched.
        losses: of each step's batch, before the step (nats per answer token).

    >>> updates = torch.eye(3)
    >>> run = Trajectory(start=torch.zeros(3), updates=updates, head=updates, losses=torch.zeros(3))
    >>> run.displacement, run.future(2)
    (tensor([1., 1., 1.]), tensor([0., 0., 1.]))
    """

    start: Float[Tensor, " D"]
    updates: Float[Tensor, "T columns"]
    head: Float[Tensor, "k D"]
    losses: Float[Tensor, " T"]

    def __repr__(self) -> str:
        losses = [f"{loss:.3g}" for loss in self.losses[[0, -1]].tolist()]
        return f"Trajectory({len(self.updates)} updates, loss {' to '.join(losses)})"

    @property
    def displacement(self) -> Float[Tensor, " columns"]:
        """d = Σ_t u_t."""
        return self.updates.sum(0)

    def future(self, k: int) -> Float[Tensor, " columns"]:
        """f_k = Σ_{t>k} u_t."""
        return self.updates[k:].sum(0)


def minibatches(data: Batch, size: int, *, seed: int) -> Iterator[Batch]:
    """Endless batches, each epoch a new shuffle of all rows; an incomplete last batch is left out.

    Raises `LoclinError` for a batch larger than the split.
    """
    if not 1 <= size <= len(data):
        raise LoclinError(
            f"expected a batch size from 1 to the split's {len(data)} examples, found {size}: "
            "change it"
        )
    return _shuffled(data, size, torch.Generator().manual_seed(seed))


def _shuffled(data: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
    while True:
        order = torch.randperm(len(data), generator=generator)
        for start in range(0, len(data) - size + 1, size):
            yield data.rows(order[start : start + size])


def make_optimiser(name: OptimiserName, space: ParameterSpace, lr: float) -> torch.optim.Optimizer:
    """Plain SGD, or AdamW with torch's moments and no weight decay (a decay is no direction back).

    Fused: one kernel for all tensors saves a tenth of a step on small models.
    """
    if name == "sgd":
        return torch.optim.SGD(space.parameters, lr=lr, fused=True)
    return torch.optim.AdamW(space.parameters, lr=lr, weight_decay=0.0, fused=True)


@contextmanager
def adapter_dropout(model: nn.Module, *, seed: int | None) -> Iterator[None]:
    """Inside, an adapter's dropout is at work, drawn by `seed`; None leaves it off."""
    layers = (m for m in model.modules() if seed is not None and isinstance(m, LoraLayer))
    dropouts = [d for m in layers for d in m.lora_dropout.values() if isinstance(d, nn.Dropout)]
    with seeded(seed) if seed is not None and dropouts else nullcontext():
        try:
            for d in dropouts:
                d.train()
            yield
        finally:
            for d in dropouts:
                d.eval()


def train(
    model: nn.Module,
    space: ParameterSpace,
    batches: Iterator[Batch],
    optimiser: torch.optim.Optimizer,
    steps: int,
    *,
    loss: Callable[[nn.Module, Batch], Tensor] = mean_answer_loss,
    schedule: Callable[[int], float] | None = None,
    confine_to: Subspace | None = None,
    reset_at: int | None = None,
    dropout_seed: int | None = None,
    after_step: Callable[[int], None] | None = None,
) -> Float[Tensor, " T"]:
    """Train in place for T steps and return the loss of each; `LoclinError` if one is not finite.

    Args:
        model: the network; `space` chooses what of it moves.
        space: the coordinates that the optimiser holds.
        batches: one a step.
        optimiser: of `make_optimiser`.
        steps: T.
        loss: of the model on a batch; by default the mean per answer token, in nats.
        schedule: factor on the learning rate at each step, from 0.
        confine_to: project every update on this subspace: u ← Pu (project-and-train, measures §3).
        reset_at: forget the optimiser's state after this many steps.
        dropout_seed: draws the adapter's dropout in every step; without it there is none.
        after_step: called with t = 1..T after each step.

    >>> import loclin
    >>> from loclin.training import make_optimiser, minibatches
    >>> problem = loclin.load("sequences-small")
    >>> space = loclin.ParameterSpace(problem.model)
    >>> batches = minibatches(problem.batch("recovery", "swap"), 16, seed=0)
    >>> sgd = make_optimiser("sgd", space, lr=0.01)
    >>> losses = train(problem.model, space, batches, sgd, 5)
    >>> losses.shape
    torch.Size([5])
    """
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule) if schedule else None
    losses = torch.zeros(steps)
    for t in range(1, steps + 1):
        with adapter_dropout(
            model, seed=None if dropout_seed is None else derived(dropout_seed, t)
        ):
            value = loss(model, next(batches))
        if not torch.isfinite(value):
            raise LoclinError(
                f"expected a finite loss, found {value.item()} at step {t} of {steps}: lower the "
                "learning rate"
            )
        optimiser.zero_grad()
        value.backward()
        before = space.read() if confine_to else None
        optimiser.step()
        if confine_to is not None and before is not None:
            space.write(before + confine_to.project(space.read() - before))
        if scheduler:
            scheduler.step()
        if t == reset_at:
            optimiser.state.clear()
        losses[t - 1] = value.detach()
        if after_step:
            after_step(t)
    optimiser.zero_grad()
    return losses


class Recorder:
    """Keeps the T updates of a training that begins where the space stands.

    Call `keep` after each step. The first `head` updates are kept whole even where the rest is
    sketched.
    """

    def __init__(
        self,
        space: ParameterSpace,
        steps: int,
        *,
        storage: UpdateStorage | None = None,
        head: int = 0,
    ) -> None:
        self._space, self._storage = space, storage or UpdateStorage()
        self._start, self._last = space.read(), space.read()
        self._updates = self._head = self._storage.allocate(space, steps)
        if self._storage.store == "sketch":
            self._head = self._storage.allocate(space, min(head, steps), full=True)

    def keep(self, t: int) -> None:
        """Keep u_t, t = 1..T."""
        now = self._space.read()
        torch.sub(now, self._last, out=self._last)  # the update, where the last point was
        if t <= len(self._head):
            self._head[t - 1] = self._last
        if self._storage.store == "sketch":
            self._updates[t - 1] = self._storage.sketch.of(self._space.by_tensor(self._last))
        self._last.copy_(now)

    def trajectory(self, losses: Float[Tensor, " T"]) -> Trajectory:
        """What was kept, with the loss of each step."""
        return Trajectory(start=self._start, updates=self._updates, head=self._head, losses=losses)


def record(
    model: nn.Module,
    space: ParameterSpace,
    batches: Iterator[Batch],
    optimiser: torch.optim.Optimizer,
    steps: int,
    *,
    storage: UpdateStorage | None = None,
    head: int = 0,
    reset_at: int | None = None,
    dropout_seed: int | None = None,
    after_step: Callable[[int], None] | None = None,
) -> Trajectory:
    """Train as `train` does, arguments and errors included, and keep every update (measures §3).

    In memory, or as `storage` says; the first `head` whole even where the rest is sketched.

    >>> import loclin
    >>> from loclin.training import make_optimiser, minibatches
    >>> problem = loclin.load("sequences-small")
    >>> space = loclin.ParameterSpace(problem.model)
    >>> batches = minibatches(problem.batch("recovery", "swap"), 16, seed=0)
    >>> sgd = make_optimiser("sgd", space, lr=0.01)
    >>> run = record(problem.model, space, batches, sgd, 5)
    >>> bool(torch.allclose(run.start + run.displacement, space.read(), atol=1e-6))
    True
    """
    recorder = Recorder(space, steps, storage=storage, head=head)

    def keep(t: int) -> None:
        recorder.keep(t)
        if after_step:
            after_step(t)

    losses = train(
        model,
        space,
        batches,
        optimiser,
        steps,
        reset_at=reset_at,
        dropout_seed=dropout_seed,
        after_step=keep,
    )
    return recorder.trajectory(losses)
