"""What a model says with a steering vector, at several strengths."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from loclin.activations.blocks import bare
from loclin.errors import LoclinError
from loclin.models.pretrained import context_of
from loclin.seeds import derived, seeded
from loclin.steering.vector import SteeringVector
from loclin.tasks.tokens import text_tokens

TOKENS = 40
#: Far below, logits over the temperature overflow; here the likeliest token alone is drawn already.
COLDEST = 1e-5


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How a model goes on from a prompt at a strength: the new tokens, special ones left out."""

    prompt: str
    strength: float
    text: str


def generations(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    vector: SteeringVector,
    prompts: Sequence[str],
    strengths: Sequence[float],
    *,
    tokens: int | None = None,
    start: int = 0,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Generation]:
    """From every prompt, at every strength: prompt by prompt, one at a time, with a key-value
    cache.

    Args:
        model, tokenizer: in evaluation mode, not changed; its own.
        vector: that fits the model.
        prompts: to which the tokenizer adds its special tokens.
        strengths: multiples of the vector; 0 is the model as it is.
        tokens: new ones at most; by default 40, or what the context leaves.
        start: position of the first token that is steered.
        temperature: 0 for the likeliest token; else tokens are drawn.
        seed: of the draws, which depend on it and on the prompt alone.

    Raises:
        LoclinError: no prompts, a prompt of no tokens, prompt and new tokens beyond the context, a
            vector of another model, a temperature out of range, logits that are not finite.
    """
    check_temperature(temperature)
    if not prompts:
        raise LoclinError(
            "expected at least one prompt, found none: give --prompt or --prompts FILE"
        )
    device = model.get_input_embeddings().weight.device
    rows = [
        torch.tensor(ids, dtype=torch.long, device=device)[None]
        for ids in text_tokens(prompts, tokenizer)
    ]
    counts = [_room(model, p, ids.shape[1], tokens) for p, ids in zip(prompts, rows, strict=True)]
    made = []
    for prompt, ids, count in zip(prompts, rows, counts, strict=True):
        noise = derived(seed, "generation", prompt)
        for strength in strengths:
            with vector.applied(model, strength=strength, start=start):
                new = _continued(model, tokenizer, ids, count, temperature, noise)
            text = tokenizer.decode(new, skip_special_tokens=True)
            made.append(Generation(prompt=prompt, strength=strength, text=text))
    return made


def check_temperature(temperature: float) -> None:
    """Whether tokens can be drawn at it.

    Raises:
        LoclinError: below 0, above 0 but too small to divide by, or not finite.
    """
    if temperature != 0 and not COLDEST <= temperature < math.inf:
        raise LoclinError(
            f"expected a temperature of 0 or from {COLDEST:g}, found {temperature}: change "
            "--temperature"
        )


def _room(model: PreTrainedModel | PeftModel, prompt: str, length: int, tokens: int | None) -> int:
    """New tokens that are made after a prompt of so many tokens."""
    if not length:
        raise LoclinError(f"expected a prompt of at least one token, found {prompt!r}: fill it in")
    context = context_of(model)
    most = None if context is None else context - length
    if most is not None and most < (tokens or 1):
        raise LoclinError(
            f"expected prompt and new tokens within the model's context of {context}, found a "
            f"prompt of {length} and {tokens or 1} new: shorten the prompt or lower --tokens"
        )
    return tokens or min(TOKENS, TOKENS if most is None else most)


class _Finite(LogitsProcessor):
    """Leaves logits as they are, and refuses those that name no likeliest token."""

    def __call__(
        self, input_ids: Int[Tensor, "n length"], scores: Float[Tensor, "n vocab"]
    ) -> Float[Tensor, "n vocab"]:
        if not torch.isfinite(scores.amax(-1)).all():  # −∞ alone forbids a token
            raise LoclinError(
                "expected finite logits, found NaN or infinity: take a smaller strength, or check "
                "the model's weights"
            )
        return scores


@torch.no_grad()
def _continued(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Int[Tensor, "1 n"],
    count: int,
    temperature: float,
    seed: int,
) -> list[int]:
    """The new tokens: greedy, or drawn from softmax(logits / temperature)."""
    drawing: dict[str, Any] = {"do_sample": False}
    if temperature:
        drawing = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    core: Any = bare(model)
    own = core.generation_config
    plain = GenerationConfig(
        max_new_tokens=count,
        eos_token_id=own.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **drawing,
    )
    core.generation_config = GenerationConfig()  # its own would fill in beams, penalties, strings
    try:
        with seeded(seed) if temperature else nullcontext():
            out = core.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=plain,
                logits_processor=LogitsProcessorList([_Finite()]),
                **_positions(core, ids),
            )
    finally:
        core.generation_config = own
    new: list[int] = out[0, ids.shape[1] :].tolist()
    return new


def _positions(core: Any, ids: Int[Tensor, "1 n"]) -> dict[str, Tensor]:
    """Where RoBERTa and its like begin to count, which `generate` would not."""
    if "position_ids" in inspect.signature(core.forward).parameters:
        for module in core.modules():
            if hasattr(module, "create_position_ids_from_input_ids"):
                first = module.padding_idx + 1
                return {"position_ids": torch.arange(first, first + ids.shape[1])[None].to(ids)}
    return {}
