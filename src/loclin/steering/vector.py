"""A steering vector as a value: directions at block outputs, and what they were made of."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from loclin.activations.adding import added
from loclin.activations.blocks import bare, blocks, width
from loclin.errors import LoclinError
from loclin.steering.file import read_tensors, unreadable, write_tensors

SITE = "block output"
#: Strings of a vector, as they stand in a file's metadata. Some may be missing.
_NEEDED = ("model", "model_type", "route", "position", "norm", "data", "dtype", "site")
_OPTIONAL = ("revision", "layers_path")


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SteeringVector:
    """v_L for some blocks L of a model: strength·v_L is added to h_L, the output of block L.

    Sums and multiples are vectors again: (a + b)_L = a_L + b_L, (c·a)_L = c·a_L. A block that only
    one side has counts as zero in the other. The sides must be of one kind of model; what they were
    made of is written "a + b" where they differ. Source: arXiv 2308.10248; measures §13.

    Attributes:
        directions: v_L by block, from 0, each of the model's width; copied as float32 to the CPU.
        model, revision, model_type, blocks, dtype: of the model it was made with; model_type as
            transformers names it ("qwen2"), blocks None where nobody knows.
        route: how it was made: "labels", "gradient step, E1", "search", ...
        position: where activations were read: "last" or "answer".
        norm: what strength 1 is, in words.
        data: hash of the examples.
        layers_path: where the list of blocks is, if the user had to say so ("model.layers").
        about: further facts, as text.

    Raises:
        LoclinError: no directions, one that is no vector, different widths, a block that the model
            does not have; by sums, another kind of model; by multiples, a factor not finite.

    >>> facts = dict(model="m", model_type="gpt2", blocks=4, route="labels", position="last",
    ...              norm="mean", data="", dtype="float32")
    >>> a = SteeringVector(directions={1: torch.tensor([1.0, 0.0])}, **facts)
    >>> two = {1: torch.tensor([0.0, 2.0]), 3: torch.tensor([1.0, 1.0])}
    >>> b = SteeringVector(directions=two, **facts)
    >>> {layer: v.tolist() for layer, v in (2 * a - b / 2).directions.items()}
    {1: [2.0, -1.0], 3: [-0.5, -0.5]}
    """

    directions: Mapping[int, Tensor]
    model: str
    revision: str | None = None
    model_type: str
    blocks: int | None
    route: str
    position: str
    norm: str
    data: str
    dtype: str
    site: str = SITE
    layers_path: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    __array_ufunc__ = None  # a number of NumPy on the left leaves the product to this class

    def __post_init__(self) -> None:
        if not self.directions:
            raise LoclinError(
                "expected a direction for at least one block, found none: choose layers"
            )
        if any(v.ndim != 1 or not v.numel() for v in self.directions.values()):
            raise LoclinError(
                "expected one vector for each block, found another shape: take the mean over "
                "examples first"
            )
        if len({v.numel() for v in self.directions.values()}) > 1:
            found = ", ".join(sorted({str(v.numel()) for v in self.directions.values()}))
            raise LoclinError(
                f"expected vectors of one width, found {found}: make them with one model"
            )
        for layer in self.directions:
            if layer < 0 or (self.blocks is not None and layer >= self.blocks):
                most = "any" if self.blocks is None else self.blocks - 1
                raise LoclinError(
                    f"expected blocks numbered from 0 to {most}, found {layer}: check the layers"
                )
        copied = {
            int(n): self.directions[n].detach().to("cpu", torch.float32, copy=True)
            for n in sorted(self.directions)
        }
        object.__setattr__(self, "directions", copied)
        object.__setattr__(self, "about", dict(self.about))

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks that have a direction, in order."""
        return tuple(self.directions)

    @property
    def width(self) -> int:
        """d, the width of the model."""
        return next(iter(self.directions.values())).numel()

    def __repr__(self) -> str:
        lengths = {n: round(float(v.norm()), 3) for n, v in self.directions.items()}
        return f"SteeringVector({self.route!r} on {self.model!r}, length by block {lengths})"

    def __add__(self, other: object) -> SteeringVector:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        return _sum(self, other, 1.0)

    def __radd__(self, other: object) -> SteeringVector:
        """Python's `sum` begins at 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __sub__(self, other: object) -> SteeringVector:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        return _sum(self, other, -1.0)

    def __mul__(self, factor: object) -> SteeringVector:
        if not isinstance(factor, Real):
            return NotImplemented
        if not math.isfinite(factor):
            raise LoclinError(
                f"expected a finite number to scale a vector by, found {float(factor)}: give "
                "another"
            )
        return self._scaled(lambda v: v * float(factor), f"{float(factor):g} × ({self.norm})")

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> SteeringVector:
        if not isinstance(divisor, Real):
            return NotImplemented
        if divisor == 0 or not math.isfinite(divisor):
            raise LoclinError(
                f"expected a finite divisor other than 0, found {float(divisor)}: give another"
            )
        return self._scaled(lambda v: v / float(divisor), f"({self.norm}) / {float(divisor):g}")

    def __neg__(self) -> SteeringVector:
        return self._scaled(lambda v: -v, f"−({self.norm})")

    def _scaled(self, change: Callable[[Tensor], Tensor], norm: str) -> SteeringVector:
        directions = {layer: change(v) for layer, v in self.directions.items()}
        return replace(self, directions=directions, norm=norm)

    def normalised(self, length: float | int | Mapping[int, float | int] = 1.0) -> SteeringVector:
        """The same directions with this Euclidean length, at every block or by block.

        Raises:
            LoclinError: a length that is missing or not above 0, a direction that is zero or not
                finite.
        """
        self.check()
        by_block = isinstance(length, Mapping)
        lengths = (
            dict(length) if isinstance(length, Mapping) else dict.fromkeys(self.layers, length)
        )
        for layer in self.layers:
            if not 0 < lengths.get(layer, 0.0) < math.inf:
                raise LoclinError(
                    f"expected a length above 0 at block {layer}, found {lengths.get(layer)}: give "
                    "one"
                )
        scaled = {
            n: (v.double() * (lengths[n] / v.double().norm())).float()
            for n, v in self.directions.items()
        }
        words = "a length of its own at every block" if by_block else f"length {length:g}"
        return replace(self, directions=scaled, norm=words)

    def at(self, layers: Sequence[int]) -> SteeringVector:
        """The directions of these blocks alone; negative numbers count from the model's last block.

        Raises:
            LoclinError: a block that this vector has no direction for.
        """
        chosen = {}
        for layer in layers:
            number = layer if layer >= 0 or self.blocks is None else self.blocks + layer
            if number not in self.directions:
                have = ", ".join(map(str, self.layers))
                raise LoclinError(
                    f"expected a block that the vector has a direction for ({have}), found "
                    f"{layer}: change --layer"
                )
            chosen[number] = self.directions[number]
        return replace(self, directions=chosen)

    def cosine(self, other: SteeringVector) -> dict[int, float]:
        """cos(v_L, w_L) at every block that both have.

        Raises:
            LoclinError: vectors of different models, no block in common, a direction that is zero
                or not finite.
        """
        _check_addable(self, other)
        shared = [n for n in self.layers if n in other.directions]
        if not shared:
            raise LoclinError(
                "expected vectors with a block in common, found none: choose the layers anew"
            )
        self.at(shared).check()
        other.at(shared).check()
        pairs = ((n, self.directions[n].double(), other.directions[n].double()) for n in shared)
        return {n: float(a @ b / (a.norm() * b.norm())) for n, a, b in pairs}

    def check(self) -> None:
        """Whether every direction can be steered along.

        Raises:
            LoclinError: one that is zero or not finite.
        """
        for layer, direction in self.directions.items():
            if not torch.isfinite(direction).all():
                raise LoclinError(
                    f"expected finite numbers at block {layer}, found NaN or infinity: make the "
                    "vector anew"
                )
            if not direction.any():
                raise LoclinError(
                    f"expected a direction at block {layer}, found zeros: leave the block out with "
                    "--layer"
                )

    def unlike(self, model: PreTrainedModel | PeftModel) -> str:
        """How another model differs from the one it was made with, in words, or ""."""
        count, kind = len(blocks(model, self.layers_path)), _kind(model)
        found = []
        if kind != self.model_type:
            found.append(f"made with a model of type {self.model_type}, not {kind}")
        if self.blocks not in (None, count):
            found.append(f"made with {self.blocks} blocks, not {count}")
        return "; ".join(found)

    def fitted(self, model: PreTrainedModel | PeftModel, *, force: bool = False) -> SteeringVector:
        """This vector, where it can be added to this model.

        With `force`, what `unlike` says is ignored; the result is labelled as this model's. Another
        width, or a block that is not there, cannot be ignored.

        Raises:
            LoclinError: a vector of another model, or one that `check` refuses.
        """
        self.check()
        if width(model) != self.width:
            raise LoclinError(
                f"expected a vector of the model's width {width(model)}, found one of width "
                f"{self.width}, made with {self.model}: give a vector of this model"
            )
        if (unlike := self.unlike(model)) and not force:
            raise LoclinError(
                f"expected a vector of this model, found one of another ({unlike}): give a vector "
                "of this model, or ignore it with --force"
            )
        count = len(blocks(model, self.layers_path))
        if self.layers[-1] >= count:
            raise LoclinError(
                f"expected a vector for blocks 0 to {count - 1}, found one for block "
                f"{self.layers[-1]}: choose others with --layer"
            )
        return replace(self, model_type=_kind(model), blocks=count)

    def applied(
        self,
        model: PreTrainedModel | PeftModel,
        *,
        strength: float | int = 1.0,
        start: int = 0,
        force: bool = False,
    ) -> AbstractContextManager[Any]:
        """Inside, strength·v_L is added to the output of block L at every token from `start` on.

        Works in forward passes and in generation, with or without a key-value cache. At strength 0
        nothing is added.

        Raises:
            LoclinError: a vector of another model (`fitted`), a strength that is not finite, a
                negative start.
        """
        if not math.isfinite(strength):
            raise LoclinError(f"expected a finite strength, found {strength}: change --strength")
        fit = self.fitted(model, force=force)
        if strength == 0:
            return nullcontext()
        scaled = {layer: strength * v for layer, v in fit.directions.items()}
        return added(model, scaled, start=start, path=fit.layers_path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: tensor "block.{L}" for every L, everything else as metadata.

        Raises:
            LoclinError: a direction that is zero or not finite, a place that cannot be written.
        """
        self.check()
        tensors = {f"block.{layer}": v for layer, v in self.directions.items()}
        write_tensors(Path(path), tensors, strings(self))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> SteeringVector:
        """Read what `save` wrote.

        Raises:
            LoclinError: no such file, a file of something else, of a newer format or damaged.
        """
        tensors, metadata = read_tensors(Path(path))
        named = {name.removeprefix("block."): t for name, t in tensors.items()}
        return rebuilt(named, metadata, Path(path))


