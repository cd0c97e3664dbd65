"""Several candidates in one forward pass: every block of rows sees the weights of its own
candidate.

Inside, the modules that hold the chosen tensors are asked by a forward of their own: with a stack
of whole weights and a batched product, or, for low-rank noise of a matrix, with the base weight
that all share and a thin product beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from loclin.errors import LoclinError
from loclin.parameters import ParameterSpace
from loclin.search.candidate import Candidate, step
from loclin.search.noise import Drawing, LowRankNoise, Noise
from loclin.search.normals import normals

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Thin:
    """C low-rank steps of one matrix: step c is left[c] right[c]ᵀ.

    Attributes:
        left: one row for each row of the matrix.
        right: one row for each of its columns.
    """

    left: Float[Tensor, "C m r"]
    right: Float[Tensor, "C n r"]

    def scaled(self, scales: Sequence[float]) -> Thin:
        """The steps sign·σ·E of factors as they are drawn."""
        each = self.left.new_tensor(scales)[:, None, None] / math.sqrt(self.left.shape[2])
        return Thin(left=self.left * each, right=self.right)


#: The C values of one tensor, one after the other, or C thin steps from its base.
Stack = Tensor | Thin


@dataclass(eq=False, kw_only=True)
class _Rows:
    """How many candidates there are, and how many rows each has in the pass that is running."""

    candidates: int
    each: int = 0

    def count(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a pass of the model: how many rows it is given."""
        shown = args[0] if args else kwargs["input_ids"]
        self.each, over = divmod(len(shown), self.candidates)
        if over or not self.each:
            raise LoclinError(
                f"expected a multiple of {self.candidates} rows, found {len(shown)}: repeat all "
                "rows for each candidate"
            )

    def split(self, x: Tensor) -> Tensor:
        """Rows by candidate: [C·n, ...] → [C, n, ...]; the one row that all share → [C, n, ...]
        too.
        """
        if len(x) == 1 and self.candidates * self.each > 1:  # positions
            return x.expand(self.candidates, self.each, *x.shape[1:])
        if len(x) != self.candidates * self.each:
            raise LoclinError(
                f"expected {self.candidates * self.each} rows in every module, found {len(x)}: "
                "score one candidate at a time"
            )
        return x.view(self.candidates, self.each, *x.shape[1:])


def why_not(model: nn.Module, space: ParameterSpace, noise: Noise) -> str | None:
    """Why candidates of this space cannot be stacked: the first tensor whose module cannot, in
    words. None where all can.

    Linear maps, transformers' `Conv1D`, embeddings and layer norms can, LoRA factors among them,
    and every module with a single weight that meets its rows elementwise, which is tried out (RMS
    norms).
    """
    half = next(
        (n for n, p in zip(space.names, space.parameters, strict=True) if p.dtype.itemsize < 4),
        None,
    )
    if noise.kind == "lowrank" and half is not None:
        return f"{half} is in half precision, which would round low-rank steps one at a time but not in a stack"
    owners = _owners(model, space)
    for name in space.names:
        if not owners[name]:
            return f"{name} is in no module of the model"
        for module, _ in owners[name]:
            if not _stackable(module):
                return (
                    f"{name} is in a {type(module).__name__}, which takes one weight for all rows"
                )
    return None


@contextmanager
def stacked(
    model: nn.Module, space: ParameterSpace, noise: Noise, candidates: Sequence[Candidate]
) -> Iterator[None]:
    """Inside, the model takes C·n rows, and rows c·n to (c + 1)·n − 1 see the weights of candidate
    c. See `Stacking`.
    """
    with Stacking(model, space, noise).of(candidates):
        yield


