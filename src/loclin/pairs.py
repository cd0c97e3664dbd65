"""Pairs of updates: may two be added, and in which order? (measures §15)

Two tasks A and B at one point θ have losses L_A, L_B, gradients g and Hessians H. "AB" is a step on
A first, then one on B. Nothing here moves the space for good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.curvature import CurvatureOperator, Method
from loclin.errors import LoclinError
from loclin.geometry.gramian import inner, norm
from loclin.parameters import ParameterSpace, SummedLoss, finite_loss, some_items, summed

T = TypeVar("T")
ONSET = 0.1  # c at which order matters
LARGE = 0.1  # interference, of the larger single effect, at which two steps do not add


@dataclass(frozen=True, eq=False, kw_only=True)
class Objective(Generic[T]):
    """A mean loss Σ_b loss_b / Σ_b count_b over some batches, and how products with its Hessian
    are made (measures §15). Its methods raise as `ParameterSpace.gradient` and products do.

    >>> layer = torch.nn.Linear(1, 1, bias=False)
    >>> _ = layer.weight.data.fill_(3.0)
    >>> task = Objective(loss=lambda x: layer(x).square().mean(), batches=[torch.ones(4, 1)])
    >>> task.value(), task.gradient(ParameterSpace(layer))
    (9.0, tensor([6.]))
    """

    loss: SummedLoss[T]
    batches: Sequence[T]
    method: Method = "double backward"

    def gradient(self, space: ParameterSpace) -> Float[Tensor, " D"]:
        """Where the space stands."""
        return space.gradient(self.loss, self.batches)

    def product(self, space: ParameterSpace, vector: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        """Hv where the space stands."""
        return CurvatureOperator(space, self.loss, self.batches, method=self.method) @ vector

    @torch.no_grad()
    def value(self) -> float:
        """The mean loss, summed in float64."""
        total, count = 0.0, 0
        for batch in self.batches:
            value, items = summed(self.loss(batch))
            total, count = total + float(finite_loss(value)), count + items
        some_items(count)
        return total / count


@dataclass(frozen=True, eq=False, kw_only=True)
class Bracket:
    """b = H_B g_A − H_A g_B, what order does: θ_AB − θ_BA = η² b + O(η³) (measures §15).

    Attributes:
        vector: b.
        length: ‖b‖.
        together: ‖g_A + g_B‖.
        apart: ‖g_A‖ + ‖g_B‖.

    >>> Bracket(vector=torch.tensor([0.0, 2.0]), length=2.0, together=4.0, apart=5.0)
    Bracket(κ = 0.5, onset = 0.2)
    """

    vector: Float[Tensor, " D"]
    length: float
    together: float
    apart: float

    @property
    def kappa(self) -> float:
        """κ = ‖b‖/‖g_A + g_B‖, so that c(η) ≈ ηκ; infinite near a joint optimum, where the sum
        vanishes and `kappa_apart` is to be read.
        """
        return self.length / self.together if self.together else math.inf

    @property
    def kappa_apart(self) -> float:
        """‖b‖/(‖g_A‖ + ‖g_B‖), so that c′(η) ≈ η times it."""
        return self.length / self.apart if self.apart else math.inf

    @property
    def onset(self) -> float:
        """η† = 0.1/κ, the step from which order is expected to matter; infinite where b = 0."""
        return ONSET / self.kappa if self.kappa else math.inf

    def __repr__(self) -> str:
        return f"Bracket(κ = {self.kappa:.3g}, onset = {self.onset:.3g})"


def bracket(space: ParameterSpace, a: Objective[T], b: Objective[T]) -> Bracket:
    """b = H_B g_A − H_A g_B, the Lie bracket of two gradient fields where the space stands: two
    gradients and two Hessian-vector products; four vectors beside the weights.

    Source: measures §15; arXiv 2607.16821.

    Raises:
        LoclinError: a loss, or a bracket, that is not finite; no items.

    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
    >>> square = lambda x: layer(x).square().sum() / 2  # H = xxᵀ
    >>> xs = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    >>> one, two = (Objective(loss=square, batches=[x]) for x in xs)
    >>> bracket(ParameterSpace(layer), one, two).vector  # of Hessians that do not commute
    tensor([-2.,  1.])
    """
    first, second = a.gradient(space), b.gradient(space)
    vector = b.product(space, first).sub_(a.product(space, second))
    length = norm(vector)
    if not math.isfinite(length):
        raise LoclinError(
            "expected a bracket of finite length, found one that is not: choose finite differences "
            "or float32 weights"
        )
    apart = norm(first) + norm(second)
    return Bracket(vector=vector, length=length, apart=apart, together=norm(first.add_(second)))


@dataclass(frozen=True, kw_only=True)
class OrderEffect:
    """What order does at one step size (measures §15). Losses are in the tasks' own unit.

    Attributes:
        eta, k: the size of a step, and how many are taken on each task.
        relative: c = ‖θ_AB − θ_BA‖ / ‖½(θ_AB + θ_BA) − θ‖.
        apart: c′ = ‖θ_AB − θ_BA‖ / kη(‖g_A‖ + ‖g_B‖).
        ab, ba: the losses of both tasks at the end of either order.
        predicted: of (L_A + L_B) at AB less that at BA: k²η² ∇Lᵀb at the midpoint of both ends.

    >>> OrderEffect(
    ...     eta=0.1, k=1, relative=0.2, apart=0.1, ab=(1.0, 2.0), ba=(1.5, 2.0), predicted=-0.4
    ... ).difference
    -0.5
    """

    eta: float
    k: int
    relative: float
    apart: float
    ab: tuple[float, float]
    ba: tuple[float, float]
    predicted: float

    @property
    def difference(self) -> float:
        """The measured difference that `predicted` stands for; below 0 where A first is better."""
        return sum(self.ab) - sum(self.ba)


def order_effect(
    space: ParameterSpace, a: Objective[T], b: Objective[T], eta: float, *, k: int = 1
) -> OrderEffect:
    """Take k gradient steps of size η on each task, in both orders, and say what differs.

    The leading term of θ_AB − θ_BA is k²η²b. Source: measures §15; arXiv 2606.24993.

    Raises:
        LoclinError: η that is not above 0, k below 1, a loss that is not finite, no items.

    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
    >>> square = lambda x: layer(x).square().sum() / 2
    >>> xs = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    >>> one, two = (Objective(loss=square, batches=[x]) for x in xs)
    >>> made = order_effect(ParameterSpace(layer), one, two, 0.1)
    >>> round(made.difference, 3), round(made.predicted, 3)
    (-0.036, -0.036)
    """
    if not (eta > 0 and k > 0):
        raise LoclinError(
            f"expected a step size above 0 and one step or more, found eta={eta}, k={k}: change "
            "them"
        )
    start = space.read()
    with space.restored():
        lengths = norm(a.gradient(space)) + norm(b.gradient(space))
        ends, losses = list[Tensor](), list[tuple[float, float]]()
        for order in ((a, b), (b, a)):
            space.write(start)
            for task in (task for task in order for _ in range(k)):
                space.add(task.gradient(space), scale=-eta)
            ends.append(space.read())
            losses.append((a.value(), b.value()))
        gap = norm(ends[0] - ends[1])
        middle = ends[0].add_(ends[1]).div_(2)
        space.write(middle)
        slope = a.gradient(space).add_(b.gradient(space))
        there = bracket(space, a, b)
        way = norm(middle.sub_(start))
    return OrderEffect(
        eta=eta,
        k=k,
        relative=gap / way if way else math.inf,
        apart=gap / (k * eta * lengths) if lengths else math.inf,
        ab=losses[0],
        ba=losses[1],
        predicted=(k * eta) ** 2 * inner(slope, there.vector),
    )


def order_onset(
    space: ParameterSpace, a: Objective[T], b: Objective[T], etas: Sequence[float], *, k: int = 1
) -> tuple[float | None, list[OrderEffect]]:
    """The smallest step η† at which c reaches 0.1, interpolated on a growing grid, None where it
    does not; and what order does at every step, c in it. `Bracket.onset` over k predicts η† (§15).

    Raises:
        LoclinError: as `order_effect`; a grid that does not grow.

    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
    >>> square = lambda x: layer(x).square().sum() / 2
    >>> xs = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    >>> one, two = (Objective(loss=square, batches=[x]) for x in xs)
    >>> space = ParameterSpace(layer)
    >>> measured, _ = order_onset(space, one, two, [0.05, 0.1, 0.2, 0.4])
    >>> round(measured, 2), round(bracket(space, one, two).onset, 2)
    (0.21, 0.22)
    """
    if list(etas) != sorted(set(etas)):
        raise LoclinError(f"expected growing step sizes, found {[*etas]}: sort them")
    effects = [order_effect(space, a, b, eta, k=k) for eta in etas]
    sizes = [e.relative for e in effects]
    return _crossing(etas, sizes, ONSET), effects


def _crossing(at: Sequence[float], sizes: Sequence[float], level: float) -> float | None:
    """Where sizes first reach a level, on logarithmic scales; None where they do not, or are above
    it from the start.
    """
    above = next((i for i, size in enumerate(sizes) if size >= level), 0)
    if not above:
        return None
    x, y = (
        np.log(at[above - 1 : above + 1]),
        np.log(np.maximum(sizes[above - 1 : above + 1], 1e-300)),
    )
    return float(np.exp(np.interp(math.log(level), y, x)))


@dataclass(frozen=True, eq=False, kw_only=True)
class Interference:
    """Two displacements τ_A, τ_B added to θ, by slope and curvature along both (measures §15).

    Attributes:
        loss: L(θ).
        slopes: v = (gᵀτ_A, gᵀτ_B).
        curvatures: M = [[τ_AᵀHτ_A, τ_AᵀHτ_B], [τ_AᵀHτ_B, τ_BᵀHτ_B]].
        scales: multiples a of both that were tried.
        measured: I(a) = L(θ+a(τ_A+τ_B)) − L(θ+aτ_A) − L(θ+aτ_B) + L(θ), averaged over ±a; predicted
            a² τ_AᵀHτ_B.
        effects: the larger of |L(θ+aτ_A) − L(θ)| and |L(θ+aτ_B) − L(θ)|.
        cubic: at every scale the odd part of the loss along τ_A + τ_B beyond its slope.

    >>> found = Interference(
    ...     loss=1.0, slopes=np.array([-1.0, -1.0]), curvatures=np.array([[2.0, 1.0], [1.0, 2.0]]),
    ...     scales=(1.0,), measured=(1.0,), effects=(0.5,), cubic=(0.0,),
    ... )
    >>> found.normalised, round(found.coefficient, 3), [round(x, 3) for x in found.plane]
    (0.5, 0.333, [0.333, 0.333])
    """

    loss: float
    slopes: Float[np.ndarray, " 2"]
    curvatures: Float[np.ndarray, "2 2"]
    scales: tuple[float, ...]
    measured: tuple[float, ...]
    effects: tuple[float, ...]
    cubic: tuple[float, ...]

    @property
    def predicted(self) -> tuple[float, ...]:
        """a² τ_AᵀHτ_B at every scale."""
        return tuple(a**2 * float(self.curvatures[0, 1]) for a in self.scales)

    @property
    def normalised(self) -> float | None:
        """τ_AᵀHτ_B/√(τ_AᵀHτ_A·τ_BᵀHτ_B); None where the loss bends down along either."""
        own = np.diag(self.curvatures)
        return float(self.curvatures[0, 1] / np.sqrt(own.prod())) if own.min() > 0 else None

    @property
    def radius(self) -> float | None:
        """The multiple at which |I| exceeds a tenth of the larger single effect; None where it does
        not within the scales, or from the first on.
        """
        shares = [
            abs(i) / effect if effect else math.inf
            for i, effect in zip(self.measured, self.effects, strict=True)
        ]
        return _crossing(self.scales, shares, LARGE)

    @property
    def predicted_radius(self) -> float | None:
        """The same to leading order, 0.1 max|gᵀτ|/|τ_AᵀHτ_B|; None where the slopes are zero."""
        slope, cross = float(np.abs(self.slopes).max()), abs(float(self.curvatures[0, 1]))
        if not slope:
            return None
        return LARGE * slope / cross if cross else math.inf

    @property
    def coefficient(self) -> float | None:
        """λ* = −gᵀτ/τᵀHτ along τ = τ_A + τ_B, where the quadratic is lowest; None where the loss
        bends down.
        """
        bend = float(self.curvatures.sum())
        return -float(self.slopes.sum()) / bend if bend > 0 else None

    @property
    def trusted(self) -> bool:
        """Whether λ* is to be believed: the cubic remainder there, from the nearest scale, is below
        a tenth of the quadratic's gain ½λ*²τᵀHτ.
        """
        best = self.coefficient
        if best is None:
            return False
        near = min(range(len(self.scales)), key=lambda i: abs(self.scales[i] - abs(best)))
        cubic = abs(self.cubic[near] * (best / self.scales[near]) ** 3)
        return cubic < LARGE * best**2 * float(self.curvatures.sum()) / 2

    @property
    def plane(self) -> tuple[float, float] | None:
        """−M⁻¹v, a coefficient for each; None where the quadratic has no lowest point."""
        if np.linalg.eigvalsh(self.curvatures)[0] <= 0:
            return None
        a, b = np.linalg.solve(self.curvatures, -self.slopes)
        return float(a), float(b)


def interference(
    space: ParameterSpace,
    objective: Objective[T],
    a: Float[Tensor, " D"],
    b: Float[Tensor, " D"],
    scales: Sequence[float] = (0.1, 0.3, 1.0),
) -> Interference:
    """What two displacements do to a loss together that neither does alone, measured and by
    curvature: a gradient, two Hessian-vector products, six losses at every scale; three vectors
    beside the weights and both displacements.

    `Interference` has the formulas; losses are in the objective's unit. Source: measures §15.

    Raises:
        LoclinError: a displacement of no length, scales that do not grow from above 0, a loss that
            is not finite.

    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
    >>> square = Objective(loss=lambda x: layer(x).square().sum() / 2, batches=[torch.ones(1, 2)])
    >>> found = interference(ParameterSpace(layer), square, *-torch.eye(2), scales=(0.5, 1.0))
    >>> [round(i, 4) for i in found.measured], round(found.coefficient, 4)
    ([0.25, 1.0], 1.5)
    """
    if not (norm(a) and norm(b)):
        raise LoclinError("expected two displacements, found one of no length: give other ones")
    if list(scales) != sorted(set(scales)) or min(scales, default=0) <= 0:
        raise LoclinError(f"expected growing scales above 0, found {[*scales]}: change them")
    gradient = objective.gradient(space)
    slopes = np.array([inner(gradient, a), inner(gradient, b)])
    bent = objective.product(space, a)
    own, cross = inner(bent, a), inner(bent, b)
    del bent
    curvatures = np.array([[own, cross], [cross, inner(objective.product(space, b), b)]])
    start, point, here = space.read(), gradient, objective.value()

    def change(of_a: float, of_b: float) -> float:
        space.write(point.copy_(start).add_(a, alpha=of_a).add_(b, alpha=of_b))
        return objective.value() - here

    measured, effects, cubic = list[float](), list[float](), list[float]()
    with space.restored():
        for s in scales:
            both = [(change(x, x), change(x, 0), change(0, x)) for x in (s, -s)]
            measured.append(sum(ab - x - y for ab, x, y in both) / 2)
            effects.append(max(abs(x) for x in both[0][1:]))
            cubic.append((both[0][0] - both[1][0]) / 2 - s * float(slopes.sum()))
    return Interference(
        loss=here,
        slopes=slopes,
        curvatures=curvatures,
        scales=tuple(scales),
        measured=tuple(measured),
        effects=tuple(effects),
        cubic=tuple(cubic),
    )
