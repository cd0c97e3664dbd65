"""Settings of `loclin steer`. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from loclin.errors import LoclinError
from loclin.options import BUILT_IN
from loclin.steering.estimands import Estimand, Form
from loclin.studies.checks import check_counts
from loclin.studies.settings import Sizes, Work
from loclin.studies.steering.names import ROUTES
from loclin.studies.steering.options import SteeringSettings

WINNERS = 20


@dataclass(frozen=True, kw_only=True)
class SteerSettings(SteeringSettings):
    """Make a steering vector for a model, choose its layer, and know what it does.

    A vector that is added to the output of a block shifts the model's answers towards one option.
    It comes from labels (the difference of mean activations), from one gradient step on the weights
    (the shift of activations that it makes), or from a random search (the shift that the best of
    many random steps make). Five disjoint parts of the examples serve one purpose each: labels and
    gradient make vectors, shift reads what a step does, choose picks the layer, test measures,
    once. The page compares the routes at every layer with a null, and says how strongly the vector
    steers, how evenly, and what it damages.

    Example: loclin steer --model statements-small --from gradient --vector vector.safetensors
    """

    study: ClassVar[str] = "steer"
    kind: ClassVar[str] = "steer"
    in_process: ClassVar[bool] = True

    lowered: ClassVar[Mapping[str, int]] = {
        **dict.fromkeys(("labels", "gradient", "shift", "choose"), 16),
        "test": 32,
        "band": 5,
        "texts": 8,
        "n": 20,
    }
    scored: ClassVar[tuple[str, ...]] = ("test",)

    model: str
    """The model: a folder, a GGUF file, a hub id, smollm2-135m, or a built-in model that answers
    with options (statements)."""
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

    form: Form = "auto"
    """class: mean activation where the positive option is right, less where it is not. paired: mean
    over prompts of the activation at one answer less that at the other. auto: class where there is
    a positive option."""
    estimand: Estimand = "E1"
    """Of the gradient step: E1, the mean shift of a step towards the positive answer; E2, of a step
    towards the right ones; E3, the shift where the positive answer is right less the shift where it
    is not, of the same step."""
    n: int = 200
    """Candidates of the search."""
    k: int = WINNERS
    """Of them, the best, whose mean shift is the vector; a tenth by default where N is small."""
    size: float = 0.02
    """Length of the candidates' random steps over the length of the weights."""

    null: int | Literal["law"] = "law"
    """The null of the gradient step's cosine with labels, that of random steps in the weights: law,
    from one backward pass a block and a dozen steps; or so many steps that are taken; 0 leaves it
    out."""
    band: int = 20
    """Random directions of the activations that stand beside the effect."""
    texts: int = 64
    """Passages of neutral text."""
    tokens: int = 12
    """Tokens of the examples of steered text; 0 leaves them out."""

    vector: Path | None = None
    """Also write the vector (safetensors) here; vector.safetensors in the run folder holds it."""
    gguf: Path | None = None
    """Also write a control vector for llama.cpp here; it has no block 0, which --layer auto then
    leaves out. pip install 'loclin[gguf]'."""
    # one vector is made at a time
    workers: Annotated[int, tyro.conf.Suppress] = 0
    ray: Annotated[str | None, tyro.conf.Suppress] = None

    @property
    def run_folder(self) -> Path:
        """Where the record goes; the default names the route too."""
        return self.out or Path("runs") / f"{self.entry}-{self.route}"

    @property
    def routes(self) -> tuple[str, ...]:
        """The routes that are made, the one asked for first."""
        return (self.route, *(r for r in ROUTES if r in self.compare and r != self.route))

    def work(self, sizes: Sizes) -> list[Work]:
        """Making the vectors, their layer, their effect and their damage."""
        routes = self.routes
        step = "gradient" in routes
        steps = self.null if isinstance(self.null, int) else 12
        null = 2 * steps * self.shift if step and "labels" in routes else 0
        found = self.n * (self.gradient + self.shift) if "search" in routes else 0
        differentiated = self.gradient * step + self.labels * ("logits" in routes)
        making = 2 * self.labels + 17 * self.shift * step + null + found
        choosing = 2 * sizes.layers * self.choose if self.given_layers is None else 0
        near = sum(abs(s) <= 1 for s in self.strengths)
        effect = (len(routes) * len(self.strengths) + self.band * near) * self.test
        damage = (len(self.strengths) + 12 * len(routes)) * (self.texts + self.test)
        return [
            Work(what="making vectors", forward=making, backward=differentiated),
            Work(what="choosing the layer", forward=choosing),
            Work(what="effects", forward=effect),
            Work(what="damage", forward=damage),
        ]

    @property
    def given_layers(self) -> tuple[int, ...] | None:
        """The layers asked for, or None for auto."""
        return None if self.layer == ("auto",) else tuple(int(text) for text in self.layer)

    @property
    def without_first(self) -> bool:
        """Whether block 0 is left out of the choice: llama.cpp adds no vector there."""
        return self.gguf is not None and self.given_layers is None

    def fingerprint(self) -> dict[str, Any]:
        """What decides the vector, wherever it goes."""
        found = super().fingerprint() | {"without_block_0": self.without_first}
        return {k: v for k, v in found.items() if k not in ("vector", "gguf")}

    def checked(self) -> SteerSettings:
        """These settings, if a vector can be made with them.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        if self.model not in BUILT_IN and not self.data:
            raise LoclinError(
                f"expected --data with the model {self.model!r}, found none: give a JSON Lines "
                "file, google/boolq or statements"
            )
        super().checked()
        for least, names in (
            (4, ("labels", "shift")),
            (2, ("gradient", "choose", "test", "n", "band")),
            (1, ("k", "texts")),
            (0, ("tokens",) if self.null == "law" else ("null", "tokens")),
        ):
            check_counts(self, names, least)
        if self.k == WINNERS >= self.n:
            return replace(self, k=max(1, self.n // 10)).checked()
        if self.k >= self.n and "search" in self.routes:
            raise LoclinError(
                f"expected fewer winners than candidates, found k = {self.k} of n = {self.n}: "
                "change --k or --n"
            )
        self._check_numbers()
        self._check_weights()
        if self.out is not None and self.out.suffix == ".safetensors":
            raise LoclinError(
                f"expected a run folder for --out, found {self.out}: the vector's file is --vector"
            )
        for name, target in (("vector", self.vector), ("gguf", self.gguf)):
            if target is not None:
                _check_target(name, target)
        if self.gguf and find_spec("gguf") is None:
            raise LoclinError(
                "expected the gguf package for --gguf, found none: pip install 'loclin[gguf]'"
            )
        return self

    def _check_numbers(self) -> None:
        numbered = self.layer and all(re.fullmatch(r"-?\d+", t) for t in self.layer)
        if self.layer != ("auto",) and not numbered:
            raise LoclinError(
                f"expected auto or whole numbers, found --layer {' '.join(self.layer)}: change "
                "--layer"
            )
        if not 0 < self.size < math.inf:
            raise LoclinError(f"expected size above 0, found {self.size}: change --size")

    def _check_weights(self) -> None:
        if self.dtype in ("bfloat16", "float16") and {"gradient", "search"} & set(self.routes):
            raise LoclinError(
                f"expected float32 or float64 weights for small steps, found --dtype {self.dtype}: "
                "take float32, or --from labels --compare labels logits"
            )


def preset(model: str | None = None) -> SteerSettings | None:
    """The defaults for a model, None where none is named: of your own, one route and counts that
    take minutes at a hundred million weights on two cores. Choosing the layer and random directions
    are most of the work.
    """
    if model is None:
        return None
    settings = SteerSettings(model=model)
    if model in BUILT_IN:
        return settings
    return replace(settings, compare=(), choose=32, test=64, texts=16)


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