class Stacking:
    """Stacks candidates of one space, one group after the other, around where its tensors stand.

    Args:
        model: whose tensors they are.
        space: the chosen tensors.
        noise: how candidates are made.

    Raises:
        LoclinError: a tensor that cannot be stacked (`why_not`).
    """

    def __init__(self, model: nn.Module, space: ParameterSpace, noise: Noise) -> None:
        if (reason := why_not(model, space, noise)) is not None:
            raise LoclinError(
                f"expected tensors that can be stacked, found that {reason}: score one candidate "
                "at a time"
            )
        self._model, self._owners = model, _owners(model, space)
        self._tensors = {n: p.detach() for n, p in zip(space.names, space.parameters, strict=True)}
        self._drawing = Drawing(noise, {n: tuple(p.shape) for n, p in self._tensors.items()})

    @contextmanager
    def of(self, candidates: Sequence[Candidate]) -> Iterator[None]:
        """Inside, the model takes C·n rows, and rows c·n to (c + 1)·n − 1 see the weights of
        candidate c. Without gradients.

        No tensor is written: the chosen ones stay at the base.

        Raises:
            LoclinError: no candidates; inside, rows that are no multiple of C.
        """
        if not candidates:
            raise LoclinError("expected at least one candidate to stack, found none: give more")
        rows, held = _Rows(candidates=len(candidates)), dict[nn.Module, dict[str, Stack]]()
        for name, stack in self._stacks(candidates).items():
            for module, attribute in self._owners[name]:
                held.setdefault(module, {})[attribute] = stack
        with ExitStack() as undo:
            undo.callback(
                self._model.register_forward_pre_hook(rows.count, with_kwargs=True).remove
            )
            for module, stacks in held.items():
                undo.callback(vars(module).pop, "forward", None)
                vars(module)["forward"] = _forward(module, stacks, rows)
            yield

    @torch.no_grad()
    def _stacks(self, candidates: Sequence[Candidate]) -> dict[str, Stack]:
        """Every tensor's stack, filled candidate by candidate with the very values that
        `Perturbed.place` would write.
        """
        stacks: dict[str, Stack] = {}
        for c, candidate in enumerate(candidates):
            for name, z in self._drawing.of(candidate.seed):
                if name not in stacks:
                    stacks[name] = _empty(self._tensors[name], z, len(candidates))
                stack = stacks[name]
                if isinstance(stack, Thin):
                    assert isinstance(z, LowRankNoise)
                    stack.left[c], stack.right[c] = z.left, z.right
                else:
                    step(self._tensors[name], z, candidate.scale, stack[c])
        return {
            n: s.scaled([c.scale for c in candidates]) if isinstance(s, Thin) else s
            for n, s in stacks.items()
        }


def _empty(base: Tensor, z: Tensor | LowRankNoise, count: int) -> Stack:
    if isinstance(z, LowRankNoise):
        return Thin(
            left=base.new_empty(count, *z.left.shape), right=base.new_empty(count, *z.right.shape)
        )
    return base.new_empty(count, *base.shape)


def _owners(model: nn.Module, space: ParameterSpace) -> dict[str, list[tuple[nn.Module, str]]]:
    """The modules that hold each chosen tensor, and under which attribute: several where it is
    tied.
    """
    names = {id(p): n for n, p in zip(space.names, space.parameters, strict=True)}
    found: dict[str, list[tuple[nn.Module, str]]] = {n: [] for n in space.names}
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in names:
                found[names[id(parameter)]].append((module, attribute))
    return found


def _stackable(module: nn.Module) -> bool:
    if "forward" in vars(module):  # something else has put its own there
        return False
    if isinstance(module, nn.Embedding):
        return module.max_norm is None and _looked_up(module)
    if isinstance(module, nn.Linear | Conv1D | nn.LayerNorm):
        plain = {nn.Linear.forward, Conv1D.forward, nn.LayerNorm.forward}
        wide = isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1
        return type(module).forward in plain and not wide
    return _elementwise(module)


@torch.no_grad()
def _elementwise(module: nn.Module) -> bool:
    """Whether a module's only weight meets the last dimension alone, so that a stack of them can:
    tried on two weights.
    """
    own = dict(module.named_parameters())
    if list(own) != ["weight"] or own["weight"].ndim != 1:
        return False
    weight = own["weight"]
    weights = normals(weight.numel() * 2, 0, "weights").view(2, -1).to(weight)
    x = normals(weight.numel() * 6, 0, "inputs").view(2, 3, -1).to(weight)
    try:
        one = torch.stack(
            [_with_weight(module, w, part) for w, part in zip(weights, x, strict=True)]
        )
        both = _with_weight(module, weights[:, None], x)
    except (RuntimeError, TypeError, ValueError):
        return False
    return both.shape == one.shape and torch.allclose(
        both.double(), one.double(), rtol=1e-2, atol=1e-2
    )


