"""Settings of `loclin steer`. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from loclin.errors import LoclinError

Form = Literal["auto", "class", "paired"]
Estimand = Literal["E1", "E2", "E3"]
#: The disjoint parts that the examples are divided into.
PARTS = ("labels", "gradient", "shift", "choose", "test")
#: Settings that say where, not what.
NOT_WHAT = ("out", "gguf", "folder")
#: Every route beside which the one asked for can stand.
ROUTES = ("labels", "gradient", "logits", "search")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Make a steering vector for a model, choose its layer, and know what it does.

    A vector that is added to the output of a block shifts the model's answers towards one option.
    It comes from labels (the difference of mean activations), from one gradient step on the weights
    (the shift of activations that it makes), or from a random search (the shift that the best of
    many random steps make). Five disjoint parts of the examples serve one purpose each: labels and
    gradient make vectors, shift reads what a step does, choose picks the layer, test measures,
    once. The page compares the routes at every layer with a null, and says how strongly the vector
    steers, how evenly, and what it damages.

    Example: loclin steer --model statements-small --from gradient --out vector.safetensors
    """

    model: str
    """The model: a folder, a hub id, or a built-in model that answers with options (statements)."""
    data: str | None = None
    """Examples with two options each: a JSON Lines file, a hub data set (google/boolq), or
    statements. A built-in model brings its own."""
    task: str | None = None
    """One task of the data; all of them together by default."""
    route: Annotated[Literal["labels", "gradient", "search"], tyro.conf.arg(name="from")] = "labels"
    """What the vector is made from."""
    compare: tuple[Literal["labels", "gradient", "logits", "search"], ...] = (
        "labels",
        "gradient",
        "logits",
    )
    """Routes that are made beside it for comparison; logits is the gradient of the logit difference
    in the activations."""
    layer: tuple[str, ...] = ("auto",)
    """Blocks to add it to, from 0, negative from the end; several are added to together. auto: the
    one where the vector steers most on the choose part."""

    positive: str | None = None
    """The option that counts as +, with its space (" yes", which is the default where all have it).
    Without one the right answer of each example does."""
    form: Form = "auto"
    """class: mean activation where the positive option is right, less where it is not. paired: mean
    over prompts of the activation at one answer less that at the other. auto: class where there is
    a positive option."""
    estimand: Estimand = "E1"
    """Of the gradient step: E1, the mean shift of a step towards the positive answer; E2, of a step
    towards the right ones; E3, the shift where the positive answer is right less the shift where it
    is not, of the same step."""
    eta: float = 1e-3
    """η, the length of the gradient step over the length of the weights."""
    space: str = "full"
    """Weights that step: full, or a shell pattern of parameter names ("*attn*"; several separated
    by commas)."""
    n: int = 200
    """Candidates of the search."""
    k: int = 20
    """Of them, the best, whose mean shift is the vector."""
    size: float = 0.02
    """Length of the candidates' random steps over the length of the weights."""

    labels: int = 128
    """Examples for the vector from labels, and for the gradient of the logits."""
    gradient: int = 128
    """Examples for the gradient, or for the scores of the search."""
    shift: int = 128
    """Prompts on which the shift of a step is read."""
    choose: int = 64
    """Examples that choose the layer."""
    test: int = 128
    """Examples that measure the effect, in the end."""
    strengths: tuple[float, ...] = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
    """Multiples of the vector that are added; 1 is as long as the difference between the classes
    there."""
    null: int = 100
    """Random directions in the weights behind the null of the cosine with labels; 0 leaves it out.
    """
    band: int = 20
    """Random directions of the activations that stand beside the effect."""
    neutral: Path | None = None
    """Plain text, one passage a line, on which damage is measured; by default the model's own
    samples."""
    texts: int = 64
    """Passages of neutral text."""
    kl: float = 0.1
    """Damage in nats a token at which the routes are compared too."""
    tokens: int = 12
    """Tokens of the examples of steered text; 0 leaves them out."""

    seed: int = 0
    """Of the division and of everything random."""
    out: Path | None = None
    """File of the vector (safetensors); vector.safetensors in the run folder by default."""
    gguf: Path | None = None
    """Also write a control vector for llama.cpp here; it has no block 0, which --layer auto then
    leaves out. pip install 'loclin[gguf]'."""
    folder: Path | None = None
    """Run folder with record and page; runs/steer-MODEL-ROUTE by default."""
    layers_path: str | None = None
    """Where the list of blocks is in the model ("model.layers"), if it is not found by itself."""
    template: str | None = None
    """Prompt made from a record's fields: "{passage}\\nQuestion: {question}?\\nAnswer:"."""
    long: Literal["drop", "fail"] = "drop"
    """What happens to prompts longer than the model's context."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "float32"
    """Of the weights; in half precision only --from labels with --compare labels logits works,
    since small steps are rounded away."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: an accelerator where there is one."""
    device_map: str | None = None
    """Spread a large model over devices by accelerate (auto, balanced) instead of --device."""
    trust_remote_code: bool = False
    """Run code that comes with a model. Read it first."""

    @property
    def run(self) -> Path:
        """The run folder."""
        name = re.sub(r"[^A-Za-z0-9.]+", "-", Path(self.model).name).strip("-.")
        return self.folder or Path("runs") / f"steer-{name}-{self.route}"

    @property
    def file(self) -> Path:
        """Where the vector goes."""
        return self.out or self.run / "vector.safetensors"

    @property
    def routes(self) -> tuple[str, ...]:
        """The routes that are made, the one asked for first."""
        return (self.route, *(r for r in ROUTES if r in self.compare and r != self.route))

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of each part."""
        return {name: int(getattr(self, name)) for name in PARTS}

    @property
    def given_layers(self) -> tuple[int, ...] | None:
        """The layers asked for, or None for auto."""
        return None if self.layer == ("auto",) else tuple(int(text) for text in self.layer)

    @property
    def without_first(self) -> bool:
        """Whether block 0 is left out of the choice: llama.cpp adds no vector there."""
        return self.gguf is not None and self.given_layers is None

    def checked(self) -> Config:
        """This configuration, if a vector can be made with it.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        least = {
            "labels": 4,
            "gradient": 2,
            "shift": 4,
            "choose": 2,
            "test": 2,
            "n": 2,
            "k": 1,
            "texts": 1,
            "band": 2,
        }
        least |= {"null": 0, "tokens": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise LoclinError(
                    f"expected {name} of at least {low}, found {getattr(self, name)}: change "
                    f"--{name}"
                )
        if self.k >= self.n and "search" in self.routes:
            raise LoclinError(
                f"expected fewer winners than candidates, found k = {self.k} of n = {self.n}: "
                "change --k or --n"
            )
        self._check_layer()
        self._check_numbers()
        if self.space == "lora":
            raise LoclinError(
                "expected --space full or a pattern of parameter names, found lora: merge the "
                "adapter into the model, or give a pattern"
            )
        if self.dtype in ("bfloat16", "float16") and {"gradient", "search"} & set(self.routes):
            raise LoclinError(
                f"expected float32 or float64 weights for small steps, found --dtype {self.dtype}: "
                "take float32, or --from labels "
                "--compare labels logits"
            )
        for name, path in (("data", Path(self.data or "")), ("neutral", self.neutral)):
            if (
                path is not None
                and (name == "neutral" or path.suffix in (".jsonl", ".json"))
                and not path.is_file()
            ):
                raise LoclinError(
                    f"expected a file for --{name}, found nothing at {path}: check the path"
                )
        for name, target in (("out", self.out), ("gguf", self.gguf)):
            if target is not None:
                _check_target(name, target)
        return self

    def _check_layer(self) -> None:
        if self.layer != ("auto",) and (
            not self.layer or not all(re.fullmatch(r"-?\d+", t) for t in self.layer)
        ):
            raise LoclinError(
                f"expected auto or whole numbers, found --layer {' '.join(self.layer)}: change "
                "--layer"
            )

    def _check_numbers(self) -> None:
        above: Sequence[tuple[str, float]] = [
            ("eta", self.eta),
            ("kl", self.kl),
            ("size", self.size),
        ]
        for name, value in above:
            if not 0 < value < math.inf:
                raise LoclinError(f"expected {name} above 0, found {value}: change --{name}")
        wanted = {-1.0, 0.0, 1.0} - set(self.strengths)
        if (
            wanted
            or not all(map(math.isfinite, self.strengths))
            or len(set(self.strengths)) < len(self.strengths)
        ):
            raise LoclinError(
                "expected different finite strengths with −1, 0 and 1 among them, found "
                f"{list(self.strengths)}: change --strengths"
            )


def _check_target(name: str, path: Path) -> None:
    """Before any work: whether a file can be written there, in a folder that is there or can be
    made.
    """
    if path.is_dir():
        raise LoclinError(f"expected a file for --{name}, found the folder {path}: add a file name")
    above = next((p for p in path.absolute().parents if p.exists()), None)
    if above is None or not above.is_dir() or not os.access(above, os.W_OK):
        raise LoclinError(
            f"expected a folder that can be written for --{name}, found {above} on the way to "
            f"{path}: choose another --{name}"
        )
