"""One search: what was found and what it is worth on test, and whether the law foretold it. A page,
and a table for the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loclin.record import Record, Row
from loclin.report.figures import PALETTE, Curve, Drawing, draw_curves, draw_dots, select
from loclin.report.section import Section
from loclin.report.section import Table as Listing
from loclin.report.words import estimate_text, number, p_text

ENTRY, KIND = "search", "candidates"
MODEL = "the model itself"
SPLITS = ("select", "validate", "test")


def sections(rows: Sequence[Row], config: Mapping[str, Any]) -> list[Section]:
    """The page's sections in reading order."""
    shown = [r for r in rows if "search" not in r.context]
    return [_found(shown, config), _foretold(shown, config)]


def print_search(folder: Path) -> None:
    """Print what a search of a run folder found, and the law beside it; nothing where the folder
    holds none that is finished.
    """
    record = Record(folder)
    run = record.run()
    if (
        ENTRY not in run["studies"] or not (folder / ENTRY / "results.json").exists()
    ):  # begun and failed
        return
    rows, config, console = record.results(ENTRY), run["studies"][ENTRY], Console()
    shown = [r for r in rows if "search" not in r.context]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("answers on test", "score", "gain", "p Holm", "passes"):
        table.add_column(
            heading, overflow="fold", no_wrap=heading != "answers on test"
        )  # the ways may take two lines
    for cells in _table(shown):
        table.add_row(*map(Text, cells))
    console.print(table)
    for line in (*_winner(shown, config), *_beside(shown, config)):
        console.print(Text(line))
    for note in run["notes"].get(ENTRY, []):
        console.print(Text(f"{note[0].upper()}{note[1:]}."))


def forecast_lines(rows: Sequence[Row], config: Mapping[str, Any]) -> Iterator[str]:
    """What the law expects of the search, in sentences; nothing where there is no forecast."""
    if not select(rows, "gradient"):
        return
    trace, norm = select(rows, "trace"), select(rows, "frobenius")
    curvature = f", tr H = {_estimate(trace)}, ‖H‖_F = {_estimate(norm)}" if trace and norm else ""
    yield (
        f"At the model's own weights ‖g‖ = {_value(rows, 'gradient')} over "
        f"{_value(rows, 'dimension')} coordinates "
        f"({_value(rows, 'true_gradient')} of it shared with other examples){curvature}; loss "
        f"{_value(rows, 'loss')} nats a token."
    )
    for sigma in config["sigma"]:
        here = select(rows, "expected_gain", sigma=sigma, on="select")
        other = select(rows, "expected_gain", sigma=sigma, on="other")
        length = _value(rows, "relative_sigma", sigma=sigma)
        yield (
            f"σ = {sigma:g} (‖δ‖/‖θ‖ = {length}): the best of {config['n']} is expected to gain "
            f"{_estimate(here)} nats a token on the "
            f"select examples, {_estimate(other)} on others."
        )
        for row in (r for r in rows if r.quantity == "needed" and r.context["sigma"] == sigma):
            price = (
                "no number up to a million" if row.value is None else f"{row.value:.0f} candidates"
            )
            yield f"  A gain of {row.context['wish']:g} on other examples takes {price} there."
    yield from _limits(rows, config)


def _limits(rows: Sequence[Row], config: Mapping[str, Any]) -> Iterator[str]:
    """The best σ, and where the law ends."""
    best, edge = select(rows, "best_sigma"), select(rows, "edge")
    if best:
        yield f"The best σ for {config['n']} candidates is {number(best[0].value)} by the law."
    elif select(rows, "trace"):
        yield "Curvature sets no best σ here (tr H is not above 0): the law's edge is the limit."
    if edge and edge[0].value:
        beyond = [f"{s:g}" for s in config["sigma"] if s > edge[0].value / 3]
        warning = (
            f"; of no use at σ = {', '.join(beyond)}, which is too near or beyond" if beyond else ""
        )
        yield f"The law holds well below σ = {number(edge[0].value)}, where curvature's fluctuation is as large as the slope{warning}."


