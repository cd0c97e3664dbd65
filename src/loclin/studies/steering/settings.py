"""Settings of `loclin steer`, and what its claims are asked alike. Imports nothing heavy, so that
`--help` is quick.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tyro

from loclin.options import BUILT_IN
from loclin.steering.estimands import Estimand, Form
from loclin.studies.checks import check_counts, check_each
from loclin.studies.settings import ModelSettings, Sizes, Work, digest_of
from loclin.studies.steering.names import PARTS, ROUTES

S = TypeVar("S", bound="SteeringSettings")
WINNERS = 20


@dataclass(frozen=True, kw_only=True)
class SteeringSettings(ModelSettings):
    """Settings of a command about steering."""

    data: tuple[str, ...] = ()
    """JSON Lines files of questions with two options or of A/B contrast pairs, hub data sets
    (google/boolq), or statements. A built-in model brings its own, of which what it was trained or
    chosen on is left out."""
    space: str = "full"
    """Weights that step: full, or a shell pattern of parameter names ("*attn*"; several separated
    by commas)."""

    positive: str | None = None
    """The option that counts as +, with its space (" yes", which is the default where all have it).
    Without one the right answer of each example does."""
    layers_path: str | None = None
    """Where the list of blocks is in the model ("model.layers"), if it is not found by itself."""
    eta: float = 1e-3
    """η, the length of the gradient step over the length of the weights."""

    labels: int = 128
    """Examples for the vector from labels, and for the gradient of the logits."""
    gradient: int = 128
    """Examples for the gradient, and for the scores of the search."""
    shift: int = 128
    """Prompts on which the shift of a step is read."""
    choose: int = 64
    """Examples that choose the layer."""
    test: int = 128
    """Examples that measure the effect, in the end."""

    strengths: tuple[float, ...] = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
    """Multiples of a vector that are added; slopes are fitted up to 1 either way."""
    kl: float = 0.1
    """Damage in nats a token at which effects are compared too."""
    neutral: Path | None = None
    """Plain text, one passage a line, on which damage is measured; by default the model's own
    samples."""

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of each part."""
        return {name: int(getattr(self, name)) for name in PARTS}

    def fingerprint(self) -> dict[str, Any]:
        """The settings that decide the record, and digests of the files that were named."""
        digest = {"neutral_digest": digest_of([self.neutral])} if self.neutral else {}
        return {**super().fingerprint(), **digest}

    def checked(self: S) -> S:
        """These settings, if they can be run; raises as `RunSettings.checked` does."""
        super().checked()
        near, neutral = set(self.strengths), self.neutral
        finite, once = all(map(math.isfinite, near)), len(near) == len(self.strengths)
        pattern = "merge the adapter into the model, or give a pattern"
        strengths = "different finite strengths with −1, 0 and 1 among them"
        check_each(
            (self.space != "lora", "--space full or a pattern of parameter names", "lora", pattern),
            (0 < self.eta < math.inf, "eta above 0", self.eta, "change --eta"),
            (0 < self.kl < math.inf, "kl above 0", self.kl, "change --kl"),
            (
                {-1.0, 0.0, 1.0} <= near and finite and once,
                strengths,
                [*self.strengths],
                "change --strengths",
            ),
            (
                neutral is None or neutral.is_file(),
                "a file for --neutral",
                f"nothing at {neutral}",
                "check the path",
            ),
        )
        return self


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
    prompts_alone: ClassVar[bool] = True

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
        data = "give a JSON Lines file, google/boolq or statements"
        named = self.model in BUILT_IN or bool(self.data)
        check_each((named, f"--data with the model {self.model!r}", "none", data))
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
        check_each(*self._checks())
        for name, target in (("vector", self.vector), ("gguf", self.gguf)):
            if target is not None:
                _check_target(name, target)
        package = not self.gguf or find_spec("gguf") is not None
        remedy = "pip install 'loclin[gguf]'"
        check_each((package, "the gguf package for --gguf", "none", remedy))
        return self

    def _checks(self) -> Iterator[tuple[bool, str, object, str]]:
        """What has to hold, what was expected, what was found, what to do."""
        stepped = {"gradient", "search"} & {*self.routes}
        found, remedy = f"k = {self.k} of n = {self.n}", "change --k or --n"
        fewer = self.k < self.n or "search" not in self.routes
        yield fewer, "fewer winners than candidates", found, remedy
        numbers = self.layer and all(re.fullmatch(r"-?\d+", text) for text in self.layer)
        found = f"--layer {' '.join(self.layer)}"
        auto = self.layer == ("auto",) or bool(numbers)
        yield auto, "auto or whole numbers", found, "change --layer"
        yield 0 < self.size < math.inf, "size above 0", self.size, "change --size"
        exact, remedy = (
            self.dtype not in ("bfloat16", "float16") or not stepped,
            "take float32, or ",
        )
        remedy += "--from labels --compare labels logits"
        expected = "float32 or float64 weights for small steps"
        yield exact, expected, f"--dtype {self.dtype}", remedy
        folder = self.out is None or self.out.suffix != ".safetensors"
        remedy = "the vector's file is --vector"
        yield folder, "a run folder for --out", self.out, remedy


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
    above = next((p for p in path.absolute().parents if p.exists()), None)
    free = above is not None and above.is_dir() and os.access(above, os.W_OK)
    way, other = f"{above} on the way to {path}", f"choose another --{name}"
    check_each(
        (not path.is_dir(), f"a file for --{name}", f"the folder {path}", "add a file name"),
        (free, f"a folder that can be written for --{name}", way, other),
    )
