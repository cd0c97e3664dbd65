"""`loclin steer apply`: what a model says with a steering vector at several strengths, side by
side.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from loclin.activations.blocks import blocks, chosen_layers
from loclin.dropout import seeded
from loclin.errors import LoclinError
from loclin.models.builtin import BUILT_IN
from loclin.models.loading import load_model
from loclin.models.pretrained import How, context_of, device_named
from loclin.seeds import derived
from loclin.steering.apply_config import ApplyConfig, check_temperature
from loclin.steering.gguf import read_gguf
from loclin.steering.vector import SteeringVector

TOKENS = 40
NARROW = 20  # characters of a column; with less, one generation stands below the other


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How a model goes on.

    Attributes:
        prompt: from what.
        strength: with how much of the vector; 0 is the model as it is.
        text: the new tokens, special ones left out.
    """

    prompt: str
    strength: float
    text: str


def apply(config: ApplyConfig, *, console: Console | None = None) -> list[Generation]:
    """Read vector and model, generate from every prompt at every strength, and print it.

    Raises:
        LoclinError: a vector that cannot be read or is of another model, no prompts, a context too
            small.
    """
    console = console or Console()
    vector, prompts = read_vector(config.vector, shift=config.shift), _prompts(config)
    device = device_named(config.device, small=config.model in BUILT_IN)
    how = How.of(config, device)
    with console.status("reading the model") as status:
        model, tokenizer = load_model(
            config.model,
            how,
            seed=config.seed,
            progress=lambda text, share: status.update(f"{text}: {share:.0%}"),
        )
    vector = replace(vector, layers_path=config.layers_path or vector.layers_path)
    if config.layer:
        vector = vector.at(chosen_layers(len(blocks(model, vector.layers_path)), config.layer))
    vector = vector.fitted(model, force=config.force)
    made = generations(
        model,
        tokenizer,
        vector,
        prompts,
        config.strength,
        tokens=config.tokens,
        start=config.start,
        temperature=config.temperature,
        seed=config.seed,
    )
    where = f"block{'s' if len(vector.layers) > 1 else ''} {', '.join(map(str, vector.layers))}"
    console.print(
        Text(f"{config.vector.name}: made with {vector.model} by {vector.route}, added at {where}")
    )
    console.print(Text(f"strength 1: {vector.norm}"))
    show(made, console)
    return made


def read_vector(path: Path, *, shift: int = 0) -> SteeringVector:
    """A vector from a safetensors or a GGUF file, told apart by the ending; `shift` as in
    `read_gguf`.

    Raises:
        LoclinError: it cannot be read.
    """
    return read_gguf(path, shift=shift) if path.suffix == ".gguf" else SteeringVector.load(path)


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
        model: in evaluation mode; not changed.
        tokenizer: its tokenizer.
        vector: that fits the model.
        prompts: given with the tokenizer's special tokens.
        strengths: how often the vector is added.
        tokens: new ones at most (the model's end token ends a text sooner); by default 40, or what
            the context leaves.
        start: position of the first token that is steered.
        temperature: 0 for the likeliest token; else tokens are drawn, with noise that depends on
            seed and prompt alone.
        seed: of the draws.

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
    asked = [
        torch.tensor(tokenizer(p)["input_ids"], dtype=torch.long, device=device)[None]
        for p in prompts
    ]
    counts = [_room(model, p, ids.shape[1], tokens) for p, ids in zip(prompts, asked, strict=True)]
    made = []
    for prompt, ids, count in zip(prompts, asked, counts, strict=True):
        noise = derived(seed, "generation", prompt)
        for strength in strengths:
            with vector.applied(model, strength=strength, start=start):
                new = _continued(model, tokenizer, ids, count, temperature=temperature, seed=noise)
            made.append(
                Generation(
                    prompt=prompt,
                    strength=strength,
                    text=tokenizer.decode(new, skip_special_tokens=True),
                )
            )
    return made


def show(made: Sequence[Generation], console: Console) -> None:
    """Print generations prompt by prompt: a column for each strength where there is room, else one
    below the other.
    """
    strengths = list(dict.fromkeys(g.strength for g in made))
    for prompt in dict.fromkeys(g.prompt for g in made):
        texts = {
            g.strength: Text(g.text.strip() or "(nothing)") for g in made if g.prompt == prompt
        }
        table = Table(
            box=SIMPLE_HEAD,
            title=Text(prompt),
            title_justify="left",
            expand=True,
            padding=(0, 1, 0, 0),
        )
        if console.width // len(strengths) >= NARROW:
            for strength in strengths:
                table.add_column(f"{strength:+g}" if strength else "0", ratio=1, overflow="fold")
            table.add_row(*(texts[s] for s in strengths))
        else:
            table.add_column("strength", no_wrap=True)
            table.add_column("text", ratio=1, overflow="fold")
            for strength in strengths:
                table.add_row(f"{strength:+g}" if strength else "0", texts[strength])
        console.print(table)


def _prompts(config: ApplyConfig) -> list[str]:
    """Those given one by one, then the lines of the file that are not blank."""
    lines: list[str] = []
    if config.prompts is not None:
        try:
            lines = [
                line
                for line in config.prompts.read_text(encoding="utf-8").splitlines()
                if line.strip()
            ]
        except (OSError, UnicodeDecodeError) as error:
            raise LoclinError(
                f"expected a text file of prompts in UTF-8, found {error}: give another --prompts"
            ) from error
        if not lines:
            raise LoclinError(
                f"expected prompts in {config.prompts}, found blank lines only: write one a line"
            )
    return [*config.prompt, *lines]


def _room(model: PreTrainedModel | PeftModel, prompt: str, length: int, tokens: int | None) -> int:
    """New tokens that are made after a prompt of so many tokens."""
    if not length:
        raise LoclinError(f"expected a prompt of at least one token, found {prompt!r}: fill it in")
    context = context_of(model)
    most = None if context is None else context - length
    if most is not None and most < (tokens or 1):
        raise LoclinError(
            f"expected prompt and new tokens within the model's context of {context}, found a "
            f"prompt of {length} and "
            f"{tokens or 1} new: shorten the prompt or lower --tokens"
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
    *,
    temperature: float,
    seed: int,
) -> list[int]:
    """The new tokens, by `generate`: greedy, or drawn from softmax(logits / temperature); else as
    the model's own settings say.
    """
    how = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    with seeded(seed) if temperature else nullcontext():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            num_beams=1,
            pad_token_id=tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([_Finite()]),
            **how,
        )
    new: list[int] = out[0, ids.shape[1] :].tolist()
    return new