def _table(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """Every arm: name, score, gain over the model itself, p, forward passes."""
    for score in select(rows, "score"):
        arm = score.context["arm"]
        gain, p = select(rows, "gain", arm=arm), select(rows, "p_holm", arm=arm)
        own = arm == MODEL
        yield (
            arm if score.context["deployable"] else f"{arm} (oracle)",
            estimate_text(score.value, score.low, score.high),
            "–" if own or not gain else estimate_text(gain[0].value, gain[0].low, gain[0].high),
            p_text(p[0].value) if p else "–",
            str(score.context.get("passes", "–")),
        )


def _winner(rows: Sequence[Row], config: Mapping[str, Any]) -> Iterator[str]:
    """What selection promised, and what was left of it on test."""
    parts = {s: found[0] for s in SPLITS if (found := select(rows, "winner", split=s))}
    if len(parts) == len(SPLITS):
        told = ", ".join(
            f"{number(r.value)} on {s} (the model itself {number(r.null)})"
            for s, r in parts.items()
        )
        promised, left = (_less(parts[s]) for s in ("select", "test"))
        yield (
            f"The best candidate scores {told}: of the {number(promised)} that it gained where it "
            f"was selected, {number(left)} is "
            "left on examples that had no part in choosing it."
        )
    several = config["seeds"] > 1
    for row in () if several else select(rows, "score"):
        if row.context["note"] and row.context["arm"] != MODEL:
            yield f"{row.context['arm'][0].upper()}{row.context['arm'][1:]}: {row.context['note']}."
    yield (
        f"Intervals are 95 % over {config['seeds']} searches with other candidates on the same "
        "splits."
        if several
        else f"Intervals are 95 % over the {config['test']} test examples, paired where they are "
        "of a gain; they say nothing of "
        "another search: give --seeds for that."
    )


def _rounded(row: Row) -> bool:
    """Whether a tensor moves otherwise than chance explains: n normal numbers have a root mean
    square of 1 ± 1/√(2n).
    """
    return row.value is not None and abs(row.value - 1) > 0.05 + 4 / math.sqrt(
        2 * row.context["size"]
    )


def _less(row: Row) -> float | None:
    return None if row.value is None or row.null is None else row.value - row.null


def _beside(rows: Sequence[Row], config: Mapping[str, Any]) -> Iterator[str]:
    """Observed best of N, beside the law, at every σ."""
    for sigma in config["sigma"]:
        found = select(rows, "best_of_n", sigma=sigma, n=config["n"])
        lost = select(rows, "not_finite", sigma=sigma)
        if found:
            expected = (
                f"; the law says {number(found[0].null)}" if found[0].null is not None else ""
            )
            yield (
                f"σ = {sigma:g}: on the select examples the best of {config['n']} candidates by "
                f"loss gained {_estimate(found)} nats a "
                f"token{expected}."
            )
        if lost and lost[0].value:
            yield f"σ = {sigma:g}: {number(lost[0].value)} candidates have a loss that is not finite; they are never selected."
        moved = [r for r in select(rows, "realised_sigma", sigma=sigma) if _rounded(r)]
        if moved:
            least = min(moved, key=lambda r: r.value or 0.0)
            yield (
                f"σ = {sigma:g}: rounding to the weights' dtype changes the noise of {len(moved)} "
                "tensors; "
                f"{least.context['tensor']} moves by {number(least.value)} σ."
            )
        passed = select(rows, "pass_at", sigma=sigma, n=config["n"])
        if passed:
            yield (
                f"σ = {sigma:g}: pass@{config['n']} on the select examples is {_estimate(passed)}, "
                "the share that at least one "
                "candidate answers right: an oracle, since no one can choose so."
            )


def _found(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    return Section(
        title="What was found?",
        question=f"{config['n']} candidates at each σ, selected on {config['select']} examples, "
        f"chosen on {config['validate']}, and "
        f"asked once about {config['test']} that had no part in it.",
        figures=[d for d in (_arms(rows), _gap(rows)) if d],
        sees=list(_winner(rows, config)),
        tables=[_listing(rows, config)],
    )


def _listing(rows: Sequence[Row], config: Mapping[str, Any]) -> Listing:
    """Every arm, and which candidates it is of where there is one search."""
    single = config["seeds"] == 1
    hows = [[str(r.context["note"])] if single else [] for r in select(rows, "score")]
    return Listing(
        caption="Ways to answer the test examples, beside the model itself.",
        header=(
            "way",
            "score",
            "gain",
            "p (Holm)",
            "forward passes",
            *(["of what"] if single else []),
        ),
        rows=[[*line, *how] for line, how in zip(_table(rows), hows, strict=True)],
    )


def _foretold(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    return Section(
        title="Was it foretold?",
        question="The gain of the best of N beside the law of a normal, locally linear loss: "
        "σ‖g‖m_N − (σ²/2)[tr H + (E[M²]−1)ĝᵀHĝ].",
        figures=[
            d
            for d in (_ladder(rows, config), *_histograms(rows, config), _passes(rows, config))
            if d
        ],
        sees=[*forecast_lines(rows, config), *_beside(rows, config)],
    )


def _arms(rows: Sequence[Row]) -> Drawing | None:
    scores = [(r.context["arm"], r) for r in select(rows, "score")]
    if not scores:
        return None
    return draw_dots(
        "arms",
        "Score on the test examples of every way to answer, with its interval.",
        {"score on test": scores},
        label="share answered right",
        title="Ways to answer",
    )


def _gap(rows: Sequence[Row]) -> Drawing | None:
    found = [(s, r) for s in SPLITS for r in select(rows, "winner", split=s)]
    if not found:
        return None
    own = [(s, replace(r, value=r.null, low=None, high=None)) for s, r in found]
    return draw_dots(
        "gap",
        "Score of the best candidate and of the model itself on the examples that selected, chose "
        "and tested it.",
        {"best candidate": found, MODEL: own},
        label="share answered right",
        title="What selection promises",
    )


def _ladder(rows: Sequence[Row], config: Mapping[str, Any]) -> Drawing | None:
    curves = []
    for i, sigma in enumerate(config["sigma"]):
        found, colour = select(rows, "best_of_n", sigma=sigma), PALETTE[i % len(PALETTE)]
        curves.append(Curve(rows=found, label=f"σ = {sigma:g}", colour=colour))
        law = [replace(r, value=r.null) for r in found if r.null is not None]
        curves.append(
            Curve(rows=law, label=f"σ = {sigma:g}, law", colour=colour, dashed=True, band=False)
        )
    return _curves("ladder", "Gain of the best of n candidates on the select examples, over all "
                             "draws of n; dashed: the law.", curves,
                   labels=("n", "gain, nats a token"), title="Best of n; dashed: "
                                                             "foretold")  # fmt: skip


def _passes(rows: Sequence[Row], config: Mapping[str, Any]) -> Drawing | None:
    curves = [
        Curve(
            rows=select(rows, "pass_at", sigma=s),
            label=f"σ = {s:g}",
            colour=PALETTE[i % len(PALETTE)],
        )
        for i, s in enumerate(config["sigma"])
    ]
    return _curves("passes", "Share of the select examples that at least one of n candidates "
                             "answers right: an oracle.", curves,
                   labels=("n", "pass@n"), title="pass@n (oracle)")  # fmt: skip


def _curves(
    name: str, caption: str, curves: Sequence[Curve], *, labels: tuple[str, str], title: str
) -> Drawing | None:
    kept = [c for c in curves if c.rows]
    if not kept:
        return None
    return draw_curves(
        name, caption, kept, over="n", labels=labels, title=title, limits=None, decades=True
    )


def _histograms(rows: Sequence[Row], config: Mapping[str, Any]) -> Iterator[Drawing]:
    for i, sigma in enumerate(config["sigma"]):
        found = select(rows, "gain_density", sigma=sigma)
        if not found:
            continue
        law = [replace(r, value=r.null) for r in found if r.null is not None]
        curves = [Curve(rows=found, label="candidates", colour=PALETTE[i % len(PALETTE)])]
        curves += [Curve(rows=law, label="law", colour="#555555", dashed=True)] if law else []
        yield draw_curves(
            f"gains-{i}",
            f"Density of the candidates' gains at σ = {sigma:g}; dashed: the normal law that "
            "gradient and curvature predict.",
            curves,
            over="gain",
            labels=("gain, nats a token", "density"),
            title=f"Gains at σ = {sigma:g}",
            limits=None,
            log=(False, False),
            decades=True,
        )


def _value(rows: Sequence[Row], quantity: str, **context: Any) -> str:
    found = select(rows, quantity, **context)
    return number(found[0].value) if found else "not defined"


def _estimate(found: Sequence[Row]) -> str:
    """With its interval where there is one."""
    if not found:
        return "not defined"
    row = found[0]
    return number(row.value) if row.low is None else estimate_text(row.value, row.low, row.high)
