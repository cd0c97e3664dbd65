"""Vectors added to the outputs of blocks while the model runs: steering."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from loclin.activations.blocks import bare, blocks, chosen_layers, width
from loclin.activations.capture import output_of
from loclin.errors import LoclinError


@contextmanager
def added(
    model: nn.Module,
    vectors: Mapping[int, Float[Tensor, " d"]],
    *,
    start: int = 0,
    only: Literal["every", "last"] = "every",
    path: str | None = None,
) -> Iterator[None]:
    """Inside, h_L ← h_L + v_L at real tokens; outside, the model is as it was.

    The sum is a new tensor of the output's dtype, on its device. Contexts may be nested and add up.
    A token's position is the number of real tokens before it in its row, those in a key-value cache
    included, so that a generation is the same with and without cache, and with padding on either
    side. Gradients go through, also inside `torch.func.functional_call`.

    Args:
        model: a causal language model.
        vectors: v_L by 0-based number of the block, −1 the last.
        start: first position to add at.
        only: "every" real token from `start` on; or of these the "last" of each row in a forward
            pass. For generation take `start`: with "last", tokens in a cache keep what was added to
            them when they were the last, and without a cache they lose it.
        path: of the list of blocks, see `blocks`.

    Raises:
        LoclinError: a vector of another width, a layer out of range, a negative start, blocks that
            are not found, a start above 0 in a model whose cache does not count its tokens (Mamba).
    """
    layers = blocks(model, path)
    numbers = chosen_layers(len(layers), list(vectors)) if vectors else ()
    if start < 0:
        raise LoclinError(
            f"expected a position to start from of 0 or more, found {start}: count from the first "
            "token"
        )
    for number, vector in zip(numbers, vectors.values(), strict=True):
        if vector.shape != (width(model),):
            raise LoclinError(
                f"expected vectors of the model's width {width(model)}, found shape "
                f"{tuple(vector.shape)} at layer {number}: use a vector made with this model"
            )
    pass_ = _Pass(start=start, last=only == "last")
    with ExitStack() as stack:
        if vectors:
            # the module that calls the blocks is handed mask, positions and cache
            modules = bare(model).modules()
            owner = next(m for m in modules if any(child is layers for child in m.children()))
            pass_.names = tuple(inspect.signature(owner.forward).parameters)
            uncounted = {"cache_params", "state"} & set(pass_.names)
            if start and uncounted and "past_key_values" not in pass_.names:
                raise LoclinError(
                    f"expected a model with a key-value cache to start at position {start}, found "
                    f"{type(owner).__name__}, whose state counts no tokens: start at 0"
                )
            stack.callback(owner.register_forward_pre_hook(pass_.begin, with_kwargs=True).remove)
        for number, vector in zip(numbers, vectors.values(), strict=True):
            hook = _adder(pass_, vector)
            # first among the block's hooks: others read what the next block is handed
            stack.callback(layers[number].register_forward_hook(hook, prepend=True).remove)
        yield


class _Pass:
    """What the transformer was called with in this forward pass, and so where to add."""

    def __init__(self, *, start: int, last: bool) -> None:
        self.start, self.last = start, last
        self.names: tuple[str, ...] = ()  # of what the transformer takes, in order
        self.mask: Tensor | None = None
        self.position_ids: Tensor | None = None
        self.cached = 0
        self._chosen: Bool[Tensor, "#n length"] | None = None

    def begin(self, _transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the transformer runs: note mask, positions and how many tokens are cached."""
        called = dict(zip(self.names, args, strict=False)) | kwargs
        mask, positions, cache = (
            called.get(n) for n in ("attention_mask", "position_ids", "past_key_values")
        )
        plain = isinstance(mask, Tensor) and mask.ndim == 2
        self.mask = mask if plain else None
        # a mask made ready for attention (compiled caches) does not say which tokens are real
        ready = mask is not None and not plain
        counted = ready and isinstance(positions, Tensor) and positions.ndim == 2
        self.position_ids = positions if counted else None
        self.cached = 0 if cache is None else int(cache.get_seq_length())
        self._chosen = None

    def chosen(self, h: Float[Tensor, "n length d"]) -> Bool[Tensor, "#n length"]:
        """Where to add, the same at every block of the pass."""
        if self._chosen is None:
            self._chosen = self._choose(h.shape[1], h.device)
        self._chosen = self._chosen.to(h.device)
        return self._chosen

    def _choose(self, length: int, device: torch.device) -> Bool[Tensor, "#n length"]:
        mask = None if self.start or self.last else self.mask
        if mask is not None and mask.shape[1] == self.cached + length:
            return mask[:, self.cached :].to(device) != 0  # no need to count
        positions = self.positions(length, device)
        chosen = positions >= self.start
        return chosen & (positions == positions.amax(1, keepdim=True)) if self.last else chosen

    def positions(self, length: int, device: torch.device) -> Int[Tensor, "#n length"]:
        """Real tokens before each token of its row, −1 on padding."""
        if self.position_ids is not None:
            return self.position_ids.to(device)
        total = self.cached + length
        if self.mask is None:
            return torch.arange(self.cached, total, device=device)[None]
        real = self.mask.to(device) != 0
        missing = total - real.shape[1]
        if missing > 0:  # some callers give the mask of the new tokens alone
            real = nn.functional.pad(real, (missing, 0), value=True)
        return torch.where(real, real.cumsum(1) - 1, -1)[:, self.cached : total]


def _adder(pass_: _Pass, vector: Float[Tensor, " d"]) -> Callable[[nn.Module, Any, Any], Any]:
    placed: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def add(_module: nn.Module, _inputs: Any, result: Any) -> Any:
        h = output_of(result, len(vector))
        where = (h.device, h.dtype)
        if where not in placed:
            placed[where] = vector.to(h)
        moved = torch.where(pass_.chosen(h)[..., None], h + placed[where], h)
        if not isinstance(result, tuple | list):
            return moved
        whole = (moved, *result[1:])
        return whole if isinstance(result, tuple) else list(whole)

    return add
