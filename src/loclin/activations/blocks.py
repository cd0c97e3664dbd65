"""Where a causal language model keeps its blocks, and how wide they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from torch import nn

from loclin.errors import LoclinError

#: Names under which most families keep their blocks (Llama, Qwen2, Gemma, ...; GPT-2, ...).
USUAL = ("model.layers", "transformer.h")


def bare(model: nn.Module) -> nn.Module:
    """The model inside an adapter's wrapper (the adapter's layers stay in it)."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def blocks(model: nn.Module, path: str | None = None) -> nn.ModuleList:
    """The transformer blocks, in order; the output of block L is h_L.

    Taken from `path`, the name of a `ModuleList` in the model ("decoder.blocks"); else from
    `model.layers` or `transformer.h`; else the one `ModuleList` as long as the configuration's
    `num_hidden_layers`. Raises `LoclinError` where there is none, or several could be meant.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> shape = GPT2Config(n_embd=8, n_layer=3, n_head=2, n_positions=8, vocab_size=8)
    >>> model = GPT2LMHeadModel(shape)
    >>> len(blocks(model)), width(model), chosen_layers(3, [-1, 0])
    (3, 8, (2, 0))
    """
    core = bare(model)
    lists = {n: m for n, m in core.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    if path is not None:
        if path not in lists:
            raise LoclinError(
                f"expected a list of blocks at {path!r}, found none: use one of {_described(lists)}"
            )
        return lists[path]
    for usual in USUAL:
        if usual in lists:
            return lists[usual]
    count = getattr(_text_config(core), "num_hidden_layers", None)
    fitting = [m for m in lists.values() if len(m) == count]
    if len(fitting) != 1:
        raise LoclinError(
            f"expected one list of {'num_hidden_layers' if count is None else count} blocks, found "
            f"{len(fitting)}: name it with --layers-path, one of {_described(lists)}"
        )
    return fitting[0]


def chosen_layers(count: int, numbers: Sequence[int] | None) -> tuple[int, ...]:
    """0-based numbers of some of `count` blocks, in their order; −1 is the last, None means all.

    Raises `LoclinError` for a number out of range, the same block twice, or no layer.
    """
    if numbers is None:
        return tuple(range(count))
    for layer in numbers:
        if not -count <= layer < count:
            raise LoclinError(
                f"expected layers from {-count} to {count - 1}, found {layer}: the model has "
                f"{count} blocks"
            )
    layers = tuple(layer % count for layer in numbers)
    if not layers:
        raise LoclinError(
            "expected at least one layer, found none: name one, or leave the choice out for all of "
            "them"
        )
    if len(set(layers)) < len(layers):
        raise LoclinError(
            f"expected every layer once, found {list(numbers)} of {count} blocks: leave out the "
            "repeated one"
        )
    return layers


def width(model: nn.Module) -> int:
    """d, the width of the blocks' outputs; `LoclinError` where the configuration has none."""
    size = getattr(_text_config(bare(model)), "hidden_size", None)
    if not isinstance(size, int):
        raise LoclinError(
            f"expected a configuration with a hidden_size, found {size}: add it to the model's "
            "config"
        )
    return size


def tokens_at_once(model: nn.Module, most: int) -> int:
    """Tokens of one pass that keeps what a backward pass needs: as much as the weights take, or
    256 MB; 80 bytes for each coordinate of a block's output (34 in half precision, and what
    attention adds: Korthikanti et al., "Reducing activation recomputation", 2022).
    """
    config, weights = _text_config(bare(model)), sum(p.nbytes for p in model.parameters())
    kept = 80 * width(model) * getattr(config, "num_hidden_layers", 1)
    return max(1, min(most, max(1 << 28, weights) // kept))


def _text_config(core: nn.Module) -> Any:
    """The configuration of the language part."""
    config: Any = getattr(core, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _described(lists: dict[str, nn.ModuleList]) -> str:
    named = ", ".join(f"{name} ({len(each)})" for name, each in lists.items())
    return named or "(the model has no ModuleList)"
