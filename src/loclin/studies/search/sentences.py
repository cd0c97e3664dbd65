"""What the rows of a search say, in sentences for the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loclin.report.figures import select
from loclin.report.section import number_of
from loclin.report.words import estimate_text, number
from loclin.run.rows import Row
from loclin.search.splits import PARTS
from loclin.studies.search import names

Settings = Mapping[str, Any]


def forecast_lines(rows: Sequence[Row], settings: Settings) -> Iterator[str]:
    """What the law expects of the search; nothing where there is no forecast."""
    if not select(rows, "gradient"):
        return
    trace, norm = select(rows, "trace"), select(rows, "frobenius")
    curvature = f", tr H = {_estimate(trace)}, ‖H‖_F = {_estimate(norm)}" if trace and norm else ""
    yield (
        f"At the model's own weights ‖g‖ = {number_of(rows, 'gradient')} over "
        f"{number_of(rows, 'dimension')} coordinates ({number_of(rows, 'true_gradient')} of it "
        f"shared with other examples){curvature}; loss {number_of(rows, 'loss')} nats a token."
    )
    for sigma in settings["sigma"]:
        here, other = (
            _estimate(select(rows, "expected_gain", sigma=sigma, on=on))
            for on in ("select", "other")
        )
        length = number_of(rows, "relative_sigma", sigma=sigma)
        yield (
            f"σ = {sigma:g} (‖δ‖/‖θ‖ = {length}): the best of {settings['n']} is expected to gain "
            f"{here} nats a token on the select examples, {other} on others."
        )
        for row in (r for r in rows if r.quantity == "needed" and r.context["sigma"] == sigma):
            many = "no number up to a million"
            price = many if row.value is None else f"{row.value:.0f} candidates"
            gain = f"{row.context['target_gain']:g}"
            yield f"  A gain of {gain} on other examples takes {price} there."
    yield from _limits(rows, settings)


def _limits(rows: Sequence[Row], settings: Settings) -> Iterator[str]:
    """The best σ, and where the law ends."""
    best, edge = select(rows, "best_sigma"), select(rows, "edge")
    if best:
        yield f"The best σ for {settings['n']} candidates is {number(best[0].value)} by the law."
    elif select(rows, "trace"):
        yield "Curvature sets no best σ here (tr H is not above 0): the law's edge is the limit."
    if edge and edge[0].value:
        beyond = ", ".join(f"{s:g}" for s in settings["sigma"] if s > edge[0].value / 3)
        warning = f"; of no use at σ = {beyond}, which is too near or beyond" if beyond else ""
        yield (
            f"The law holds well below σ = {number(edge[0].value)}, where curvature's fluctuation "
            f"is as large as the slope{warning}."
        )


def winner_lines(rows: Sequence[Row], settings: Settings) -> Iterator[str]:
    """What selection promised, and what was left of it on test."""
    parts = {s: found[0] for s in PARTS if (found := select(rows, "winner", split=s))}
    if len(parts) == len(PARTS):
        scores = ", ".join(
            f"{number(r.value)} on {s} (the model itself {number(r.null)})"
            for s, r in parts.items()
        )
        promised, left = (number(_difference(parts[s])) for s in ("select", "test"))
        yield (
            f"The best candidate scores {scores}: of the {promised} that it gained where it was "
            f"selected, {left} is left on examples that had no part in choosing it."
        )
    if settings["seeds"] > 1:
        yield (
            f"Intervals are 95 % over {settings['seeds']} searches with other candidates on the "
            "same splits."
        )
        return
    for row in select(rows, "score"):
        if row.context["note"] and row.context["arm"] != names.MODEL:
            yield f"{row.context['arm'][0].upper()}{row.context['arm'][1:]}: {row.context['note']}."
    yield (
        f"Intervals are 95 % over the {settings['test']} test examples, paired where they are of a "
        "gain; they say nothing of another search: give --seeds for that."
    )


def observed_lines(rows: Sequence[Row], settings: Settings) -> Iterator[str]:
    """Observed best of N, beside the law, at every σ; what was lost, what rounding did."""
    n = settings["n"]
    for sigma in settings["sigma"]:
        found = select(rows, "best_of_n", sigma=sigma, n=n)
        lost = select(rows, "not_finite", sigma=sigma)
        if found:
            law = f"; the law says {number(found[0].null)}" if found[0].null is not None else ""
            yield (
                f"σ = {sigma:g}: on the select examples the best of {n} candidates by loss gained "
                f"{_estimate(found)} nats a token{law}."
            )
        if lost and lost[0].value:
            yield (
                f"σ = {sigma:g}: {number(lost[0].value)} candidates have a loss that is not "
                "finite; they are never selected."
            )
        moved = [r for r in select(rows, "realised_sigma", sigma=sigma) if _rounded(r)]
        if moved:
            least = min(moved, key=lambda r: r.value or 0.0)
            yield (
                f"σ = {sigma:g}: rounding to the weights' dtype changes the noise of {len(moved)} "
                f"tensors; {least.context['tensor']} moves by {number(least.value)} σ."
            )
        passed = select(rows, "pass_at", sigma=sigma, n=n)
        if passed:
            yield (
                f"σ = {sigma:g}: pass@{n} on the select examples is {_estimate(passed)}, the share "
                "that at least one candidate answers right: an oracle, since no one can choose so."
            )


def _rounded(row: Row) -> bool:
    """Whether a tensor moves otherwise than chance explains: n normal numbers have a root mean
    square of 1 ± 1/√(2n).
    """
    chance = 4 / math.sqrt(2 * row.context["size"])
    return row.value is not None and abs(row.value - 1) > 0.05 + chance


def _difference(row: Row) -> float | None:
    return None if row.value is None or row.null is None else row.value - row.null


def _estimate(found: Sequence[Row]) -> str:
    """With its interval where there is one."""
    if not found:
        return "not defined"
    row = found[0]
    return number(row.value) if row.low is None else estimate_text(row.value, row.low, row.high)
