"""The chosen tensors of a network as one point of R^D: read, write, restore bit for bit, perturb,
differentiate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loclin.errors import LoclinError
from loclin.seeds import derived

T = TypeVar("T")
#: A loss summed over the items of one batch, and how many items those were: sums add up without
#: bias over ragged batches.
SummedLoss = Callable[[T], tuple[Tensor, int]]


class ParameterSpace:
    """Trainable tensors of a module, seen as one vector θ in R^D (their values flattened and laid
    end to end).

    Tied tensors count once. The space holds the module's own parameters: writing a point changes
    the module.

    Args:
        module: any `torch.nn.Module`.
        pattern: shell-style pattern of parameter names ("*attn*"); several are separated by commas.
            The default takes every trainable parameter.

    Attributes:
        names: the chosen tensors, in the module's order.
        dimension: D.

    Raises:
        LoclinError: the pattern chooses nothing trainable, or tensors of different dtypes.

    A model spread over several devices is read to, and written from, the device of its first chosen
    tensor.

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
            raise LoclinError(
                f"expected a pattern that matches a trainable tensor, found {pattern!r}: "
                "the module has "
                f"{', '.join(list(trainable)[:8]) or 'none'}{', ...' if len(trainable) > 8 else ''}"
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

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The module's own tensors, in order."""
        return list(self._tensors.values())

    def read(self) -> Float[Tensor, " D"]:
        """A copy of the current point."""
        return torch.cat([p.detach().reshape(-1).to(self._home) for p in self.parameters])

    @torch.no_grad()
    def write(self, point: Float[Tensor, " D"]) -> None:
        """Move the module to a point, by copy.

        Raises:
            LoclinError: the vector has another length than D.
        """
        for parameter, values in zip(self.parameters, self.by_tensor(point).values(), strict=True):
            parameter.copy_(values)

    @torch.no_grad()
    def add(self, direction: Float[Tensor, " D"], scale: float = 1.0) -> None:
        """Step along a direction: θ ← θ + scale·direction. To come back, use `restored`, never the
        opposite step.
        """
        for parameter, values in zip(
            self.parameters, self.by_tensor(direction).values(), strict=True
        ):
            parameter.add_(values.to(parameter.device), alpha=scale)

    def by_tensor(self, vector: Float[Tensor, " D"]) -> dict[str, Tensor]:
        """Views of a vector of this space, one per tensor, in the tensors' shapes."""
        if vector.shape != (self.dimension,):
            raise LoclinError(
                f"expected a vector of {self.dimension} coordinates, found shape "
                f"{tuple(vector.shape)}"
            )
        pieces = vector.split(list(self.sizes))
        return {n: v.view(p.shape) for (n, p), v in zip(self._tensors.items(), pieces, strict=True)}

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Whatever the body does to the point, or raises: afterwards every tensor is bit for bit
        what it was.

        Restoring is a copy. Adding a step and subtracting it again drifts, in low precision by a
        large part of the step.
        """
        saved = [p.detach().clone() for p in self.parameters]
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, values in zip(self.parameters, saved, strict=True):
                    parameter.copy_(values)

    def noise(self, *, seed: int) -> Float[Tensor, " D"]:
        """z ~ N(0, I_D), a function of (seed, tensor name) alone.

        Each tensor has a stream of its own. Public search code re-seeds one stream for every
        tensor, which gives tensors of one shape the same noise; the Gaussian law of random search
        does not hold then.
        """
        return torch.cat(
            [_tensor_noise(seed, n, p).reshape(-1).to(self._home) for n, p in self._tensors.items()]
        )

    def gradient(
        self, loss: SummedLoss[T], batches: Iterable[T], *, into: Float[Tensor, " D"] | None = None
    ) -> Float[Tensor, " D"]:
        """g = ∇ (Σ_b loss_b / Σ_b count_b): the mean over items, however ragged the batches.

        Args:
            loss: summed over the items of a batch, and how many those are.
            batches: what the mean is over.
            into: where to write it: for many gradients of a large model, room for each anew takes
                longer than to fill it.

        Raises:
            LoclinError: no batches, no items, or a loss that is not finite.
        """
        total, count = None, 0
        for batch in batches:
            value, items = loss(batch)
            pieces = torch.autograd.grad(_finite(value), self.parameters, allow_unused=True)
            found = self._flat(pieces, into if total is None else None)
            total = found if total is None else total.add_(found)
            count += items
        _some(count)
        assert total is not None
        return total.div_(count)

    def hessian_product(
        self, loss: SummedLoss[T], batches: Iterable[T], vector: Float[Tensor, " D"]
    ) -> Float[Tensor, " D"]:
        """Hv of the same mean loss, by differentiating gᵀv (reverse over reverse; measures §8).

        The model must allow second derivatives: with transformers, inside
        `models.twice_differentiable`.
        """
        total, count = torch.zeros_like(vector), 0
        for batch in batches:
            value, items = loss(batch)
            first = torch.autograd.grad(
                _finite(value), self.parameters, create_graph=True, allow_unused=True
            )
            slope = sum(
                (g * v.to(g.device)).sum().to(self._home)
                for g, v in zip(first, self.by_tensor(vector).values(), strict=True)
                if g is not None
            )
            assert isinstance(slope, Tensor)
            total += self._flat(torch.autograd.grad(slope, self.parameters, allow_unused=True))
            count += items
        return total / _some(count)

    def _flat(self, pieces: Iterable[Tensor | None], into: Tensor | None = None) -> Tensor:
        """Lay tensor-shaped pieces end to end, zeros where a tensor took no part."""
        if into is not None:
            for view, piece in zip(self.by_tensor(into).values(), pieces, strict=True):
                view.zero_() if piece is None else view.copy_(piece.detach())
            return into
        filled = [
            torch.zeros_like(p) if g is None else g
            for g, p in zip(pieces, self.parameters, strict=True)
        ]
        return torch.cat([g.detach().reshape(-1).to(self._home) for g in filled])


def _tensor_noise(seed: int, name: str, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(derived(seed, name))
    return torch.randn(like.shape, generator=generator).to(like)


def _finite(loss: Tensor) -> Tensor:
    if not torch.isfinite(loss):
        raise LoclinError(
            f"expected a finite loss, found {loss.item()}: lower the learning rate or check the "
            "data"
        )
    return loss


def _some(count: int) -> int:
    if count == 0:
        raise LoclinError(
            "expected at least one batch with items to average over, found none: give more data"
        )
    return count