def _kind(model: PreTrainedModel | PeftModel) -> str:
    return str(bare(model).config.model_type)  # type: ignore[union-attr]


def strings(vector: SteeringVector) -> dict[str, str]:
    """Everything but the directions, as text."""
    facts = {name: getattr(vector, name) for name in (*_NEEDED, *_OPTIONAL, "blocks")}
    facts["about"] = json.dumps(dict(vector.about), ensure_ascii=False) if vector.about else None
    return {name: str(value) for name, value in facts.items() if value is not None}


def rebuilt(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path
) -> SteeringVector:
    """A vector from a file's tensors, by the number of their block, and what `strings` wrote.

    Raises:
        LoclinError: something missing or damaged.
    """
    try:
        directions = {int(n): t for n, t in tensors.items()}
        if any(t.dtype != torch.float32 for t in directions.values()):
            raise ValueError("tensors of another dtype than float32")
        about = json.loads(metadata.get("about", "{}"))
        if not isinstance(about, dict) or not all(isinstance(v, str) for v in about.values()):
            raise ValueError("metadata that is no text")
        vector = SteeringVector(
            directions=directions,
            blocks=int(metadata["blocks"]) if "blocks" in metadata else None,
            about=about,
            **{name: metadata[name] for name in _NEEDED},
            **{name: metadata.get(name) for name in _OPTIONAL},  # type: ignore[arg-type]
        )
        vector.check()
    except (ValueError, KeyError) as error:  # a LoclinError too
        raise LoclinError(unreadable(path, error)) from error
    return vector


