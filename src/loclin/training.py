"""One training loop, and the trajectory it took: every update as a vector of the parameter space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loclin.dropout import adapter_dropout
from loclin.errors import LoclinError
from loclin.geometry.subspace import Subspace
from loclin.parameters import ParameterSpace
from loclin.seeds import derived
from loclin.tasks.batch import Batch, mean_answer_loss
from loclin.updates import Keeping

OptimiserName = Literal["sgd", "adamw"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectory:
    """T recorded updates from a starting point.

    Attributes:
        start: the point before the first update.
        updates: u_t = θ_t − θ_{t−1}, one row per step; their sketches where so kept.
        head: the first updates exactly, however the rest is kept.
        losses: training loss of each step's batch, before the step (nats per answer token).
    """

    start: Float[Tensor, " D"]
    updates: Float[Tensor, "T columns"]
    head: Float[Tensor, "k D"]
    losses: Float[Tensor, " T"]

    @property
    def displacement(self) -> Float[Tensor, " columns"]:
        """d = Σ_t u_t."""
        return self.updates.sum(0)

    def future(self, k: int) -> Float[Tensor, " columns"]:
        """f_k = Σ_{t>k} u_t."""
        return self.updates[k:].sum(0)


def minibatches(data: Batch, size: int, *, seed: int) -> Iterator[Batch]:
    """Endless batches, each epoch a new shuffle of all rows; an incomplete last batch is left out.

    Raises:
        LoclinError: a batch larger than the split.
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
    """Plain SGD (no momentum), or AdamW with torch's moments and no weight decay (a decay is no
    recovery direction).

    Fused: one kernel for all tensors, which on small models saves a tenth of a step.
    """
    if name == "sgd":
        return torch.optim.SGD(space.parameters, lr=lr, fused=True)
    return torch.optim.AdamW(space.parameters, lr=lr, weight_decay=0.0, fused=True)


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
    """Train in place for `steps` steps.

    Args:
        model: the network; `space` chooses what of it moves.
        space: the trained coordinates, the same that the optimiser holds.
        batches: one batch a step.
        optimiser: of `make_optimiser`.
        steps: T.
        loss: of the model on a batch, the mean loss per answer token by default.
        schedule: factor on the learning rate as a function of the step (from 0).
        confine_to: project every update on this subspace before it is taken: u ← Pu.
        reset_at: forget the optimiser's state after this many steps.
        dropout_seed: draw the adapter's dropout by it in every step; without it there is none.
        after_step: called with t = 1..T after each step.

    Returns:
        The loss of each step.

    Raises:
        LoclinError: the loss is not finite.
    """
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule) if schedule else None
    losses = torch.zeros(steps)
    for t in range(1, steps + 1):
        with (
            nullcontext()
            if dropout_seed is None
            else adapter_dropout(model, seed=derived(dropout_seed, t))
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
    """Keeps the updates of a training that begins where the space stands: call `keep` after each
    step.

    Args:
        space: the trained coordinates.
        steps: T.
        keeping: where the updates go; memory by default.
        exactly: how many of the first updates are kept exactly even where the rest is sketched.
    """

    def __init__(
        self, space: ParameterSpace, steps: int, *, keeping: Keeping | None = None, exactly: int = 0
    ) -> None:
        self._space, self._keeping = space, keeping or Keeping()
        self._start, self._last = space.read(), space.read()
        self._updates = self._keeping.rows(space, steps)
        sketched = self._keeping.store == "sketch"
        self._head = (
            self._keeping.rows(space, min(exactly, steps), exact=True)
            if sketched
            else self._updates
        )

    def keep(self, t: int) -> None:
        """Keep u_t, t = 1..T."""
        now = self._space.read()
        torch.sub(now, self._last, out=self._last)  # the update, where the last point was
        if t <= len(self._head):
            self._head[t - 1] = self._last
        if self._keeping.store == "sketch":
            self._updates[t - 1] = self._keeping.sketch.of(self._space.by_tensor(self._last))
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
    keeping: Keeping | None = None,
    exactly: int = 0,
    reset_at: int | None = None,
    dropout_seed: int | None = None,
    after_step: Callable[[int], None] | None = None,
) -> Trajectory:
    """Train as `train` does and keep every update.

    Args:
        model, space, batches, optimiser, steps, reset_at, dropout_seed, after_step: as in `train`,
        whose errors it raises. keeping: where the updates go; memory by default. exactly: how many
        of the first updates are kept exactly even where the rest is sketched.
    """
    recorder = Recorder(space, steps, keeping=keeping, exactly=exactly)

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
