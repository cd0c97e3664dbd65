"""The chosen tensors of a network as one point of R^D."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loclin.errors import LoclinError
from loclin.geometry.gramian import norm
from loclin.seeds import derived

T = TypeVar("T")
#: Of a batch: the loss summed over its items, a scalar with a graph, and how many items those are
#: (examples or tokens). Sums add up without bias over ragged batches. A mean alone, without a
#: count, is the sum of one item.
SummedLoss = Callable[[T], tuple[Tensor, int] | Tensor]


class ParameterSpace:
    """Trainable tensors of a module as one vector θ in R^D: their values flattened, end to end.

    Tied tensors count once. The space holds the module's own parameters, so writing a point changes
    the module. Vectors lie on the device of the first tensor.

    Args:
        module: any `torch.nn.Module`.
        pattern: shell-style pattern of parameter names (`*attn*`), or several separated by commas.

    Attributes:
        names, sizes: of the tensors, in the module's order.
        dimension: D.

    Raises:
        LoclinError: the pattern chooses nothing trainable, or tensors of different dtypes; by
            methods, a vector of another length than D.

    >>> space = ParameterSpace(nn.Linear(3, 2), "weight")
    >>> space.dimension, space.names
    (6, ('weight',))
    """

    def __init__(self, module: nn.Module, pattern: str = "*") -> None:
        wanted = [p.strip() for p in pattern.split(",")]
        trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._tensors = {
            n: p for n, p in trainable.items() if any(fnmatchcase(n, w) for w in wanted)
        }
        if not self._tensors:
            some = ", ".join(list(trainable)[:8]) or "none"
            raise LoclinError(
                f"expected a pattern that matches a trainable tensor, found {pattern!r}: "
                f"the module has {some}{', ...' if len(trainable) > 8 else ''}"
            )
        kinds = {p.dtype for p in self._tensors.values()}
        if len(kinds) > 1:
            raise LoclinError(
                f"expected tensors of one dtype, found {sorted(map(str, kinds))}: narrow the "
                "pattern"
            )
        self._home = next(iter(self._tensors.values())).device
        self.names = tuple(self._tensors)
        self.sizes = tuple(p.numel() for p in self._tensors.values())
        self.dimension = sum(self.sizes)
        self._spare: list[Tensor] | None = None

    def __repr__(self) -> str:
        kind = str(self.parameters[0].dtype).removeprefix("torch.")
        return f"ParameterSpace(D = {self.dimension} in {len(self.names)} tensors, {kind})"

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The module's own tensors, in order."""
        return list(self._tensors.values())

    def read(self) -> Float[Tensor, " D"]:
        """A copy of the current point."""
        return torch.cat([p.detach().reshape(-1).to(self._home) for p in self.parameters])

    @torch.no_grad()
    def write(self, point: Float[Tensor, " D"]) -> None:
        """Move the module to a point, by copy; errors as in `by_tensor`."""
        for parameter, values in zip(self.parameters, self.by_tensor(point).values(), strict=True):
            parameter.copy_(values)

    @torch.no_grad()
    def add(self, direction: Float[Tensor, " D"], scale: float = 1.0) -> None:
        """θ ← θ + scale·direction. To come back, use `restored`, never the opposite step."""
        pieces = self.by_tensor(direction).values()
        for parameter, values in zip(self.parameters, pieces, strict=True):
            parameter.add_(values.to(parameter.device), alpha=scale)

    def by_tensor(self, vector: Float[Tensor, " D"]) -> dict[str, Tensor]:
        """Views of a vector in the tensors' shapes; `LoclinError` for another length than D."""
        if vector.shape != (self.dimension,):
            raise LoclinError(
                f"expected a vector of {self.dimension} coordinates, found shape "
                f"{tuple(vector.shape)}"
            )
        pieces = vector.split(list(self.sizes))
        return {n: v.view(p.shape) for (n, p), v in zip(self._tensors.items(), pieces, strict=True)}

    def flat(
        self, pieces: Iterable[Tensor | None], into: Float[Tensor, " D"] | None = None
    ) -> Float[Tensor, " D"]:
        """Tensor-shaped pieces end to end, detached; zeros for None."""
        if into is not None:
            for view, piece in zip(self.by_tensor(into).values(), pieces, strict=True):
                view.zero_() if piece is None else view.copy_(piece.detach())
            return into
        filled = [
            torch.zeros_like(p) if g is None else g
            for g, p in zip(pieces, self.parameters, strict=True)
        ]
        return torch.cat([g.detach().reshape(-1).to(self._home) for g in filled])

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Afterwards every tensor is bit for bit what it was, whatever the body does or raises.

        By copy: adding a step and subtracting it again drifts.
        """
        saved, self._spare = self._spare or [torch.empty_like(p) for p in self.parameters], None
        with torch.no_grad():
            for values, parameter in zip(saved, self.parameters, strict=True):
                values.copy_(parameter)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, values in zip(self.parameters, saved, strict=True):
                    parameter.copy_(values)
            self._spare = saved  # for a large model, new room takes longer than filling it

    def noise(self, *, seed: int, into: Float[Tensor, " D"] | None = None) -> Float[Tensor, " D"]:
        """z ~ N(0, I_D), a function of (seed, tensor name) alone; written to `into` where that is
        given.

        Each tensor has a stream of its own. Where one stream starts anew for every tensor, as in
        public search code, tensors of one shape get the same noise and the law of random search
        does not hold.
        """
        drawn = (
            torch.randn(p.shape, generator=torch.Generator().manual_seed(derived(seed, n)))
            for n, p in self._tensors.items()
        )
        return self.flat(drawn, self.zeros() if into is None else into)

    def norm(self) -> float:
        """‖θ‖, tensor by tensor, in float64: a sum of a hundred million squares loses digits."""
        return math.hypot(*(norm(p.detach().flatten()) for p in self.parameters))

    def zeros(self) -> Float[Tensor, " D"]:
        """A vector of zeros."""
        return torch.zeros(self.dimension, dtype=self.parameters[0].dtype, device=self._home)

    def gradient(
        self, loss: SummedLoss[T], batches: Iterable[T], *, into: Float[Tensor, " D"] | None = None
    ) -> Float[Tensor, " D"]:
        """g = ∇ (Σ_b loss_b / Σ_b count_b): the mean over items, however ragged the batches.

        Written to `into` where that is given: for a large model, new room takes longer than filling
        it. Raises `LoclinError` for no batches, one that is not in a list, no items, or a loss that
        is not finite.
        """
        if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
            raise LoclinError(
                f"expected a list of batches, found one {type(batches).__name__}: give [batch]"
            )
        total, count = self.zeros() if into is None else into.zero_(), 0
        with self.gradients_in(total):
            for batch in batches:
                value, items = summed(loss(batch))
                torch.autograd.backward(finite_loss(value), inputs=self.parameters)
                count += items
        some_items(count)
        return total.div_(count)

    @contextmanager
    def gradients_in(self, vector: Float[Tensor, " D"]) -> Iterator[None]:
        """Inside, backward passes add gradients to this vector, tensor by tensor as they are made:
        all of them at once would be a second one.
        """
        before, views = [p.grad for p in self.parameters], self.by_tensor(vector).values()
        for parameter, view in zip(self.parameters, views, strict=True):
            parameter.grad = view.to(parameter.device)  # the view itself, on the same device
        try:
            yield
        finally:
            for parameter, view, old in zip(self.parameters, views, before, strict=True):
                if parameter.grad is not None and parameter.device != view.device:
                    view.copy_(parameter.grad)
                parameter.grad = old


def summed(result: tuple[Tensor, int] | Tensor) -> tuple[Tensor, int]:
    """The sum and the number of items of what a loss returned; a scalar is the sum of one item.

    Raises:
        LoclinError: neither a scalar nor a pair.

    >>> summed(torch.tensor(2.0)), summed((torch.tensor(6.0), 3))
    ((tensor(2.), 1), (tensor(6.), 3))
    """
    if isinstance(result, Tensor) and result.ndim == 0:
        return result, 1
    if isinstance(result, tuple) and len(result) == 2:
        return result
    found = (
        f"a tensor of shape {tuple(result.shape)}" if isinstance(result, Tensor) else repr(result)
    )
    raise LoclinError(
        f"expected a loss that returns a scalar, or (sum, number of items), found {found}: take "
        "the sum or the mean over the batch"
    )


def finite_loss(loss: Tensor) -> Tensor:
    """The same, or `LoclinError`."""
    if not torch.isfinite(loss):
        raise LoclinError(
            f"expected a finite loss, found {loss.item()}: lower the learning rate or check the "
            "data"
        )
    return loss


def some_items(count: int) -> None:
    """`LoclinError` where there are none."""
    if count == 0:
        raise LoclinError(
            "expected at least one batch with items to average over, found none: give more data"
        )
