"""What a change does to a model's answers: logit differences after every prompt, by strength, and
their slopes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from loclin.errors import LoclinError
from loclin.steering.changes import Adding, ByLayer, Change, Dose, adding, as_it_is, under
from loclin.steering.prompts import PromptSet, next_logits, pieces

LINEAR = 1.0  # the slopes of a response are over strengths up to here


@torch.no_grad()
def logit_differences(
    model: nn.Module, prompts: PromptSet, *, rows_at_once: int | None = None
) -> Float[np.ndarray, " n"]:
    """logit(toward) − logit(away) of the token after each prompt, where the model stands (measures
    §13): log p(toward) − log p(away).

    Args:
        model, prompts: in evaluation mode; with their two tokens.
        rows_at_once: in one forward pass; as many as memory allows by default. No number depends
            on it beyond round-off.

    Raises:
        LoclinError: logits that are not finite.
    """
    found: np.ndarray = differences(model, prompts, (), rows_at_once=rows_at_once)[0]
    return found


@torch.no_grad()
def differences(
    model: nn.Module,
    prompts: PromptSet,
    doses: Sequence[Dose],
    *,
    rows_at_once: int | None = None,
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
    for rows in pieces(model, prompts.batch, rows_at_once=rows_at_once):
        read, index = partial(_difference, model, prompts.rows(rows)), rows.numpy()
        found[0, index], known = as_it_is(read, [change for change, _ in added.values()])
        for i, dose in added.items():
            found[i, index] = under(read, dose, known)
            advance(len(rows) / len(prompts))
    for i, (change, strength) in enumerate(doses, 1):
        if i not in added:  # what steps the weights does so once
            with change(strength):
                found[i] = logit_differences(model, prompts, rows_at_once=rows_at_once)
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
