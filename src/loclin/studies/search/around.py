"""The search around one point: the law over N and σ and over kinds of noise, and what goes with the gain of a candidate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from loclin import law
from loclin.geometry.gramian import exact
from loclin.geometry.subspace import Subspace
from loclin.models.exam import Exam
from loclin.record import Row
from loclin.search.candidate import Perturbed, candidates
from loclin.search.ensemble import best_of
from loclin.search.noise import Noise
from loclin.seeds import derived
from loclin.studies.bench import Bench, Progress
from loclin.studies.search.config import Config
from loclin.studies.search.ladder import bend, chance_error, correlation
from loclin.studies.search.local import Local
from loclin.studies.search.scored import Gains, gains

Vector = Float[Tensor, " D"]
ALL, GAUSSIAN = "all", "gaussian"


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

    def row(self, quantity: str, value: float | None, null: float | None = None, **context: Any) -> Row:
        """A row about this point."""
        here = {**self.bench.context, "point": self.point, **context}
        defined = None if value is None or math.isnan(value) else value
        return Row(quantity=quantity, value=defined, null=null, context=here)


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
    rows += error_rows(here, rows, "sizes", config.others)
    rows += edge_rows(here, sigmas, [gain_at(of, config.n) for of in found.values()])
    return rows, found


def gain_at(found: Gains, n: int) -> float:
    """The observed gain of the best of n: its mean over all draws of n from the candidates."""
    return float(best_of(found.loss, [n])[0])


def ladder_rows(here: Around, found: Gains, local: Local, sigma: float, context: dict[str, Any]) -> Iterator[Row]:
    """Observed and predicted gain over N; their ratio, and the gain over its linear scale σ‖g‖, at the N that decides."""
    config = here.bench.config
    ns = [n for n in config.best_of if n <= np.isfinite(found.loss).sum()]
    for n, gain in zip(ns, best_of(found.loss, ns), strict=True):
        yield here.row("gain", float(gain), best_of=n, **context)
        yield here.row("gain_law", local.gain(n, sigma), best_of=n, **context)
    expected, observed = local.gain(config.n, sigma), gain_at(found, config.n)
    yield here.row("gain_ratio", observed / expected if expected > 0 else None, null=1.0, **context)
    yield here.row(
        "gain_per_slope", observed / (sigma * local.gradient), null=law.expected_maximum(config.n), **context
    )
    yield here.row("sigma", sigma, **context)
    yield here.row("finite", float(np.isfinite(found.loss).mean()), **context)


def error_rows(here: Around, rows: Sequence[Row], over: str, count: int, *, size: float | None = None) -> Iterator[Row]:
    """|gain/law − 1| at the N that decides, and the same signed: means over the σ of the law's domain, or over spaces.

    The null of the error is what it would be by chance under an exact law.

    Args:
        here: the point.
        rows: with the ratios, and with which σ are in the domain.
        over: "sizes": all coordinates at every σ; "spaces": every space, of all coordinates the given size.
        count: of candidates behind each ratio.
        size: of all coordinates, where it is over spaces.
    """
    ratios = [r for r in rows if r.quantity == "gain_ratio" and r.context["noise"] == GAUSSIAN]
    if over == "sizes":
        inside = {r.context["size"] for r in rows if r.quantity == "in_domain" and r.value == 1}
        ratios = [r for r in ratios if r.context["space"] == ALL and r.context["size"] in inside]
    else:
        ratios = [r for r in ratios if r.context["space"] != ALL or r.context["size"] == size]
    values = [r.value for r in ratios if r.value is not None]
    off = np.array(values) - 1
    error, bias = (float(np.abs(off).mean()), float(off.mean())) if values else (None, None)
    yield here.row("law_error", error, null=chance_error(here.bench.config.n, count), over=over)
    yield here.row("law_bias", bias, null=0.0, over=over)


def edge_rows(here: Around, sigmas: Sequence[float], ladders: Sequence[float]) -> Iterator[Row]:
    """The σ at which the gain leaves the straight line, over the reference σ; and over where the law puts it."""
    config = here.bench.config
    found = bend(sigmas, ladders, config.edge)
    expected = here.local.bends_at(config.n, config.edge)
    yield here.row("edge", None if found is None else found / here.reference)
    yield here.row("edge_law", expected / here.reference if math.isfinite(expected) else None)
    there = found is not None and math.isfinite(expected)
    yield here.row("log10_edge_ratio", math.log10(found / expected) if there and found else None, null=0.0)


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
        yield from ladder_rows(here, found, here.local, sigma, {"space": ALL, "noise": name, "size": config.size})
        if name == "tied" and folded is not None:
            expected = folded.gain(config.n, sigma)
            ratio = gain_at(found, config.n) / expected if expected > 0 else None
            yield here.row("gain_ratio_folded", ratio, null=1.0, noise=name, size=config.size)
            yield here.row("folded_gradient", folded.gradient / here.local.gradient, null=1.0)


def relation_rows(
    here: Around, main: Gains, recovery_gradient: Vector, plane: Subspace, *, each: bool
) -> Iterator[Row]:
    """Correlations of gain with alignment and with overlap over the candidates at the reference σ (Figure 3).

    The null of the first is the law's prediction: r of measures §10 times the cosine of the two gradients, since alignment is
    with a gradient of other examples than those that score.

    Args:
        here: the point.
        main: the candidates.
        recovery_gradient: of recovery examples, here.
        plane: the static plane.
        each: whether to keep the numbers of every candidate.
    """
    moved = Perturbed(here.bench.space, Noise())
    g, q = exact(recovery_gradient).cpu(), plane.basis.cpu()
    aligned, inside = np.empty(len(main.candidates)), np.empty(len(main.candidates))
    for i, candidate in enumerate(main.candidates):
        delta = moved.vector(candidate)
        energy = float(exact(delta) @ exact(delta))
        aligned[i] = -float(exact(delta) @ g) / (math.sqrt(energy) * float(g.norm()))
        inside[i] = float(exact(q @ delta.to(q)).square().sum()) / energy
    own = exact(here.gradient).cpu()
    shared = float(own @ g) / float(own.norm() * g.norm())
    sigma = main.candidates[0].sigma
    expected = shared * law.alignment_correlation(
        gradient=here.local.gradient, frobenius=here.local.frobenius, sigma=sigma
    )
    yield here.row("gradient_cosine", shared)
    for of, gain in (("loss", main.loss), ("score", main.score)):
        null = expected if of == "loss" else None
        yield here.row("alignment_correlation", correlation(aligned, gain), null=null, of=of)
        yield here.row("overlap_correlation", correlation(inside, gain), null=0.0, of=of)
    if each:
        for i, gain in enumerate(main.loss):
            yield here.row("candidate_gain", float(gain), candidate=i)
            yield here.row("candidate_alignment", float(aligned[i]), candidate=i)
            yield here.row("candidate_overlap", float(inside[i]), candidate=i)
