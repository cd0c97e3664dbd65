"""The direction that the rest of the network reads: the gradient of the logit difference with
respect to activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from loclin.activations.blocks import blocks, chosen_layers
from loclin.activations.capture import captured, last_places, output_of
from loclin.errors import LoclinError
from loclin.steering.asked import Asked, next_logits, pieces

#: One number of each prompt, from the logits after it.
Score = Callable[[Tensor, Asked], Tensor]


def logit_gradient(
    model: nn.Module,
    asked: Asked,
    *,
    layers: Sequence[int],
    path: str | None = None,
    per_prompt: bool = False,
    rows_at_once: int | None = None,
) -> Float[Tensor, "L *n d"]:
    """g_L = mean over prompts of ∂(logit_toward − logit_away)/∂h_L at the last token (measures §13,
    the baseline).

    How much a small push of h_L, at that token alone, moves the logit difference. Late-layer
    agreement of other directions may be this alone.

    Args:
        model: in evaluation mode; which of its tensors ask for gradients does not matter.
        asked: prompts with their two tokens.
        layers: blocks to read.
        path: where the blocks are, if not found by themselves.
        per_prompt: give the n gradients (L n d) and not their mean (L d).
        rows_at_once: rows of one backward pass; by default as many as `pieces` allows.

    Raises:
        LoclinError: a gradient that is not finite, or a mean that is zero, at a layer.
    """
    each = _each(model, asked, _difference, layers, path, rows_at_once)
    mean = _checked(each.mean(1), chosen_layers(len(blocks(model, path)), layers))
    return each if per_prompt else mean


def answer_gradient(
    model: nn.Module,
    asked: Asked,
    *,
    tokens: Int[Tensor, " n"],
    layers: Sequence[int],
    path: str | None = None,
) -> Float[Tensor, "L d"]:
    """Mean over prompts of ∂ log p(token | prompt)/∂h_L at the last token, one token for each
    prompt.

    A step that raises an answer's probability and does nothing else shifts the last block along
    this, not along the logit difference: the two answers' gradients together span what agreement by
    the readout alone can lie in.

    Raises:
        LoclinError: as `logit_gradient` does.
    """

    def log_p(logits: Float[Tensor, "n vocab"], rows: Asked) -> Float[Tensor, " n"]:
        return logits.log_softmax(-1).gather(1, rows.gold[:, None].to(logits.device))[:, 0]

    each = _each(model, replace(asked, gold=tokens), log_p, layers, path, None)
    return _checked(each.mean(1), chosen_layers(len(blocks(model, path)), layers))


def _difference(logits: Float[Tensor, "n vocab"], asked: Asked) -> Float[Tensor, " n"]:
    row = torch.arange(len(asked), device=logits.device)
    return logits[row, asked.toward.to(logits.device)] - logits[row, asked.away.to(logits.device)]


def _each(
    model: nn.Module,
    asked: Asked,
    score: Score,
    layers: Sequence[int],
    path: str | None,
    rows_at_once: int | None,
) -> Float[Tensor, "L n d"]:
    numbers = chosen_layers(len(blocks(model, path)), layers)
    found, order = [], []
    for rows in pieces(model, asked.batch, rows_at_once=rows_at_once):
        found.append(_gradients(model, asked.rows(rows), score, numbers, path))
        order.append(rows)
    return torch.cat(found, dim=1)[:, torch.cat(order).argsort()]


def _checked(mean: Float[Tensor, "L d"], layers: Sequence[int]) -> Float[Tensor, "L d"]:
    for layer, gradient in zip(layers, mean, strict=True):
        length = float(gradient.norm())
        if length == 0 or not torch.isfinite(gradient).all():
            raise LoclinError(
                f"expected a finite logit gradient that is not zero at block {layer}, found "
                f"{'zeros' if length == 0 else 'NaN or infinity'}: choose other blocks or other "
                "options"
            )
    return mean


def _gradients(
    model: nn.Module, asked: Asked, score: Score, layers: Sequence[int], path: str | None
) -> Float[Tensor, "L n d"]:
    """Of one pass, on the CPU in float32 or better."""
    stack = blocks(model, path)
    row = torch.arange(len(asked))
    with torch.enable_grad(), _leaf(stack[min(layers)]), captured(stack, layers) as kept:
        read_out = score(next_logits(model, asked.batch), asked)
        gradients = torch.autograd.grad(read_out.sum(), [kept[n] for n in layers])
    last = last_places(asked.batch.attention_mask)
    read = [g[row.to(g.device), last.to(g.device)].cpu() for g in gradients]
    return torch.stack(
        [g.float() if g.dtype in (torch.float16, torch.bfloat16) else g for g in read]
    )


@contextmanager
def _leaf(block: nn.Module) -> Iterator[None]:
    """The output of this block is where differentiation ends: nothing below it keeps a graph, and
    frozen weights do no harm.
    """

    def cut(module: nn.Module, given: Any, output: Any) -> Any:
        start = output_of(output).detach().requires_grad_()
        return (start, *output[1:]) if isinstance(output, tuple) else start

    handle = block.register_forward_hook(cut)
    try:
        yield
    finally:
        handle.remove()
