"""What a search will gain, from gradient and curvature before it begins: the law of measures §10 at
this model's own numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin import law
from loclin.curvature import Method, probes
from loclin.errors import LoclinError
from loclin.geometry.gramian import inner, norm
from loclin.geometry.krylov import Product
from loclin.models import Problem
from loclin.models.evaluation import EvalSet
from loclin.parameters import ParameterSpace
from loclin.progress import ProgressCallback, silent
from loclin.search.local_law import Coordinates, LocalLaw, along_gradient, second_order
from loclin.search.noise import Noise
from loclin.seeds import derived
from loclin.stats import Estimate, over_examples, over_runs
from loclin.tasks.example import Example

FOLDS = 16  # groups of examples from which the gradient's own noise is read
AT_ONCE = 16  # rows in a pass that is differentiated
#: tr H, ‖H‖_F and ĝᵀHĝ in the coordinates of the search.
Curvature = tuple[Estimate, Estimate, float]
Step = Callable[[str], None]
SIGNS = (
    "noise of ±σ: the diagonal of H moves all candidates alike, so ‖H‖_F is that of H without it, "
    "and σ⁴‖H‖_F²/2 is the variance of curvature"
)
TAILS = "is not normal: the law's slope and trace hold, its tails are heavier"
METHODS: tuple[Method, ...] = ("double backward", "finite differences")


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The law's numbers at a model's own point, on the select examples; losses in nats per answer
    token.

    Attributes:
        dimension: of the coordinates that are searched.
        weights: ‖θ‖ of the tensors that move.
        coordinates: how many weights those are, D.
        loss: mean loss, with its interval over draws of examples; what they add is common to all
            candidates and does not hinder selection.
        gradient: ‖g‖ on the select examples.
        true_gradient: ‖ḡ‖ that other examples of the kind share (`shared_square`).
        trace, frobenius, along: tr H, ‖H‖_F (under Rademacher noise without H's diagonal) and
            ĝᵀHĝ; None where no curvature could be taken.
        notes: how curvature was taken.
    """

    dimension: int
    weights: float
    coordinates: int
    loss: Estimate
    gradient: float
    true_gradient: float
    trace: Estimate | None
    frobenius: Estimate | None
    along: float | None
    notes: tuple[str, ...]

    @property
    def local(self) -> LocalLaw:
        """The law on the select examples; curvature that is not known is 0."""
        return LocalLaw(
            gradient=self.gradient,
            trace=self.trace.value if self.trace else 0.0,
            along=self.along or 0.0,
            frobenius=self.frobenius.value if self.frobenius else 0.0,
        )

    @property
    def evaluation_noise(self) -> float:
        """τ/σ = √(‖g‖² − ‖ḡ‖²): what of a candidate's gain on the select examples is theirs alone,
        to first order.
        """
        return math.sqrt(max(self.gradient**2 - self.true_gradient**2, 0.0))

    @property
    def effective_rank(self) -> float | None:
        """r = (tr H)²/‖H‖_F²: the law asks for m_N ≪ √(2r)."""
        if self.trace is None or self.frobenius is None or not self.frobenius.value:
            return None
        return (self.trace.value / self.frobenius.value) ** 2

    def gain(self, n: int, sigma: float, *, fresh: bool = False) -> Estimate:
        """Expected gain of the best of N at σ, with the interval that the probes give tr H.

        On the select examples, or, `fresh`, on other examples than those that selected it.
        """
        trace = self.trace or Estimate(value=0.0, low=0.0, high=0.0, n=1)
        gradient = self.true_gradient if fresh else self.gradient
        noise = sigma * self.evaluation_noise if fresh else 0.0

        def at(value: float) -> float:
            if not math.isfinite(value):
                return math.copysign(math.inf, -value)
            return replace(self.local, gradient=gradient, trace=value).gain(n, sigma, noise=noise)

        low, high = at(trace.high), at(trace.low)
        return Estimate(value=at(trace.value), low=low, high=high, n=trace.n)

    def needed(self, target_gain: float, sigma: float) -> int | None:
        """N that a gain takes on other examples at σ; None where a million would not do."""
        return law.candidates_needed(
            target_gain,
            gradient=self.true_gradient,
            trace=self.local.trace,
            along=self.local.along,
            sigma=sigma,
            noise=sigma * self.evaluation_noise,
        )


def forecast(
    problem: Problem,
    space: ParameterSpace,
    examples: Sequence[Example],
    *,
    noise: Noise,
    basis: Float[Tensor, "k D"] | None = None,
    probes: int,
    seed: int,
    progress: ProgressCallback = silent,
) -> Forecast:
    """Measure what the law needs where the model stands.

    Nothing is refused: where attention cannot be differentiated twice, curvature is taken by finite
    differences of gradients, and where that cannot be done either (half precision, no memory) the
    forecast is of first order; the notes say so.

    Args:
        space: the tensors that move.
        examples: the select split.
        basis: orthonormal rows, where candidates lie in their span.
        probes: Hessian-vector products behind trace and norm, beside one along the gradient.
        seed: of the probes and of the bootstrap.
        progress: called before every pass.

    Raises:
        LoclinError: a loss that is not finite at the model's own weights.
    """
    coordinates = Coordinates.of(space, noise, basis)
    groups = len({e.group or e.prompt for e in examples})
    eval_set = EvalSet.of(problem, examples, folds=min(FOLDS, groups), at_once=AT_ONCE)
    steps, passes = eval_set.count + probes + 2, itertools.count(1)

    def step(stage: str) -> None:
        progress(stage, min(next(passes) / steps, 1.0))

    step("asking the model itself")
    loss = _own_loss(eval_set, examples, seed=seed)
    gradient, true_gradient = _gradients(space, eval_set, coordinates, step)
    length = norm(gradient)

    def measure(product: Product) -> Curvature:
        signs = noise.kind == "rademacher"
        return _measured(coordinates.seen(product), gradient, probes, seed, step, signs=signs)

    (trace, frobenius, along), notes = _curvature(space, eval_set, measure)
    if noise.kind == "rademacher" and frobenius is not None:
        notes.append(SIGNS)
    if noise.kind == "lowrank":
        notes.append(f"noise of rank {noise.rank} {TAILS}")
    return Forecast(
        dimension=coordinates.dimension,
        weights=norm(space.read()),
        coordinates=space.dimension,
        loss=loss,
        gradient=length,
        true_gradient=min(true_gradient, length),
        trace=trace,
        frobenius=frobenius,
        along=along,
        notes=tuple(notes),
    )


