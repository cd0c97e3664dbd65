"""Several losses in a training loop of one's own: one call in place of `loss.backward()`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from loclin.errors import LoclinError
from loclin.geometry.gramian import summed_gramian
from loclin.schedules.loop import StepGradients, weighing
from loclin.schedules.names import LIBRARY, SUMMED


def backward(
    losses: Sequence[Tensor], schedule: str, parameters: Iterable[nn.Parameter], *, seed: int = 0
) -> Float[np.ndarray, " K"]:
    """Add Σ w_i ∂L_i/∂p to every p.grad, w by a schedule (measures §12) from their Gramian.

    Args:
        losses: K scalars; graphs that they share are freed afterwards.
        schedule: "raw sum", "norm-balanced", "PCGrad", "equal decrease", or with the extra
            `schedules` one of torchjd's ("MGDA", "UPGrad", ...); upper and lower case are one.
        parameters: of the model, as an optimiser takes them; K gradients of them are held at once.
        seed: of the order that PCGrad draws.

    Returns:
        w.

    Raises:
        LoclinError: no losses or no parameters, an unknown schedule, a package that is missing;
            by "norm-balanced", "PCGrad", "equal decrease", a gradient that is zero or not finite.

    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> backward([p[0] ** 2, 3 * p[1]], "norm-balanced", [p])
    array([1.2, 0.8])
    >>> p.grad
    tensor([2.4000, 2.4000])
    """
    trained = [p for p in parameters if p.requires_grad]
    known = {name.lower(): name for name in (*SUMMED, *LIBRARY) if name != "loss-balanced"}
    if not losses or not trained:
        raise LoclinError(
            f"expected losses and parameters that are trained, found {len(losses)} and "
            f"{len(trained)}: give at least one of each"
        )
    if schedule.lower() not in known:
        raise LoclinError(
            f"expected a schedule among {', '.join(known.values())}, found {schedule!r}: name one"
        )
    last = len(losses) - 1
    pieces = [_gradient(loss, trained, keep=i < last) for i, loss in enumerate(losses)]
    products = summed_gramian(zip(*pieces, strict=True))
    weigh = weighing(known[schedule.lower()], len(losses))
    w = weigh(StepGradients(products, np.ones(len(losses)), np.ones(len(losses)), seed))
    for p, of in zip(trained, zip(*pieces, strict=True), strict=True):
        total = sum(float(c) * g for c, g in zip(w, of, strict=True))
        p.grad = total if p.grad is None else p.grad.add_(total)
    return w


def _gradient(loss: Tensor, parameters: Sequence[nn.Parameter], *, keep: bool) -> list[Tensor]:
    found = torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
