"""What steering vectors do: which layer takes them best, how every prompt answers to the strength,
what is damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from loclin.activations.adding import added
from loclin.seeds import derived
from loclin.steering.asked import Asked
from loclin.steering.effect import dose_response, logit_differences, slopes
from loclin.steering.neutral import Neutral, damage, strength_at_kl

Told = Callable[[float], None]
#: A context inside which the model is changed by so much.
Change = Callable[[float], AbstractContextManager[object]]
LINEAR = 1.0  # slopes are over strengths up to here


@dataclass(frozen=True, eq=False, kw_only=True)
class Response:
    """How the logit difference of every prompt answers to a vector, or to another change by so
    much.

    Attributes:
        strengths: in order.
        differences: logit(toward) − logit(away) by strength and prompt.
        slopes: of every prompt, over the strengths of at most 1, in logits per strength.
    """

    strengths: tuple[float, ...]
    differences: Float[np.ndarray, "a n"]
    slopes: Float[np.ndarray, " n"]

    @property
    def changes(self) -> Float[np.ndarray, "a n"]:
        """The differences less those of the model as it is."""
        changes: np.ndarray = self.differences - self.differences[self.strengths.index(0.0)]
        return changes


@dataclass(frozen=True, eq=False, kw_only=True)
class Harm:
    """Damage at one strength.

    Attributes:
        strength: of the vector.
        kl: of every passage, nats a token.
        perplexity, before: of the text with and without the vector.
    """

    strength: float
    kl: Float[np.ndarray, " n"]
    perplexity: float
    before: float


def adding(
    model: nn.Module, vectors: Mapping[int, Float[Tensor, " d"]], *, path: str | None
) -> Change:
    """Adds a multiple of vectors to the outputs of their blocks, at every token."""
    return lambda strength: added(
        model, {layer: strength * v for layer, v in vectors.items()}, path=path
    )


def layer_slopes(
    model: nn.Module,
    asked: Asked,
    vectors: Mapping[int, Float[Tensor, " d"]],
    *,
    path: str | None,
    told: Told,
) -> dict[int, Float[np.ndarray, " n"]]:
    """Each layer alone: half the difference of the logit difference at strengths 1 and −1, of every
    prompt.
    """
    found = {}
    for i, (layer, vector) in enumerate(vectors.items()):
        minus, plus = dose_response(model, asked, {layer: vector}, [-1.0, 1.0], path=path)
        found[layer] = (plus - minus) / 2
        told((i + 1) / len(vectors))
    return found


def response(
    model: nn.Module,
    asked: Asked,
    change: Change,
    strengths: Sequence[float],
    *,
    before: Float[np.ndarray, " n"],
) -> Response:
    """The response to one change; at strength 0 it is what the model says as it is.

    Args:
        model: in evaluation mode.
        asked: the prompts.
        change: for a strength, a context inside which the model is the changed one.
        strengths: 0 among them, and two others within ±1 or more.
        before: logit differences of the model as it is.
    """
    ordered = tuple(sorted(strengths))
    rows = []
    for strength in ordered:
        with change(strength) if strength else nullcontext():
            rows.append(logit_differences(model, asked) if strength else before)
    differences = np.stack(rows)
    near = [j for j, s in enumerate(ordered) if abs(s) <= LINEAR]
    return Response(
        strengths=ordered,
        differences=differences,
        slopes=slopes(differences[near], [ordered[j] for j in near]),
    )


def responses(
    model: nn.Module,
    asked: Asked,
    vectors: Mapping[str, Mapping[int, Float[Tensor, " d"]]],
    strengths: Sequence[float],
    *,
    path: str | None,
    told: Told,
) -> dict[str, Response]:
    """The response to every vector; the model as it is is asked once.

    Args:
        model: in evaluation mode.
        asked: the prompts.
        vectors: by name, then by layer.
        strengths: 0 among them, and two others within ±1 or more.
        path: of the list of blocks.
        told: the share that is done.
    """
    before = logit_differences(model, asked)
    found = {}
    for i, (name, by_layer) in enumerate(vectors.items()):
        found[name] = response(
            model, asked, adding(model, by_layer, path=path), strengths, before=before
        )
        told((i + 1) / len(vectors))
    return found


def random_vectors(
    lengths: Mapping[int, float], width: int, *, count: int, seed: int
) -> list[dict[int, Tensor]]:
    """Directions that know nothing, as long as the vector at each layer; a function of (seed,
    number, layer) alone.
    """

    def one(number: int, layer: int) -> Tensor:
        drawn = torch.Generator().manual_seed(derived(seed, "random activation", number, layer))
        z = torch.randn(width, generator=drawn, dtype=torch.float64)
        scaled: Tensor = z * (lengths[layer] / z.norm())
        return scaled.float()

    return [{layer: one(i, layer) for layer in lengths} for i in range(count)]


def harms(
    model: nn.Module,
    neutral: Neutral,
    vectors: Mapping[int, Float[Tensor, " d"]],
    strengths: Sequence[float],
    *,
    path: str | None,
) -> list[Harm]:
    """Damage on neutral text at every strength."""
    found, change = [], adding(model, vectors, path=path)
    for strength in sorted(strengths):
        done = damage(model, neutral, partial(change, strength))
        found.append(
            Harm(
                strength=strength,
                kl=done.kl,
                perplexity=done.perplexity,
                before=done.perplexity_before,
            )
        )
    return found


def at_equal_damage(
    model: nn.Module,
    asked: Asked,
    neutral: Neutral,
    vectors: Mapping[int, Float[Tensor, " d"]],
    target: float,
    *,
    path: str | None,
) -> tuple[float, Float[np.ndarray, " n"]] | None:
    """The strength at which the damage reaches a target, and what it adds to every prompt's logit
    difference; None if it never does.
    """
    strength = strength_at_kl(model, neutral, vectors, target, path=path)
    if strength is None:
        return None
    (there,) = dose_response(model, asked, vectors, [strength], path=path)
    return strength, there - logit_differences(model, asked)
