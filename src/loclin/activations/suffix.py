"""Passes that run only the blocks after one whose output is known: what is added to the output of
block L changes nothing before it (measures §17).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loclin.activations.adding import added
from loclin.activations.blocks import blocks, width
from loclin.tasks.batch import vocabulary_size

#: What blocks returned in one pass, by 0-based number: whole, and before anything was added.
Known = Mapping[int, Any]
_CHECKED: WeakKeyDictionary[nn.Module, dict[str | None, bool]] = WeakKeyDictionary()


@contextmanager
def remembered(layers: nn.ModuleList, numbers: Sequence[int]) -> Iterator[dict[int, Any]]:
    """Inside, what these blocks returned in the latest pass, as it is to be handed to `resumed`."""
    known: dict[int, Any] = {}

    def keeping(number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            known[number] = forward(*args, **kwargs)
            return known[number]

        return run

    with ExitStack() as stack:
        for n in numbers:
            stack.enter_context(_running(layers[n], keeping(n, layers[n].forward)))
        yield known


@contextmanager
def resumed(layers: nn.ModuleList, number: int, known: Known) -> Iterator[None]:
    """Inside, block `number` and those before it are not run: each returns what that one did.

    The model's own forward pass goes on around them, so that masks, positions and whatever else it
    hands to the later blocks are made as always, for the same inputs.
    """
    result = known[number]
    with ExitStack() as stack:
        for block in layers[: number + 1]:
            stack.enter_context(_running(block, lambda *_args, **_kwargs: result))
        yield


@contextmanager
def _running(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, a block runs this; its hooks, which add and capture, act on what it returns."""
    own = vars(block).get("forward")  # `accelerate` wraps it so, too
    vars(block)["forward"] = forward
    try:
        yield
    finally:
        del vars(block)["forward"]
        if own is not None:
            vars(block)["forward"] = own


@torch.no_grad()
def resumable(model: nn.Module, path: str | None = None) -> bool:
    """Whether resumed passes give what whole ones do, to the last bit: seen once for each model, on
    two short rows, at its first, middle and last block, each resumed twice.

    Not where blocks do more than take hidden states and return them, or change them in place.
    """
    checked = _CHECKED.setdefault(model, {})
    if path not in checked:
        layers = blocks(model, path)
        places = sorted({0, len(layers) // 2, len(layers) - 1})
        checked[path] = all(_same(model, layers, number, path) for number in places)
    return checked[path]


def _same(model: nn.Module, layers: nn.ModuleList, number: int, path: str | None) -> bool:
    device = next(model.parameters()).device
    ids = (torch.arange(14, device=device) % vocabulary_size(model)).view(2, 7)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    vector = torch.linspace(-1, 1, width(model), device=device)

    def logits() -> Float[Tensor, "m vocab"]:
        with added(model, {number: vector}, path=path):
            found: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return found[mask.to(found.device) != 0]

    with remembered(layers, [number]) as known:
        whole = logits()
    try:
        with resumed(layers, number, known):
            return all(torch.equal(logits(), whole) for _ in range(2))
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        return False  # blocks that hand on more than one kind of result
