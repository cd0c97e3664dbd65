"""Settings of `loclin steer apply`. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from loclin.errors import LoclinError

# far below, logits over the temperature overflow; here already the likeliest token alone is drawn
COLDEST = 1e-5


@dataclass(frozen=True, kw_only=True)
class ApplyConfig:
    """Generate with a steering vector at several strengths, side by side.

    strength · vector is added to the outputs of the vector's blocks; strength 0 is the model as it
    is. What strength 1 is, the file says, and so does the first line that is printed.

    Example: loclin steer apply vector.safetensors --model gpt2 --prompt "I think that" --strength
    -2 0 2
    """

    vector: Annotated[Path, tyro.conf.Positional]
    """The vector: a safetensors file of `loclin steer`, or a GGUF control vector (pip install
    'loclin[gguf]')."""
    model: str
    """A folder, a hub id, or a built-in model (statements)."""
    prompt: tuple[str, ...] = ()
    """What the model goes on from; several are shown one after the other."""
    prompts: Path | None = None
    """A text file of prompts, one a line."""
    strength: tuple[float, ...] = (-1.0, 0.0, 1.0)
    """Multiples of the vector that are added; below 0 the other way."""
    layer: tuple[int, ...] = ()
    """Blocks of the vector to use, numbered from 0, negative ones from the end; all that it has by
    default."""
    tokens: int | None = None
    """New tokens; 40 by default, or as many as the model's context leaves."""
    start: int = 0
    """Position of the first token that is steered, counted from 0 over prompt and new tokens; 0
    steers the prompt too."""
    temperature: float = 0.0
    """0 takes the likeliest token (greedy); above 0, tokens are drawn, with the same noise at every
    strength."""
    seed: int = 0
    """Of the draws, and of a built-in model."""
    force: bool = False
    """Use a vector of another kind of model or number of blocks; a line says what is ignored. A
    different width never fits."""
    shift: int = 0
    """Of a GGUF file: 1 moves every direction one block towards the input, for files of llama.cpp's
    cvector-generator, which adds one block later than it reads."""

    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "float32"
    """Of the weights."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: an accelerator where there is one."""
    device_map: str | None = None
    """Spread a large model over devices by accelerate (auto, balanced) instead of --device."""
    trust_remote_code: bool = False
    """Run code that comes with a model. Read it first."""
    layers_path: str | None = None
    """Where the model's blocks are, if they are not found ("model.layers"); the vector's own by
    default."""

    def checked(self) -> ApplyConfig:
        """This configuration, if it can be applied.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        if not self.prompt and self.prompts is None:
            raise LoclinError(
                "expected at least one prompt, found none: give --prompt or --prompts FILE"
            )
        if any(not p for p in self.prompt):
            raise LoclinError("expected prompts with text, found an empty one: fill it in")
        if self.prompts is not None and not self.prompts.is_file():
            raise LoclinError(
                f"expected a file of prompts, found nothing at {self.prompts}: check the path"
            )
        if not self.strength:
            raise LoclinError("expected at least one strength, found none: give --strength -1 0 1")
        for strength in self.strength:
            if not math.isfinite(strength):
                raise LoclinError(
                    f"expected a finite strength, found {strength}: change --strength"
                )
        if self.tokens is not None and self.tokens < 1:
            raise LoclinError(
                f"expected at least 1 new token, found {self.tokens}: change --tokens"
            )
        if self.start < 0:
            raise LoclinError(f"expected a first token from 0, found {self.start}: change --start")
        check_temperature(self.temperature)
        if self.shift not in (0, 1):
            raise LoclinError(f"expected a shift of 0 or 1, found {self.shift}: change --shift")
        if self.shift and self.vector.suffix != ".gguf":
            raise LoclinError(
                f"expected a GGUF file with --shift, found {self.vector}: leave --shift out"
            )
        return self


def check_temperature(temperature: float) -> None:
    """Nothing where tokens can be drawn at it.

    Raises:
        LoclinError: below 0, above 0 but too small to divide by, or not finite.
    """
    if temperature != 0 and not COLDEST <= temperature < math.inf:
        raise LoclinError(
            f"expected a temperature of 0 or from {COLDEST:g}, found {temperature}: change "
            "--temperature"
        )