@torch.no_grad()
def _looked_up(module: nn.Embedding) -> bool:
    """Whether a module gives the rows that are asked of its weight, all times one number (Gemma's
    do): tried on two weights.
    """
    if type(module).forward is nn.Embedding.forward:
        return True
    rows = (
        normals(module.num_embeddings * 3, 0, "rows").view(-1, 3).to(module.weight)
    )  # so that no index is beyond it
    ids = torch.tensor([[1, 0]], device=rows.device)
    try:
        times, found = (
            _with_weight(module, torch.ones_like(rows[:, :1]), ids),
            _with_weight(module, rows, ids),
        )
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):
        return False
    expected = times.flatten()[0] * rows[ids]
    return found.shape == expected.shape and torch.allclose(
        found.double(), expected.double(), rtol=1e-2, atol=1e-2
    )


def _with_weight(module: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """The module's own forward with another weight in its place."""
    before = module._parameters["weight"]
    try:
        module._parameters["weight"] = weight  # type: ignore[assignment]
        found = type(module).forward(module, x)
        assert isinstance(found, Tensor)
        return found
    finally:
        module._parameters["weight"] = before


def _forward(module: nn.Module, stack: Mapping[str, Stack], rows: _Rows) -> Forward:
    """The forward of a module whose tensors are stacked."""
    if isinstance(module, nn.Embedding):
        return _embedding(module, stack["weight"], rows)
    bias = stack.get("bias")
    assert not isinstance(bias, Thin)
    if isinstance(module, nn.LayerNorm):
        weight = stack.get("weight")
        assert not isinstance(weight, Thin)
        return _layer_norm(module, weight, bias, rows)
    if isinstance(module, nn.Linear | Conv1D):
        return _linear(module, stack.get("weight"), bias, rows)
    whole = stack["weight"]
    assert isinstance(whole, Tensor)

    def scaled(x: Tensor) -> Tensor:
        parts = rows.split(x)
        return _with_weight(module, _facing(whole, parts), parts).reshape(x.shape)

    return scaled


def _linear(
    module: nn.Linear | Conv1D, weight: Stack | None, bias: Tensor | None, rows: _Rows
) -> Forward:
    """y = xW + b with W and b of every candidate, or xW + x·left·rightᵀ + b with W of all."""
    turned = isinstance(module, nn.Linear)  # its weight is [out, in]

    def forward(x: Tensor) -> Tensor:
        parts = rows.split(x)
        flat = parts.reshape(rows.candidates, -1, x.shape[-1])
        if isinstance(weight, Tensor):
            found = torch.bmm(flat, weight.mT if turned else weight)
        else:
            own = module.weight.T if turned else module.weight
            found = flat @ own
            if weight is not None:
                into, out = (weight.right, weight.left) if turned else (weight.left, weight.right)
                found = found.baddbmm_(torch.bmm(flat, into), out.mT)
        if bias is not None:
            found += bias[:, None]
        elif module.bias is not None:
            found += module.bias
        return found.view(rows.candidates * rows.each, *x.shape[1:-1], -1)

    return forward


def _embedding(module: nn.Embedding, weight: Stack, rows: _Rows) -> Forward:
    """Rows of a table as long as all candidates' tables: the module's own forward may scale them."""

    def forward(ids: Tensor) -> Tensor:
        parts = rows.split(ids).reshape(rows.candidates, -1)
        there = (
            parts
            + module.num_embeddings * torch.arange(rows.candidates, device=ids.device)[:, None]
        )
        if isinstance(weight, Thin):
            found = _with_weight(module, weight.left.flatten(0, 1), there) @ weight.right.mT
            found += type(module).forward(module, parts)
        else:
            found = _with_weight(module, weight.flatten(0, 1), there)
        return found.view(rows.candidates * rows.each, *ids.shape[1:], -1)

    return forward


def _layer_norm(
    module: nn.LayerNorm, weight: Tensor | None, bias: Tensor | None, rows: _Rows
) -> Forward:
    def forward(x: Tensor) -> Tensor:
        parts = rows.split(x)
        precise = (
            parts if parts.dtype in (torch.float32, torch.float64) else parts.float()
        )  # rounded once, as the fused kernel does
        found = functional.layer_norm(precise, module.normalized_shape, eps=module.eps)
        for stack, own, join in (
            (weight, module.weight, torch.Tensor.mul_),
            (bias, module.bias, torch.Tensor.add_),
        ):
            if stack is not None:
                join(found, _facing(stack, parts))
            elif own is not None:
                join(found, own)
        return found.to(x.dtype).reshape(x.shape)

    return forward


def _facing(stack: Tensor, parts: Tensor) -> Tensor:
    """[C, d] shaped to meet [C, n, ..., d]."""
    return stack.view(len(stack), *[1] * (parts.ndim - 2), stack.shape[1])