def _check_addable(one: SteeringVector, other: SteeringVector) -> None:
    for name in ("width", "model_type", "blocks", "site", "layers_path"):
        a, b = getattr(one, name), getattr(other, name)
        if a != b and not (name in ("blocks", "layers_path") and None in (a, b)):
            raise LoclinError(
                f"expected vectors of one kind of model, found {name} {a} and {b}: make both with "
                "one model"
            )


def _sum(one: SteeringVector, other: SteeringVector, sign: float) -> SteeringVector:
    _check_addable(one, other)
    zero, a, b = torch.zeros(one.width), one.directions, other.directions
    joined = {
        n: _joined(getattr(one, n), getattr(other, n))
        for n in ("model", "route", "position", "data", "dtype")
    }
    every = {**one.about, **other.about}
    return replace(
        one,
        directions={n: a.get(n, zero) + sign * b.get(n, zero) for n in {*a, *b}},
        revision=one.revision if one.revision == other.revision else None,
        blocks=other.blocks if one.blocks is None else one.blocks,
        layers_path=one.layers_path or other.layers_path,
        norm=f"({one.norm}) {'+' if sign > 0 else '−'} ({other.norm})",
        about={n: _joined(one.about.get(n, ""), other.about.get(n, "")) for n in every},
        **joined,
    )


def _joined(one: str, other: str) -> str:
    """Both texts, each part once."""
    return " + ".join(dict.fromkeys(p for p in (*one.split(" + "), *other.split(" + ")) if p))
