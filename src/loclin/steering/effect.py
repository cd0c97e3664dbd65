"""What a change does to a model's answers: logit differences after every prompt, by strength, and
their slopes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from loclin.activations.adding import added
from loclin.errors import LoclinError
from loclin.steering.asked import Asked, next_logits, pieces


@torch.no_grad()
def logit_differences(
    model: nn.Module, asked: Asked, *, rows_at_once: int | None = None
) -> Float[np.ndarray, " n"]:
    """logit(toward) − logit(away) of the token after each prompt, where the model stands (measures
    §13).

    Equal to log p(toward) − log p(away). Rows of like length go through the model together; no
    number depends on that beyond round-off.

    Args:
        model: a causal LM in evaluation mode.
        asked: the prompts and their two tokens.
        rows_at_once: in one forward pass; as many as memory allows by default.

    Raises:
        LoclinError: logits that are not finite.
    """
    found = np.empty(len(asked))
    for rows in pieces(model, asked.batch, rows_at_once=rows_at_once):
        chosen = asked.rows(rows)
        logits = next_logits(model, chosen.batch)
        toward, away = (
            tokens.to(logits.device)[:, None] for tokens in (chosen.toward, chosen.away)
        )
        found[rows.numpy()] = (
            (logits.gather(1, toward) - logits.gather(1, away))[:, 0].cpu().numpy()
        )
    if not np.isfinite(found).all():
        raise LoclinError(
            f"expected finite logits, found {int((~np.isfinite(found)).sum())} of {len(found)} "
            "prompts without: take a smaller "
            "strength or step, or check the model's weights"
        )
    return found


def dose_response(
    model: nn.Module,
    asked: Asked,
    vectors: Mapping[int, Float[Tensor, " d"]],
    strengths: Sequence[float | int] | np.ndarray,
    *,
    path: str | None = None,
    only: Literal["every", "last"] = "every",
) -> Float[np.ndarray, "a n"]:
    """Logit differences of every prompt with strength·v_L added to the output of every block L
    given (measures §13).

    Args:
        model: a causal LM in evaluation mode; untouched afterwards.
        asked: the prompts and their two tokens.
        vectors: by layer, 0-based; + is toward.
        strengths: of both signs, one row each; 1 adds the vectors as they are.
        path: where the blocks are, if not where they usually are.
        only: "every" token of the prompt, or the "last" alone.

    Raises:
        LoclinError: a strength that is not finite, or what `logit_differences` and `added` refuse.
    """
    doses = np.asarray(strengths, dtype=float)
    if not len(doses) or not np.isfinite(doses).all():
        raise LoclinError(
            f"expected finite strengths, at least one, found {list(strengths)}: change them"
        )
    rows = []
    for dose in doses.tolist():
        with added(model, {layer: dose * v for layer, v in vectors.items()}, only=only, path=path):
            rows.append(logit_differences(model, asked))
    return np.stack(rows)


def slopes(
    differences: Float[np.ndarray, "a n"], strengths: Sequence[float | int] | np.ndarray
) -> Float[np.ndarray, " n"]:
    """Least-squares slope of every prompt's logit difference against the strength: Σ(s − s̄)y / Σ(s
    − s̄)², in logits.

    Raises:
        LoclinError: fewer than two different strengths, or not one for each row.

    >>> slopes(np.array([[-1.0, 3.0], [1.0, 2.0], [3.0, 1.0]]), [-1, 0, 1])
    array([ 2., -1.])
    """
    doses = np.asarray(strengths, dtype=float)
    if doses.shape != differences.shape[:1] or len(np.unique(doses)) < 2:
        raise LoclinError(
            f"expected a strength for each of {len(differences)} rows, two of them different, "
            f"found {list(strengths)}: "
            "give more strengths"
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
