"""`loclin steer apply`: what a model says with a steering vector at several strengths. Imports
nothing heavy before it starts, so that `--help` is quick.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from loclin.errors import LoclinError
from loclin.options import LoadOptions
from loclin.studies.checks import check_each

if TYPE_CHECKING:
    from rich.console import Console

    from loclin.steering.generation import Generation

NARROW = 20  # characters of a column; with less, one generation stands below the other


@dataclass(frozen=True, kw_only=True)
class ApplySettings(LoadOptions):
    """Generate with a steering vector at several strengths, side by side.

    strength · vector is added to the outputs of the vector's blocks; strength 0 is the model as it
    is. What strength 1 is, the file says, and so does the second line that is printed.

    Example: loclin steer apply vector.safetensors --model gpt2 --prompt "I think that" --strength
    -2 0 2
    """

    vector: Annotated[Path, tyro.conf.Positional]
    """The vector: a safetensors file of `loclin steer`, or a GGUF control vector (pip install
    'loclin[gguf]')."""
    model: str
    """A folder, a GGUF file, a hub id, smollm2-135m, or a built-in model (statements)."""
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
    layers_path: str | None = None
    """Where the model's blocks are, if they are not found ("model.layers"); the vector's own by
    default."""

    # nothing is asked of data here
    data: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    fields: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    group: Annotated[str | None, tyro.conf.Suppress] = None
    template: Annotated[str | None, tyro.conf.Suppress] = None
    long: Annotated[str, tyro.conf.Suppress] = "drop"  # type: ignore[assignment]

    def checked(self) -> ApplySettings:
        """These settings, if they can be applied.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        from loclin.steering.generation import check_temperature

        self.check_chat()
        named, file, odd = (
            bool(self.prompt),
            self.prompts,
            [s for s in self.strength if not math.isfinite(s)],
        )
        give, gguf = "give --prompt or --prompts FILE", self.vector.suffix == ".gguf"
        tokens = self.tokens is None or self.tokens >= 1
        check_each(
            (named or file is not None, "at least one prompt", "none", give),
            (all(self.prompt), "prompts with text", "an empty one", "fill it in"),
            (
                file is None or file.is_file(),
                "a file of prompts",
                f"nothing at {file}",
                "check the path",
            ),
            (bool(self.strength), "at least one strength", "none", "give --strength -1 0 1"),
            (not odd, "a finite strength", next(iter(odd), ""), "change --strength"),
            (tokens, "at least 1 new token", self.tokens, "change --tokens"),
            (self.start >= 0, "a first token from 0", self.start, "change --start"),
        )
        check_temperature(self.temperature)
        leave = "leave --shift out"
        check_each(
            (self.shift in (0, 1), "a shift of 0 or 1", self.shift, "change --shift"),
            (not self.shift or gguf, "a GGUF file with --shift", self.vector, leave),
        )
        return self


def apply(settings: ApplySettings, *, console: Console | None = None) -> list[Generation]:
    """Read vector and model, generate from every prompt at every strength, and print it.

    Raises:
        LoclinError: a vector that cannot be read or is of another model, no prompts, a context too
            small.
    """
    from rich.console import Console
    from rich.text import Text

    from loclin.activations.blocks import blocks, chosen_layers
    from loclin.models.loading import load_model
    from loclin.models.pretrained import resolved
    from loclin.steering.generation import generations
    from loclin.steering.gguf import read_gguf
    from loclin.steering.vector import SteeringVector
    from loclin.tasks.chat import chat_prompt

    console, path = console or Console(), settings.vector
    gguf = path.suffix == ".gguf"
    vector = read_gguf(path, shift=settings.shift) if gguf else SteeringVector.load(path)
    prompts, options = _prompts(settings), resolved(settings)
    with console.status("reading the model") as status:
        model, tokenizer, _ = load_model(
            options,
            seed=settings.seed,
            progress=lambda text, share: status.update(f"{text}: {share:.0%}"),
        )
    if settings.chat:
        turns = ([{"role": "user", "content": prompt}] for prompt in prompts)
        prompts = [chat_prompt(tokenizer, t, system=settings.system) for t in turns]
    vector = replace(vector, layers_path=settings.layers_path or vector.layers_path)
    if settings.layer:
        vector = vector.at(chosen_layers(len(blocks(model, vector.layers_path)), settings.layer))
    unlike = vector.unlike(model)
    vector = vector.fitted(model, force=settings.force)
    if unlike:
        print(f"loclin: ignored that the vector was {unlike}", file=sys.stderr)
    made = generations(
        model,
        tokenizer,
        vector,
        prompts,
        settings.strength,
        tokens=settings.tokens,
        start=settings.start,
        temperature=settings.temperature,
        seed=settings.seed,
    )
    where = f"block{'s' if len(vector.layers) > 1 else ''} {', '.join(map(str, vector.layers))}"
    console.print(
        Text(f"{path.name}: made with {vector.model} by {vector.route}, added at {where}")
    )
    console.print(Text(f"strength 1: {vector.norm}"))
    show(made, console)
    return made


def show(made: Sequence[Generation], console: Console) -> None:
    """Print generations prompt by prompt: a column for each strength where there is room, else one
    below the other.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    names = {g.strength: f"{g.strength:+g}" if g.strength else "0" for g in made}
    for prompt in dict.fromkeys(g.prompt for g in made):
        texts = {
            g.strength: Text(g.text.strip() or "(nothing)") for g in made if g.prompt == prompt
        }
        grid = Table(
            box=SIMPLE_HEAD,
            title=Text(prompt),
            title_justify="left",
            expand=True,
            padding=(0, 1, 0, 0),
        )
        if console.width // len(names) >= NARROW:
            for name in names.values():
                grid.add_column(name, ratio=1, overflow="fold")
            grid.add_row(*(texts[s] for s in names))
        else:
            grid.add_column("strength", no_wrap=True)
            grid.add_column("text", ratio=1, overflow="fold")
            for strength, name in names.items():
                grid.add_row(name, texts[strength])
        console.print(grid)


def _prompts(settings: ApplySettings) -> list[str]:
    """Those named one by one, then the lines of the file that are not blank."""
    lines: list[str] = []
    if settings.prompts is not None:
        try:
            text = settings.prompts.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LoclinError(
                f"expected a text file of prompts in UTF-8, found {error}: give another --prompts"
            ) from error
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines:
            raise LoclinError(
                f"expected prompts in {settings.prompts}, found blank lines only: write one a line"
            )
    return [*settings.prompt, *lines]
