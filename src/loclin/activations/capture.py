"""Outputs of blocks, read while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from loclin.activations.blocks import blocks, chosen_layers, tokens_at_once, width
from loclin.errors import LoclinError
from loclin.geometry.gramian import at_least_float32
from loclin.tasks.batch import IGNORED, TOKENS_AT_ONCE, Batch

#: What is read of a row: its last real token, the mean of those with labels, or each real one.
Position = Literal["last", "answer", "every"]


def output_of(result: Any, size: int | None = None) -> Tensor:
    """h_L of what a block returned: a tensor, or a tuple or list that begins with one; or
    `LoclinError`, also where it is not of this width.
    """
    h = result[0] if isinstance(result, tuple | list) and result else result
    if not isinstance(h, Tensor):
        raise LoclinError(
            "expected blocks that return a tensor, or a tuple that begins with one, found "
            f"{type(h).__name__}: name the list of blocks with --layers-path"
        )
    if h.ndim != 3 or h.shape[-1] != (size or h.shape[-1]):
        raise LoclinError(
            "expected blocks that return one stream of batch × length × width, found shape "
            f"{tuple(h.shape)}: activations of this family are not read"
        )
    return h


@contextmanager
def captured(
    layers: nn.ModuleList, numbers: Sequence[int], keep: Callable[[Tensor], Tensor] | None = None
) -> Iterator[dict[int, Tensor]]:
    """Inside, outputs of these blocks in the latest forward pass, by 0-based number.

    Read is what the next block is handed: vectors that `added` adds are in it, in whichever order
    the two are entered. Graphs and dual numbers stay attached, also inside `torch.func`. The last
    block is read before the model's final norm, unlike `hidden_states[-1]`. `keep` says what to
    keep of an output "n length d"; all of it by default.
    """
    outputs: dict[int, Tensor] = {}

    def reader(number: int) -> Callable[[nn.Module, Any, Any], None]:
        def read(_module: nn.Module, _inputs: Any, result: Any) -> None:
            h = output_of(result)
            outputs[number] = h if keep is None else keep(h)

        return read

    with ExitStack() as stack:
        for number in numbers:
            stack.callback(layers[number].register_forward_hook(reader(number)).remove)
        yield outputs


class _Stop(Exception):
    """Enough of the model has run."""


@contextmanager
def stopped_after(block: nn.Module) -> Iterator[None]:
    """Inside, a forward pass ends after this block, and the body with it: nothing later is run."""

    def stop(_module: nn.Module, _inputs: Any, _result: Any) -> None:
        raise _Stop

    handle = block.register_forward_hook(stop)
    try:
        yield
    except _Stop:
        pass
    finally:
        handle.remove()


def last_places(attention_mask: Int[Tensor, "n length"]) -> Int[Tensor, " n"]:
    """Place of the last real token of each row; `LoclinError` for a row without one.

    >>> last_places(torch.tensor([[1, 1, 0], [0, 1, 1]])).tolist()
    [1, 2]
    """
    real = attention_mask != 0
    if not bool(real.any(1).all()):
        raise LoclinError(
            "expected a real token in every row, found a row of padding: leave out empty prompts"
        )
    places = torch.arange(real.shape[1], device=real.device)
    return torch.where(real, places, -1).amax(1)


@torch.no_grad()
def activations(
    model: nn.Module,
    batch: Batch,
    *,
    layers: Sequence[int] | None = None,
    position: Position = "last",
    path: str | None = None,
    rows_at_once: int | None = None,
) -> Float[Tensor, "L m d"]:
    """h_L at chosen places of each row: on the CPU, in float32 or the model's float64.

    Rows are read in batches of like length, padded on the right, so that padding and rows at once
    change nothing but round-off. Adapters and vectors (`added`) in the model count.

    Args:
        model: a causal language model, in evaluation mode; it may lie on several devices.
        batch: n rows, padded on either side.
        layers: 0-based numbers of blocks, −1 the last; all of them by default.
        position: "last": the last real token of each row (m = n); "answer": the mean over its
            tokens with labels (m = n); "every": each real token, row by row (m = all real tokens).
        path: of the list of blocks, see `blocks`.
        rows_at_once: in one forward pass, at most; by default as many as have 16,384 tokens, or
            fewer where these would take more than the weights (`tokens_at_once`).

    Raises:
        LoclinError: a row without a real token, or (for "answer") without a label; a layer out of
            range; blocks that are not found, or are not run.
    """
    stack = blocks(model, path)
    numbers = chosen_layers(len(stack), layers)
    last_places(batch.attention_mask)  # refuses empty rows
    batch = _right_padded(batch)
    lengths = batch.attention_mask.sum(1).cpu()
    counts = lengths if position == "every" else torch.ones_like(lengths)
    places = torch.arange(int(counts.sum())).split(counts.tolist())
    first = next(model.parameters())
    size = len(numbers), sum(map(len, places)), width(model)
    out = torch.empty(size, dtype=at_least_float32(first).dtype)
    # without a graph an eighth is kept
    tokens = 8 * tokens_at_once(model, TOKENS_AT_ONCE // 8)
    for index in _alike(lengths, rows_at_once or len(batch), tokens):
        chunk = batch.rows(index.to(batch.input_ids.device)).to(first.device)
        read = _read(model, chunk, stack, numbers, position)
        output_of(read, size[-1])
        out[:, torch.cat([places[i] for i in index.tolist()])] = read
    return out


def _read(
    model: nn.Module,
    batch: Batch,
    layers: nn.ModuleList,
    numbers: Sequence[int],
    position: Position,
) -> Float[Tensor, "L m d"]:
    """One forward pass over right-padded rows."""
    if position == "answer":
        labelled = (batch.labels != IGNORED).float()
        shares = labelled / labelled.sum(1, keepdim=True)
        if bool(shares.isnan().any()):
            raise LoclinError(
                "expected an answer in every row, found a row without labels: read its last token "
                "instead"
            )
    mask = batch.attention_mask
    places = (mask.flatten() != 0).nonzero().squeeze(1)
    if position == "last":
        places = torch.arange(len(batch), device=mask.device) * mask.shape[1] + last_places(mask)

    def keep(h: Float[Tensor, "n length d"]) -> Float[Tensor, "m d"]:
        if position == "answer":
            answers = labelled.to(h.device)[..., None]
            return (at_least_float32(h) * answers).sum(1) / answers.sum(1)
        return h.flatten(0, 1).index_select(0, places.to(h.device))

    with captured(layers, numbers, keep) as outputs, stopped_after(layers[max(numbers)]):
        model(input_ids=batch.input_ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
    if missing := [n for n in numbers if n not in outputs]:
        raise LoclinError(
            f"expected the model to run all of its blocks, found {missing} left out: choose other "
            "layers"
        )
    return torch.stack([at_least_float32(outputs[n]).cpu() for n in numbers])


def _right_padded(batch: Batch) -> Batch:
    """The rows with their real tokens moved to the front, in order."""
    mask = batch.attention_mask
    if bool((mask[:, 1:] <= mask[:, :-1]).all()):
        return batch
    order = (mask == 0).long().argsort(dim=1, stable=True)
    return batch.each(lambda tensor: tensor.gather(1, order))


def _alike(lengths: Int[Tensor, " n"], rows: int, tokens: int) -> Iterator[Int[Tensor, " m"]]:
    """Numbers of rows in batches of like length, the longest first."""
    order = lengths.argsort(descending=True, stable=True)
    start = 0
    while start < len(order):
        size = max(1, min(rows, tokens // int(lengths[order[start]])))
        yield order[start : start + size]
        start += size
