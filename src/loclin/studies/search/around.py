"""The search around one point: the law over N and σ and over kinds of noise, and what goes with the
gain of a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from loclin import law
from loclin.geometry.gramian import exact, inner
from loclin.geometry.subspace import Subspace
from loclin.models.exam import Exam
from loclin.record import Row
from loclin.search.candidate import Perturbed, candidates
from loclin.search.ensemble import best_of
from loclin.search.noise import Noise
from loclin.seeds import derived
from loclin.studies.bench import Bench, Progress
from loclin.studies.search.config import Config
from loclin.studies.search.ladder import bend, chance_error, correlation, overlap_correlation
from loclin.studies.search.local import Local
from loclin.studies.search.scored import Gains, gains

Vector = Float[Tensor, " D"]
ALL, LARGEST, GAUSSIAN = "all", "largest tensor", "gaussian"


@dataclass(frozen=True, eq=False, kw_only=True)
class Around:
    """A point, the space standing there.

    Attributes:
        bench: of the run.
        exam: the select examples, which score every candidate.
        point: "damaged" or "halfway".
        gradient: g of their mean loss.
        local: g and H of it, as the law sees them.
        stacked: how many candidates go through the model in one pass.
        progress: told the share of the searches that are done.
    """

    bench: Bench[Config]
    exam: Exam
    point: str
    gradient: Vector
    local: Local
    stacked: int
    progress: Progress

    @property
    def reference(self) -> float:
        """The σ that every other is relative to."""
        return self.local.reference(max(self.bench.config.best_of))

    @property
    def seed(self) -> int:
        """Of the candidates here: the same seeds at every σ, for every noise and in every space."""
        return derived(self.bench.seed, "search", self.point)

    def row(
        self, quantity: str, value: float | None, null: float | None = None, **context: Any
    ) -> Row:
        """A row about this point."""
        here = {**self.bench.context, "point": self.point, **context}
        defined = None if value is None or math.isnan(value) else value
        return Row(quantity=quantity, value=defined, null=null, context=here)


@dataclass(frozen=True, eq=False, kw_only=True)
class Plane:
    """A plane that candidates overlap with.

    Attributes:
        space: it.
        trace: tr(QᵀHQ) of the scored loss at the point, where it is known.
    """

    space: Subspace
    trace: float | None = None


def sweep(here: Around, count: int) -> tuple[list[Row], dict[float, Gains]]:
    """Search at every σ.

    Args:
        here: the point.
        count: of candidates at the reference σ.

    Returns:
        The rows; and the candidates of every σ, by its size.
    """
    config, rows, found = here.bench.config, list[Row](), dict[float, Gains]()
    sigmas = [size * here.reference for size in config.sizes]
    with Perturbed(here.bench.space, Noise()) as moved:
        for done, (size, sigma) in enumerate(zip(config.sizes, sigmas, strict=True)):
            here.progress(f"searching at the {here.point} point", done / len(sigmas))
            drawn = candidates(count if size == 1 else config.others, [sigma], seed=here.seed)
            found[size] = gains(moved, here.exam, drawn, stacked=here.stacked)
            context = {"space": ALL, "noise": GAUSSIAN, "size": size}
            rows += ladder_rows(here, found[size], here.local, sigma, context)
            rows.append(here.row("in_domain", float(here.local.holds(config.n, sigma)), size=size))
    rows += error_rows(here, rows, "sizes")
    rows += edge_rows(here, sigmas, [gain_at(of, config.n) for of in found.values()])
    return rows, found


def gain_at(found: Gains, n: int) -> float:
    """The observed gain of the best of n: its mean over all draws of n from the candidates."""
    return float(best_of(found.loss, [n])[0])


def ladder_rows(
    here: Around, found: Gains, local: Local, sigma: float, context: dict[str, Any]
) -> Iterator[Row]:
    """Observed and predicted gain over N; their ratio, and the gain over its linear scale σ‖g‖, at
    the N that decides.
    """
    config = here.bench.config
    ns = [n for n in config.best_of if n <= np.isfinite(found.loss).sum()]
    for n, gain in zip(ns, best_of(found.loss, ns), strict=True):
        yield here.row("gain", float(gain), best_of=n, **context)
        yield here.row("gain_law", local.gain(n, sigma), best_of=n, **context)
    expected, observed = local.gain(config.n, sigma), gain_at(found, config.n)
    yield here.row("gain_ratio", observed / expected if expected > 0 else None, null=1.0, **context)
    yield here.row(
        "gain_per_slope",
        observed / (sigma * local.gradient),
        null=law.expected_maximum(config.n),
        **context,
    )
    yield here.row("sigma", sigma, **context)
    yield here.row("finite", float(np.isfinite(found.loss).mean()), **context)


def error_rows(
    here: Around, rows: Sequence[Row], over: str, *, size: float | None = None
) -> Iterator[Row]:
    """|gain/law − 1| at the N that decides, and the same signed: means over the σ of the law's
    domain, or over spaces.

    Spaces are averaged within their kind first (all coordinates, the largest tensor, subspaces of k
    dimensions), so that many of one dimension do not hide another. The null of the error is what it
    would be by chance under an exact law. `linear_error` is the error of the slope alone, σ‖g‖m_N,
    in the same searches.

    Args:
        here: the point.
        rows: with the ratios, and with which σ are in the domain.
        over: "sizes": all coordinates at every σ; "spaces": every space, of all coordinates the
            given size.
        size: of all coordinates, where it is over spaces.
    """
    config = here.bench.config
    inside = {r.context["size"] for r in rows if r.quantity == "in_domain" and r.value == 1}
    kinds: dict[str, dict[str, list[float]]] = {}
    for r in rows:
        if (
            r.quantity not in ("gain_ratio", "gain_per_slope")
            or r.context["noise"] != GAUSSIAN
            or r.value is None
        ):
            continue
        space, there = r.context["space"], r.context["size"]
        if over == "sizes" and (space != ALL or there not in inside):
            continue
        if over == "spaces" and space == ALL and there != size:
            continue
        kind = space if space in (ALL, LARGEST) else "subspaces"
        kinds.setdefault(r.quantity, {}).setdefault(kind, []).append(r.value / (r.null or 1.0) - 1)

    def mean(quantity: str, of: Callable[[np.ndarray], np.ndarray]) -> float | None:
        found = [float(of(np.array(values)).mean()) for values in kinds.get(quantity, {}).values()]
        return float(np.mean(found)) if found else None

    counts = {ALL: config.others, LARGEST: config.others, "subspaces": config.inside}
    chance = [chance_error(config.n, counts[kind]) for kind in kinds.get("gain_ratio", {})]
    yield here.row(
        "law_error",
        mean("gain_ratio", np.abs),
        null=float(np.mean(chance)) if chance else None,
        over=over,
    )
    yield here.row("law_bias", mean("gain_ratio", lambda x: x), null=0.0, over=over)
    yield here.row("linear_error", mean("gain_per_slope", np.abs), null=None, over=over)


def edge_rows(here: Around, sigmas: Sequence[float], ladders: Sequence[float]) -> Iterator[Row]:
    """The σ at which the gain leaves the straight line, over the reference σ; and over where the
    law puts it.
    """
    config = here.bench.config
    found = bend(sigmas, ladders, config.edge)
    expected = here.local.bends_at(config.n, config.edge)
    yield here.row("edge", None if found is None else found / here.reference)
    there = found is not None and math.isfinite(expected)
    yield here.row(
        "edge_law", expected / here.reference if there else None
    )  # of the runs in which it was seen
    yield here.row(
        "log10_edge_ratio", math.log10(found / expected) if there and found else None, null=0.0
    )


def noise_rows(here: Around, folded: Local | None) -> Iterator[Row]:
    """The law under other kinds of noise, at one σ within its domain.

    Args:
        here: the point.
        folded: what the law sees under tied noise, to hold that against as well.
    """
    config, sigma = here.bench.config, here.bench.config.size * here.reference
    for name in config.noises:
        here.progress(f"searching with {name} noise", 0.0)
        with Perturbed(here.bench.space, Noise.parse(name)) as moved:
            drawn = candidates(config.inside, [sigma], seed=here.seed)
            found = gains(moved, here.exam, drawn, stacked=here.stacked)
        yield from ladder_rows(
            here, found, here.local, sigma, {"space": ALL, "noise": name, "size": config.size}
        )
        if name == "tied" and folded is not None:
            expected = folded.gain(config.n, sigma)
            ratio = gain_at(found, config.n) / expected if expected > 0 else None
            yield here.row("gain_ratio_folded", ratio, null=1.0, noise=name, size=config.size)
            yield here.row("folded_gradient", folded.gradient / here.local.gradient, null=1.0)


def relation_rows(
    here: Around,
    swept: Mapping[float, Gains],
    recovery_gradient: Vector,
    planes: Mapping[str, Plane],
    *,
    each: bool,
) -> Iterator[Row]:
    """Correlations of gain with alignment and with overlap over the candidates of every σ (Figure
    3).

    The null of the first is the law's prediction: r of measures §10 times the cosine of the two
    gradients, since alignment is with a gradient of other examples than those that score. That of
    the second is what the plane's curvature alone gives (`ladder.overlap_correlation`).

    Args:
        here: the point.
        swept: the candidates of every σ, by its size; they begin with the same seeds at each, so in
            the same directions.
        recovery_gradient: of recovery examples, here.
        planes: to overlap with; the static plane first.
        each: whether to keep the numbers of every candidate at the reference σ.
    """
    main, local = swept[1.0], here.local
    aligned, inside = _directions(here, main, recovery_gradient, planes)
    own, g = exact(here.gradient).cpu(), exact(recovery_gradient).cpu()
    shared = float(own @ g) / float(own.norm() * g.norm())
    yield here.row("gradient_cosine", shared)
    for size, found in swept.items():
        sigma, count = found.candidates[0].sigma, len(found.candidates)
        expected = shared * law.alignment_correlation(
            gradient=local.gradient, frobenius=local.frobenius, sigma=sigma
        )
        for of, gain in (("loss", found.loss), ("score", found.score)):
            null = expected if of == "loss" else None
            yield here.row(
                "alignment_correlation",
                correlation(aligned[:count], gain),
                null=null,
                of=of,
                size=size,
            )
            for name, plane in planes.items():
                bent = None
                if of == "loss" and plane.trace is not None:
                    bent = overlap_correlation(
                        sigma=sigma,
                        trace=plane.trace,
                        k=plane.space.k,
                        gradient=local.gradient,
                        frobenius=local.frobenius,
                    )
                r = correlation(inside[name][:count], gain)
                yield here.row("overlap_correlation", r, null=bent, of=of, size=size, plane=name)
    if each:
        static = next(iter(inside.values()))
        for i, gain in enumerate(main.loss):
            yield here.row("candidate_gain", float(gain), candidate=i)
            yield here.row("candidate_alignment", float(aligned[i]), candidate=i)
            yield here.row("candidate_overlap", float(static[i]), candidate=i)


def _directions(
    here: Around, main: Gains, recovery_gradient: Vector, planes: Mapping[str, Plane]
) -> tuple[Float[np.ndarray, " n"], dict[str, Float[np.ndarray, " n"]]]:
    """cos(δ, −g) of every candidate, and ‖Qᵀδ‖²/‖δ‖² for every plane."""
    moved, g = Perturbed(here.bench.space, Noise()), exact(recovery_gradient).cpu()
    aligned = np.empty(len(main.candidates))
    inside = {name: np.empty(len(main.candidates)) for name in planes}
    for i, candidate in enumerate(main.candidates):
        delta = moved.vector(candidate)
        energy = inner(delta, delta)
        aligned[i] = -float(exact(delta) @ g) / (math.sqrt(energy) * float(g.norm()))
        for name, plane in planes.items():
            q = plane.space.basis.cpu()
            inside[name][i] = float(exact(q @ delta.to(q)).square().sum()) / energy
    return aligned, inside
