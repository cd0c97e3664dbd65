"""Directions from one gradient step on the weights: the shift of activations that it makes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from loclin.activations.blocks import blocks, chosen_layers
from loclin.activations.capture import activations, captured, last_places
from loclin.errors import LoclinError
from loclin.geometry.gramian import norm
from loclin.models import twice_differentiable
from loclin.parameters import ParameterSpace
from loclin.steering.prompts import PromptSet, pieces
from loclin.tasks.batch import Batch, answer_loss

HALF = (torch.float16, torch.bfloat16)
_LOSSES = {"fixed": "toward", "gold": "gold"}  # which token


def step_direction(
    model: nn.Module,
    space: ParameterSpace,
    prompts: PromptSet,
    *,
    loss: Literal["fixed", "gold"] | Int[Tensor, " n"],
) -> Float[Tensor, " D"]:
    """−g/‖g‖ for the gradient g of the mean over prompts of −log p(token | prompt), where the space
    stands (measures §13).

    Cross entropy over the whole vocabulary after the last prompt token.

    Args:
        model: the module of the space.
        space: which tensors step.
        prompts: the gradient batch.
        loss: which token: "fixed", the toward token of every prompt (E1; in the paired form the
            same as "gold"); "gold", its right answer (E2, E3); or a token for each prompt (nulls).

    Raises:
        LoclinError: a loss that is not finite, or a gradient that is zero or not finite.
    """
    of, tokens = "a gradient of the loss of the given tokens", loss
    if isinstance(loss, str):
        of, tokens = f"a gradient of the {loss} loss", getattr(prompts, _LOSSES[loss])
    batch = prompts.answered(cast(Tensor, tokens))
    rows = pieces(model, prompts.batch)
    step = space.gradient(
        lambda b: answer_loss(model, b), (batch.rows(r.to(batch.labels.device)) for r in rows)
    )
    return step.div_(-_length(step, of))


def shift(
    model: nn.Module,
    space: ParameterSpace,
    direction: Float[Tensor, " D"],
    batch: Batch,
    *,
    size: float,
    layers: Sequence[int],
    path: str | None = None,
    origin: Float[Tensor, "L n d"] | None = None,
) -> Float[Tensor, "L n d"]:
    """Δh_L = h_L(θ + size·‖θ‖·v) − h_L(θ) at the last token of each prompt, with v =
    direction/‖direction‖ (measures §13).

    The point of the space is afterwards what it was, bit for bit.

    Args:
        model: the module of the space.
        space: which tensors step; ‖θ‖ is theirs.
        direction: of any length.
        batch: prompts.
        size: length of the step relative to ‖θ‖; a negative one steps back.
        layers, path: blocks to read, and where they are.
        origin: h_L(θ) of the same prompts and layers, where it is known.

    Raises:
        LoclinError: weights in half precision, which rounds small steps away; a zero or non-finite
            direction; a shift that is not finite.
    """
    scale = size * _scale(model, space, direction)
    before = activations(model, batch, layers=layers, path=path) if origin is None else origin
    with space.restored():
        space.add(direction, scale)
        after = activations(model, batch, layers=layers, path=path)
    return _finite(after - before, f"the activations of a step of {size:g}")


def centred_shift(
    model: nn.Module,
    space: ParameterSpace,
    direction: Float[Tensor, " D"],
    batch: Batch,
    *,
    size: float,
    layers: Sequence[int],
    path: str | None = None,
) -> Float[Tensor, "L n d"]:
    """(h_L(θ + size·‖θ‖·v) − h_L(θ − size·‖θ‖·v))/2 at the last token of each prompt.

    What is even in the step cancels; where prompts pull against each other (E3) it is not small.
    The distance from the limit falls as O(size²), that of `shift` as O(size). Raises as `shift`.
    """
    scale, ends = size * _scale(model, space, direction), []
    for sign in (1.0, -1.0):
        with space.restored():
            space.add(direction, sign * scale)
            ends.append(activations(model, batch, layers=layers, path=path))
    return _finite((ends[0] - ends[1]) / 2, f"the activations of steps of {size:g}")


def shift_per_size(
    model: nn.Module,
    space: ParameterSpace,
    direction: Float[Tensor, " D"],
    batch: Batch,
    *,
    layers: Sequence[int],
    path: str | None = None,
) -> Float[Tensor, "L n d"]:
    """J_L v·‖θ‖, the limit of shift/size as the size goes to 0, by forward-mode differentiation
    with eager attention.

    J_L is the Jacobian of h_L at the last token with respect to the weights of the space.

    Raises:
        LoclinError: as `shift`.
        NoSecondDerivative: attention that cannot be made eager.
    """
    numbers = chosen_layers(len(blocks(model, path)), layers)
    scale = _scale(model, space, direction)
    tangents = {n: v * scale for n, v in space.by_tensor(direction).items()}
    points = {n: p.detach() for n, p in zip(space.names, space.parameters, strict=True)}
    whole = isinstance(model, PreTrainedModel | PeftModel)
    eager = twice_differentiable(model) if whole else nullcontext()
    found, order = [], []
    with eager, torch.no_grad():
        for rows in pieces(model, batch):
            chosen = batch.rows(rows.to(batch.labels.device))
            found.append(_product(model, points, tangents, chosen, numbers, path))
            order.append(rows)
    moved = torch.cat(found, dim=1)[:, torch.cat(order).argsort()]
    return _finite(moved, "the Jacobian-vector product")


def _product(
    model: nn.Module,
    points: Mapping[str, Tensor],
    tangents: Mapping[str, Tensor],
    batch: Batch,
    layers: Sequence[int],
    path: str | None,
) -> Float[Tensor, "L n d"]:
    """The Jacobian-vector product of one pass, on the CPU."""
    stack, last = blocks(model, path), last_places(batch.attention_mask)
    inputs: dict[str, Any] = {"use_cache": False, "logits_to_keep": 1}
    inputs |= {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}

    def states(moved: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        with captured(stack, layers) as kept:
            torch.func.functional_call(model, dict(moved), (), inputs)
        return tuple(
            kept[n][torch.arange(len(batch), device=kept[n].device), last.to(kept[n].device)]
            for n in layers
        )

    ways = {n: tangents[n].to(p) for n, p in points.items()}
    with warnings.catch_warnings():  # torch's own forward mode still uses what torch deprecates
        warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)
        moving = torch.func.jvp(states, (points,), (ways,))[1]
    return torch.stack([m.cpu() for m in moving])


def _scale(model: nn.Module, space: ParameterSpace, direction: Float[Tensor, " D"]) -> float:
    """‖θ‖/‖direction‖, the model and the direction checked."""
    kind = space.parameters[0].dtype
    if kind in HALF:
        raise LoclinError(
            f"expected weights in float32 or better, found {kind}: small steps round away, load "
            "float32"
        )
    own = dict(model.named_parameters())
    if any(own.get(n) is not p for n, p in zip(space.names, space.parameters, strict=True)):
        raise LoclinError(
            "expected a space of this model, found the tensors of another module: make one of this "
            "model"
        )
    return space.norm() / _length(direction, "a direction of the weights")


def _length(vector: Tensor, named: str) -> float:
    length = norm(vector)
    if length == 0 or not np.isfinite(length):
        found = "zeros" if length == 0 else "NaN or infinity"
        raise LoclinError(
            f"expected {named} that is finite and not zero, found {found}: no step along it is "
            "defined"
        )
    return length


def _finite(moved: Tensor, named: str) -> Tensor:
    if not torch.isfinite(moved).all():
        raise LoclinError(
            f"expected finite values in {named}, found NaN or infinity: take a smaller step"
        )
    return moved
