"""Changes of a model by so much, and what they do to its answers: logit differences after every
prompt, by strength, and their slopes. A vector that is added costs the blocks after it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from loclin.activations.adding import added
from loclin.activations.blocks import blocks, chosen_layers
from loclin.activations.suffix import Known, remembered, resumable, resumed
from loclin.errors import LoclinError
from loclin.steering.prompts import PromptSet, next_logits, pieces

T = TypeVar("T")
#: Vectors by layer, 0-based.
ByLayer = Mapping[int, Float[Tensor, " d"]]
#: For a strength, a context inside which the model is changed by so much.
Change = Callable[[float], AbstractContextManager[object]]
#: A change, and by how much.
Dose = tuple[Change, float]


@dataclass(frozen=True, eq=False, kw_only=True)
class Adding:
    """Adds strength·v_L to the output of every block L that has a vector; `path` as of `added`."""

    model: nn.Module
    vectors: ByLayer
    path: str | None = None

    def __call__(self, strength: float) -> AbstractContextManager[object]:
        """Inside, the model with strength·v_L added."""
        scaled = {layer: strength * v for layer, v in self.vectors.items()}
        return added(self.model, scaled, path=self.path)

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks of the model."""
        return blocks(self.model, self.path)

    @property
    def first(self) -> int:
        """The first block that a vector is added to."""
        return min(chosen_layers(len(self.layers), list(self.vectors)))


def adding(model: nn.Module, vectors: ByLayer, *, path: str | None = None) -> Adding:
    """The change that adds these vectors."""
    return Adding(model=model, vectors=vectors, path=path)


def as_it_is(read: Callable[[], T], changes: Sequence[Change]) -> tuple[T, Known]:
    """What one pass reads of the model as it is, and what `under` needs to begin at these changes;
    nothing where the model's passes cannot be resumed.
    """
    adders = [c for c in changes if isinstance(c, Adding) and c.vectors]
    if not adders or not resumable(adders[0].model, adders[0].path):
        return read(), {}
    with remembered(adders[0].layers, sorted({c.first for c in adders})) as known:
        return read(), known


def under(read: Callable[[], T], dose: Dose, known: Known) -> T:
    """What one pass over the same rows reads under a change: only the blocks after it are run."""
    change, strength = dose
    with ExitStack() as stack:
        if isinstance(change, Adding) and change.vectors and change.first in known:
            stack.enter_context(resumed(change.layers, change.first, known))
        with change(strength):
            return read()


LINEAR = 1.0  # the slopes of a response are over strengths up to here


@torch.no_grad()
def logit_differences(model: nn.Module, prompts: PromptSet) -> Float[np.ndarray, " n"]:
    """logit(toward) − logit(away) of the token after each prompt, where the model stands (measures
    §13): log p(toward) − log p(away).

    Args:
        model, prompts: in evaluation mode; with their two tokens.

    Raises:
        LoclinError: logits that are not finite.
    """
    found: np.ndarray = differences(model, prompts, ())[0]
    return found


@torch.no_grad()
def differences(
    model: nn.Module,
    prompts: PromptSet,
    doses: Sequence[Dose],
    *,
    progress: Callable[[float], None] | None = None,
) -> Float[np.ndarray, "b n"]:
    """The same where the model stands, in the first row, and then under every dose. A vector that
    is added costs the blocks after it alone, once the rest has run for all of them.

    Raises:
        LoclinError: logits that are not finite.
    """
    found, done = np.empty((1 + len(doses), len(prompts))), 0.0

    def advance(share: float) -> None:
        nonlocal done
        done += share / len(doses)
        if progress is not None:
            progress(min(done, 1.0))

    added = {i: d for i, d in enumerate(doses, 1) if isinstance(d[0], Adding)}
    for rows in pieces(model, prompts.batch):
        read, index = partial(_difference, model, prompts.rows(rows)), rows.numpy()
        found[0, index], known = as_it_is(read, [change for change, _ in added.values()])
        for i, dose in added.items():
            found[i, index] = under(read, dose, known)
            advance(len(rows) / len(prompts))
    for i, (change, strength) in enumerate(doses, 1):
        if i not in added:  # what steps the weights does so once
            with change(strength):
                found[i] = logit_differences(model, prompts)
            advance(1.0)
    if not np.isfinite(found).all():
        wrong = int((~np.isfinite(found)).any(0).sum())
        raise LoclinError(
            f"expected finite logits, found {wrong} of {len(prompts)} prompts without: take a "
            "smaller strength or step, or check the model's weights"
        )
    return found