def _own_loss(eval_set: EvalSet, examples: Sequence[Example], *, seed: int) -> Estimate:
    """Mean loss per answer token, with its interval over groups of examples."""
    losses = eval_set.answers()[0].cpu().numpy()
    if not np.isfinite(losses).all():
        raise LoclinError(
            "expected a finite loss at the model's own weights, found "
            f"{losses[~np.isfinite(losses)][0]}: check model and data"
        )
    tokens = float(eval_set.tokens.sum()) / len(examples)
    groups = [e.group or e.prompt for e in examples]
    return over_examples(losses / tokens, groups=groups, seed=seed)


def _gradients(
    space: ParameterSpace, eval_set: EvalSet, coordinates: Coordinates, step: Step
) -> tuple[Float[Tensor, " d"], float]:
    """The gradient in the coordinates of the search, and ‖ḡ‖ by `shared_square`; a square below 0,
    where there is no signal, is 0.
    """
    shares = eval_set.tokens / eval_set.tokens.sum()
    total, own = None, 0.0
    for fold, share in enumerate(shares.tolist()):
        step("taking gradients")
        piece = coordinates.fold(space.gradient(eval_set.loss, eval_set.fold(fold))).mul_(share)
        own += inner(piece, piece)
        total = piece if total is None else total.add_(piece)
        del piece
    assert total is not None
    whole = inner(total, total)
    return total, math.sqrt(max(shared_square(whole, own, shares), 0.0))


def shared_square(whole: float, own: float, shares: Float[np.ndarray, " folds"]) -> float:
    """‖ḡ‖² without bias, from gradients g_a of disjoint groups of examples: [‖Σ w_a g_a‖² − Σ ‖w_a
    g_a‖²]/(1 − Σ w_a²), from `whole`, `own` and `shares`, the w_a.

    What is left are the inner products of different groups, whose noise is independent. May be
    below 0. A single group tells nothing, and keeps `whole`.

    >>> shared_square(1.0, 0.5, np.array([0.5, 0.5]))  # two equal gradients of norm 1
    1.0
    """
    left = 1 - float((shares**2).sum())
    return (whole - own) / left if len(shares) > 1 else whole


def _curvature(
    space: ParameterSpace, eval_set: EvalSet, measure: Callable[[Product], Curvature]
) -> tuple[Curvature | tuple[None, None, None], list[str]]:
    """Exactly where the model allows it, by finite differences where it does not, or not at all;
    and what is to be said.
    """
    problem = eval_set.problem
    batches = [batch for fold in range(eval_set.count) for batch in eval_set.fold(fold)]
    attention, reasons = problem.model.config._attn_implementation, list[str]()
    for method in METHODS:
        try:
            with second_order(problem, space, eval_set.loss, batches, method) as product:
                curvature = measure(product)
        except torch.OutOfMemoryError:
            reasons.append("no memory for second derivatives")
        except LoclinError as error:  # half precision rounds every step that is still small
            reasons.append(str(error).rsplit(": ", 1)[0])
        else:
            if reasons:
                note = f"curvature is taken by finite differences of gradients ({reasons[0]})"
            else:
                note = f"attention was switched from {attention} to eager for it"
            return curvature, [note] if reasons or attention != "eager" else []
    why = "; ".join(reasons)
    nothing = (None, None, None)
    return nothing, [f"no curvature could be taken ({why}): the forecast is of first order"]


def _measured(
    product: Product,
    gradient: Float[Tensor, " d"],
    count: int,
    seed: int,
    step: Step,
    *,
    signs: bool,
) -> Curvature:
    """By Gaussian probes; for Rademacher noise by its own kind, whose z_i(Hz)_i have mean H_ii and
    are independent between probes: their products give Σ H_ii² without bias.
    """
    step("taking curvature along the gradient")
    along, own = along_gradient(product, gradient), 0.0
    diagonal = torch.zeros_like(gradient) if signs else None

    def draw(*, seed: int) -> Tensor:
        step("taking curvature along random directions")
        z = torch.randn(len(gradient), generator=torch.Generator().manual_seed(seed)).to(gradient)
        return z.sign_() if signs else z

    def seen(z: Tensor) -> Tensor:
        nonlocal own
        image = product(z)
        if diagonal is not None:
            diagonal.add_(piece := z * image)
            own += inner(piece, piece)
        return image

    found = probes(seen, count, seed=derived(seed, "forecast"), noise=draw)
    square, alike = over_runs(found.squares), 0.0
    if diagonal is not None and count > 1:
        alike = (inner(diagonal, diagonal) - own) / (count * (count - 1))
    low, value, high = (
        math.sqrt(max(x - alike, 0.0)) for x in (square.low, square.value, square.high)
    )
    frobenius = Estimate(value=value, low=low, high=high, n=square.n)
    return over_runs(found.forms), frobenius, along
