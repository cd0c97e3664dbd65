"""What a change does to a model's answers: logit differences after every prompt, by strength, and
their slopes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from loclin.activations.adding import added
from loclin.errors import LoclinError
from loclin.steering.prompts import PromptSet, next_logits, pieces

#: Vectors by layer, 0-based.
ByLayer = Mapping[int, Float[Tensor, " d"]]
#: For a strength, a context inside which the model is changed by so much.
Change = Callable[[float], AbstractContextManager[object]]
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
    found = np.empty(len(prompts))
    for rows in pieces(model, prompts.batch, rows_at_once=rows_at_once):
        chosen = prompts.rows(rows)
        logits = next_logits(model, chosen.batch)
        toward, away = (t.to(logits.device)[:, None] for t in (chosen.toward, chosen.away))
        difference = logits.gather(1, toward) - logits.gather(1, away)
        found[rows.numpy()] = difference[:, 0].cpu().numpy()
    if not np.isfinite(found).all():
        raise LoclinError(
            f"expected finite logits, found {int((~np.isfinite(found)).sum())} of {len(found)} "
            "prompts without: take a smaller strength or step, or check the model's weights"
        )
    return found


def adding(
    model: nn.Module,
    vectors: ByLayer,
    *,
    path: str | None = None,
    only: Literal["every", "last"] = "every",
) -> Change:
    """Adds strength·v_L to the output of every block L given; `path` and `only` as `added` takes
    them.
    """

    def change(strength: float) -> AbstractContextManager[object]:
        scaled = {layer: strength * v for layer, v in vectors.items()}
        return added(model, scaled, only=only, path=path)

    return change


def dose_response(
    model: nn.Module,
    prompts: PromptSet,
    change: Change,
    strengths: Sequence[float | int] | np.ndarray,
) -> Float[np.ndarray, "a n"]:
    """Logit differences of every prompt under a change, one row for each strength (measures §13).

    Args:
        model, prompts: in evaluation mode, untouched afterwards; with their two tokens.
        change: a vector that is added (`adding`), a weight step, ...
        strengths: finite, of both signs.

    Raises:
        LoclinError: a strength that is not finite, or what `logit_differences` and the change
            refuse.
    """
    doses = np.asarray(strengths, dtype=float)
    if not len(doses) or not np.isfinite(doses).all():
        raise LoclinError(
            f"expected finite strengths, at least one, found {list(strengths)}: change them"
        )
    rows = []
    for dose in doses.tolist():
        with change(dose):
            rows.append(logit_differences(model, prompts))
    return np.stack(rows)


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
    found = {}
    for i, (layer, vector) in enumerate(vectors.items()):
        change = adding(model, {layer: vector}, path=path)
        minus, plus = dose_response(model, prompts, change, [-1.0, 1.0])
        found[layer] = (plus - minus) / 2
        progress((i + 1) / len(vectors))
    return found


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


def response(
    model: nn.Module,
    prompts: PromptSet,
    change: Change,
    strengths: Sequence[float],
    *,
    before: Float[np.ndarray, " n"],
) -> Response:
    """The response to one change; `before` is taken for strength 0: the model as it is.

    The strengths are 0 and at least two others within ±1, in any order.
    """
    ordered, rows = tuple(sorted(strengths)), []
    for strength in ordered:
        with change(strength) if strength else nullcontext():
            rows.append(logit_differences(model, prompts) if strength else before)
    differences = np.stack(rows)
    near = [j for j, s in enumerate(ordered) if abs(s) <= LINEAR]
    fitted = slopes(differences[near], [ordered[j] for j in near])
    return Response(strengths=ordered, differences=differences, slopes=fitted)


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