def _difference(model: nn.Module, prompts: PromptSet) -> Float[np.ndarray, " n"]:
    logits = next_logits(model, prompts.batch)
    toward, away = (t.to(logits.device)[:, None] for t in (prompts.toward, prompts.away))
    difference = logits.gather(1, toward) - logits.gather(1, away)
    return difference[:, 0].cpu().numpy()


def layer_slopes(
    model: nn.Module,
    prompts: PromptSet,
    vectors: ByLayer,
    *,
    path: str | None,
    progress: Callable[[float], None],
) -> dict[int, Float[np.ndarray, " n"]]:
    """Each layer alone: half the difference of the logit difference at strengths 1 and −1, of every
    prompt.
    """
    changes = [adding(model, {layer: vector}, path=path) for layer, vector in vectors.items()]
    doses = [(change, sign) for change in changes for sign in (-1.0, 1.0)]
    found = differences(model, prompts, doses, progress=progress)[1:]
    return {n: (found[2 * i + 1] - found[2 * i]) / 2 for i, n in enumerate(vectors)}


@dataclass(frozen=True, eq=False, kw_only=True)
class Response:
    """How the logit difference of every prompt answers to a change by so much.

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


def responses(
    model: nn.Module,
    prompts: PromptSet,
    changes: Mapping[str, Change],
    strengths: Sequence[float],
    *,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Response]:
    """The response to every change by its name; the model as it is is measured once.

    The strengths are 0 and at least two others within ±1, in any order.
    """
    ordered = tuple(sorted(strengths))
    near = [j for j, s in enumerate(ordered) if abs(s) <= LINEAR]
    doses = [(change, s) for change in changes.values() for s in ordered if s]
    before, *after = differences(model, prompts, doses, progress=progress)
    rows, found = iter(after), {}
    for name in changes:
        each = np.stack([next(rows) if s else before for s in ordered])
        fitted = slopes(each[near], [ordered[j] for j in near])
        found[name] = Response(strengths=ordered, differences=each, slopes=fitted)
    return found


def slopes(
    differences: Float[np.ndarray, "a n"], strengths: Sequence[float | int] | np.ndarray
) -> Float[np.ndarray, " n"]:
    """Least-squares slope of every prompt's logit difference against the strength, in logits: Σ(s −
    s̄)y / Σ(s − s̄)².

    Raises:
        LoclinError: fewer than two different strengths, or not one for each row.

    >>> slopes(np.array([[-1.0, 3.0], [1.0, 2.0], [3.0, 1.0]]), [-1, 0, 1])
    array([ 2., -1.])
    """
    doses = np.asarray(strengths, dtype=float)
    if doses.shape != differences.shape[:1] or len(np.unique(doses)) < 2:
        raise LoclinError(
            f"expected a strength for each of {len(differences)} rows, two of them different, "
            f"found {list(strengths)}: give more strengths"
        )
    centred = doses - doses.mean()
    return np.asarray(centred @ differences / (centred @ centred))


def anti_steerable(slopes: Float[np.ndarray, " n"]) -> float:
    """Share of the prompts that a vector steers the other way: those of slope < 0 (measures §13).

    >>> anti_steerable(np.array([0.5, -0.1, 0.0, 2.0]))
    0.25
    """
    if not len(slopes):
        raise LoclinError(
            "expected the slope of at least one prompt, found none: give more prompts"
        )
    return float((slopes < 0).mean())
