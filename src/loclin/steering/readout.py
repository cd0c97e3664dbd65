"""The direction that the rest of the network reads: the gradient of the logit difference with
respect to activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from loclin.activations.blocks import blocks, chosen_layers
from loclin.activations.capture import captured, last_places, output_of
from loclin.errors import LoclinError
from loclin.steering.prompts import PromptSet, next_logits, pieces

#: One number of each of some prompts, from the logits after it; and which prompts they are.
Score = Callable[[Tensor, Tensor], Tensor]


def logit_gradient(
    model: nn.Module,
    prompts: PromptSet,
    *,
    layers: Sequence[int],
    path: str | None = None,
    per_prompt: bool = False,
) -> Float[Tensor, "L *n d"]:
    """g_L = mean over prompts of ∂(logit_toward − logit_away)/∂h_L at the last token (measures §13,
    the baseline).

    How much a small push of h_L, at that token alone, moves the logit difference. Late-layer
    agreement of other directions may be this alone.

    Args:
        model: in evaluation mode; which of its tensors ask for gradients does not matter.
        prompts, layers, path: with their two tokens; the blocks to read, and where they are.
        per_prompt: give the n gradients (L n d) and not their mean (L d).

    Raises:
        LoclinError: a gradient that is not finite, or a mean that is zero, at a layer.
    """

    def difference(logits: Float[Tensor, "n vocab"], rows: Int[Tensor, " n"]) -> Tensor:
        row = torch.arange(len(logits), device=logits.device)
        toward, away = (t[rows].to(logits.device) for t in (prompts.toward, prompts.away))
        return logits[row, toward] - logits[row, away]

    each, mean = _gradients(model, prompts, difference, layers, path)
    return each if per_prompt else mean


def answer_gradient(
    model: nn.Module,
    prompts: PromptSet,
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

    def log_p(logits: Float[Tensor, "n vocab"], rows: Int[Tensor, " n"]) -> Tensor:
        return logits.log_softmax(-1).gather(1, tokens[rows][:, None].to(logits.device))[:, 0]

    return _gradients(model, prompts, log_p, layers, path)[1]


def _gradients(
    model: nn.Module, prompts: PromptSet, score: Score, layers: Sequence[int], path: str | None
) -> tuple[Float[Tensor, "L n d"], Float[Tensor, "L d"]]:
    """Of every prompt, on the CPU in float32 or better; and their mean, checked."""
    stack = blocks(model, path)
    numbers = chosen_layers(len(stack), layers)
    parts, order = [], []
    for rows in pieces(model, prompts.batch):
        chosen, place = prompts.rows(rows).batch, torch.arange(len(rows))
        with torch.enable_grad(), _leaf(stack[min(numbers)]), captured(stack, numbers) as kept:
            total = score(next_logits(model, chosen), rows.to(prompts.toward.device)).sum()
            found = torch.autograd.grad(total, [kept[n] for n in numbers])
        last = last_places(chosen.attention_mask)
        read = torch.stack([g[place.to(g.device), last.to(g.device)].cpu() for g in found])
        parts.append(read.float() if read.dtype in (torch.float16, torch.bfloat16) else read)
        order.append(rows)
    each = torch.cat(parts, dim=1)[:, torch.cat(order).argsort()]
    mean = each.mean(1)
    for layer, gradient in zip(numbers, mean, strict=True):
        length = float(gradient.norm())
        if length == 0 or not torch.isfinite(gradient).all():
            raise LoclinError(
                f"expected a finite logit gradient that is not zero at block {layer}, found "
                f"{'zeros' if length == 0 else 'NaN or infinity'}: choose other blocks or other "
                "options"
            )
    return each, mean


@contextmanager
def _leaf(block: nn.Module) -> Iterator[None]:
    """Differentiation ends at the output of this block: nothing below it keeps a graph, and frozen
    weights do no harm.
    """

    def cut(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        start = output_of(output).detach().requires_grad_()
        return (start, *output[1:]) if isinstance(output, tuple) else start

    handle = block.register_forward_hook(cut)
    try:
        yield
    finally:
        handle.remove()
