"""A run trained elsewhere on a page: what its segments are, and what the numbers about them say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from loclin.report.figures import (
    Curve,
    Drawing,
    curve,
    defined,
    draw_curves,
    draw_dots,
    draw_matrix,
    select,
)
from loclin.report.section import Missing, Section, first, made, number_of
from loclin.report.words import number, p_text
from loclin.run.rows import Row
from loclin.studies.names import DRIFT, FROM_REST, FUTURE_NULLS, OWN_NORMS, PREFIX_NULLS, SHUFFLED
from loclin.studies.trajectory import names

DISAGREE = 0.05  # captures in the two spaces of an adapter that differ by more are pointed out


def sections(rows: Sequence[Row], settings: Mapping[str, Any], skip: Missing = ()) -> list[Section]:
    """The study's sections in reading order; all of them are for the terminal too."""
    there = {r.context["space"] for r in rows if r.quantity == "dimension"}
    spaces = {s: t if len(there) > 1 else "" for s, t in names.SPACES.items() if s in there}
    parts = [partial(part, rows, spaces) for part in (_run, _prefix, _turning, _ranks)]
    return [replace(section, brief=True) for section in made(parts, skip)]


def _titled(label: str, text: str) -> str:
    return f"{label}: {text}" if label else text[0].upper() + text[1:]


def _run(rows: Sequence[Row], spaces: Mapping[str, str]) -> Section:
    points = [r for r in rows if r.quantity == "point_step"]
    points.sort(key=lambda r: r.context["point"])
    curves = [
        _thinned(curve(rows, "segment_length", label or "weights", i, space=s))
        for i, (s, label) in enumerate(spaces.items())
    ]
    lengths = draw_curves(
        "segment-lengths",
        "Length of each segment.",
        curves,
        over="t",
        labels=("segment t", "‖u_t‖"),
        title="How far each segment goes",
        limits=None,
        log=(False, False),
    )
    return Section(
        title="The run",
        question="Which points is it seen at, how far apart are they, and which tensors moved?",
        figures=[*(_shares(rows, space, label) for space, label in spaces.items()), lengths],
        sees=[
            f"{len(points) - 1} segments between {points[0].context['label']} and "
            f"{points[-1].context['label']}. One run: no interval. A p-value against shuffled "
            "order is exact for the run; it says nothing about other runs.",
            _spacing([r.value for r in points]),
            *(_size_line(rows, space, label) for space, label in spaces.items()),
            *_sketch_lines(rows, spaces),
            *(f"Note: {r.context['text']}." for r in rows if r.quantity == "note"),
        ],
    )


def _size_line(rows: Sequence[Row], space: str, label: str) -> str:
    counts = ("dimension", "tensors", "still_tensors")
    coordinates, tensors, still = (number_of(rows, quantity, space=space) for quantity in counts)
    shares = ", ".join(
        f"{r.context['group']} {number(r.value)} (of the coordinates {number(r.null)})"
        for r in select(rows, "movement_share", space=space)
    )
    return _titled(
        label,
        f"{coordinates} coordinates in {tensors} tensors that moved; {still} never did. Shares of "
        f"the squared segment lengths: {shares}.",
    )


def _spacing(steps: Sequence[float | None]) -> str:
    known = [s for s in steps if s is not None]
    if len(known) < len(steps):
        return (
            "How many optimiser steps each segment spans is not written down in every checkpoint."
        )
    lengths = {round(b - a) for a, b in pairwise(known)}
    if len(lengths) == 1:
        (length,) = lengths
        return f"Each segment is {length} optimiser {'step' if length == 1 else 'steps'} long."
    return (
        f"Segments differ in length, from {min(lengths)} to {max(lengths)} optimiser steps: longer "
        "ones weigh more in every capture, and nulls of equal steps do not fit; hold the curves "
        "against the one with the run's own norms."
    )


def _sketch_lines(rows: Sequence[Row], spaces: Mapping[str, str]) -> Iterator[str]:
    for space in spaces:
        errors = select(rows, "sketch_sd", space=space, of="future_capture")
        if errors:
            most = number(max(defined(r.value) for r in errors))
            yield (
                f"Inner products were read from sketches of {errors[0].context['m']} numbers: that "
                f"adds a standard deviation of up to {most} to a future-only capture."
            )


def _shares(rows: Sequence[Row], space: str, label: str) -> Drawing:
    shares = [(r.context["group"], r) for r in select(rows, "movement_share", space=space)]
    groups = {"movement": shares, "coordinates": [(g, _null(r)) for g, r in shares]}
    caption = (
        "Share of each group of tensors in the squared lengths of the segments, and in the "
        "coordinates."
    )
    title = _titled(label, "which tensors moved")
    return draw_dots(f"movement-shares-{space}", caption, groups, label="share", title=title)


def _null(row: Row) -> Row:
    """A row's null as a row of its own, to be drawn."""
    return Row(quantity=row.quantity, value=row.null, context=row.context)


def _thinned(line: Curve) -> Curve:
    """At most about 60 of the rows, so that a long run stays readable."""
    return replace(line, rows=line.rows[:: max(1, len(line.rows) // 60)])


def _prefix(rows: Sequence[Row], spaces: Mapping[str, str]) -> Section:
    figures: list[Drawing] = []
    for space, label in spaces.items():
        figures += _capture_figures(rows, space, label)
    return Section(
        title="Do the first segments span the way?",
        question="How much of the displacement d = Σu_t, and of the way f_k that is still to come "
        "after segment k, lies in the span of the first k segments, and how much would it for "
        "steps with no structure but a drift?",
        figures=figures,
        sees=[
            *(_capture_line(rows, space, label) for space, label in spaces.items()),
            _memory_line(rows),
            *_gauge_lines(rows, spaces),
        ],
        follows=[_directions(rows, space, label) for space, label in spaces.items()],
    )


def _directions(rows: Sequence[Row], space: str, label: str) -> str:
    """How many directions hold the way."""
    k, n = _compared(rows, space), _segments(rows)
    here = {"space": space, "mean": names.MEANS[0], "segments": n}
    rank, chance = (
        number_of(rows, "participation_rank", vectors=vectors, **here)
        for vectors in (names.MEASURED, names.PER_TENSOR)
    )
    whole, future = (
        number_of(rows, f"{q}_capture", space=space, k=k) for q in ("prefix", "future")
    )
    return _titled(
        label,
        f"about {rank} directions hold this run (participation ratio of its {n} segments; of "
        f"random ones with the same norms {chance}); "
        f"{'its first segment holds' if k == 1 else f'its first {k} segments hold'} {whole} of the "
        f"whole way and {future} of what came after.",
    )


def _segments(rows: Sequence[Row]) -> int:
    return int(max(r.context["segments"] for r in rows if r.quantity == "participation_rank"))


def _capture_figures(rows: Sequence[Row], space: str, label: str) -> Iterator[Drawing]:
    for quantity, nulls, of, whole, title in (
        ("prefix_capture", PREFIX_NULLS, "d", "whole displacement", "prefix capture"),
        (
            "future_capture",
            FUTURE_NULLS,
            "f_k",
            "displacement after segment k",
            "future-only capture",
        ),
    ):
        curves = [curve(rows, quantity, "first k segments", 0, space=space)]
        for i, n in enumerate(nulls, 1):
            null: dict[str, Any] = {"null": n, "space": space, "dashed": True, "band": False}
            curves.append(curve(rows, f"{quantity}_null", f"null: {n}", i, **null))
        yield draw_curves(
            f"{quantity.replace('_', '-')}-{space}",
            f"Share of the {whole} in the span of the first k segments.",
            curves,
            over="k",
            labels=("k", f"capture of {of}"),
            title=_titled(label, title),
        )


def _compared(rows: Sequence[Row], space: str) -> int:
    """The k that the sentences are about: that of the overlaps, else the largest with a future."""
    found = select(rows, "window_overlap", space=space) or select(
        rows, "future_capture", space=space
    )
    return max((int(r.context["k"]) for r in found), default=1)


def _capture_line(rows: Sequence[Row], space: str, label: str) -> str:
    k = _compared(rows, space)
    here = {"space": space, "k": k}
    future = first(rows, "future_capture", **here)

    def under(null: str) -> tuple[str, str]:
        return (
            number_of(rows, "prefix_capture_null", null=null, **here),
            number_of(rows, "future_capture_null", null=null, **here),
        )

    drift, shuffled = (" and ".join(under(null)) for null in (DRIFT, SHUFFLED))
    if first(rows, "future_capture_null", null=FROM_REST, **here):
        drift += f" (one that comes from rest {' and '.join(under(FROM_REST))})"
    return _titled(
        label,
        f"the {'first segment holds' if k == 1 else f'first {k} segments hold'} "
        f"{number_of(rows, 'prefix_capture', **here)} of the whole way and "
        f"{number_of(rows, 'future_capture', **here)} of the way still to come. A constant drift "
        f"in segments of the same lengths would give {drift}, the segments in shuffled order "
        f"{shuffled} (p = {p_text(future.p if future else None)} for the future), unrelated "
        f"segments of the same lengths {under(OWN_NORMS)[0]} and 0."
        f"{_verdict(future, first(rows, 'future_capture_null', null=FROM_REST, **here))}",
    )


def _memory_line(rows: Sequence[Row]) -> str:
    momentum = next((r.value for r in rows if r.quantity == "momentum"), None)
    if momentum is None:
        return (
            "The optimiser's momentum is not known here: the drift has none. Momentum alone raises "
            "captures; give it with --momentum (0.9 for Adam as it comes)."
        )
    if momentum == 0:
        return "The optimiser has no momentum, and the drift has none."
    return (
        f"The drift goes through the optimiser's momentum, {number(momentum)}. A preconditioner "
        "such as Adam's changes nothing while it stands still; that it changes is not in the null."
    )


def _verdict(future: Row | None, from_rest: Row | None) -> str:
    """Whether the future is held better or worse than a constant drift would explain."""
    if future is None or future.value is None or future.null is None:
        return ""
    nulls = [future.null, future.null if from_rest is None else defined(from_rest.value)]
    more = max(future.value - max(nulls), 0.0) + min(future.value - min(nulls), 0.0)
    if abs(more) < DISAGREE:
        return (
            f" The future-only capture differs by less than {DISAGREE} from what a constant drift "
            "gives."
        )
    than = f"{number(abs(more))} {'more' if more > 0 else 'less'}"
    return f" That is {than} of the future than a constant drift explains."


def _gauge_lines(rows: Sequence[Row], spaces: Mapping[str, str]) -> Iterator[str]:
    k = _compared(rows, "weights")
    found = {s: first(rows, "future_capture", space=s, k=k) for s in spaces}
    values = {s: r.value for s, r in found.items() if r and r.value is not None}
    if len(values) == 2:
        apart = abs(values["weights"] - values["factors"])
        yield (
            f"At k = {k} the two spaces {'disagree' if apart > DISAGREE else 'agree'} on the "
            f"future-only capture ({number(values['weights'])} in ΔW, "
            f"{number(values['factors'])} in the factors). Numbers about the factors change with "
            "the gauge (A→RA, B→BR⁻¹) although the network does not: those about ΔW count."
        )


def _turning(rows: Sequence[Row], spaces: Mapping[str, str]) -> Section:
    cosines, overlaps, lines, figures = [], [], [], []
    for i, (space, label) in enumerate(spaces.items()):
        name, chance = label or "measured", f"{label} chance k/D".strip()
        found = curve(rows, "successive_cosine", name, i, space=space)
        windows = curve(rows, "window_overlap", name, i, space=space)
        cosines.append(_thinned(found))
        nulls = [_null(r) for r in windows.rows]
        overlaps += [windows, replace(windows, rows=nulls, label=chance, dashed=True, band=False)]
        lines.append(_turning_line(found.rows, windows.rows, label))
        figures.append(
            draw_matrix(
                f"cosines-{space}",
                "Cosine of every segment with every other (evenly chosen ones of a long run).",
                select(rows, "segment_cosine", space=space),
                over=("i", "j"),
                labels=("segment", "segment"),
                title=_titled(label, "cosines between segments"),
            )
        )
    k = _compared(rows, next(iter(spaces)))
    figures += [
        draw_curves(
            "successive-cosines",
            "Cosine of each segment with the one before.",
            cosines,
            over="t",
            labels=("segment t", "cos(u_t, u_t₋₁)"),
            title="Does the next segment go on the same way?",
            limits=(-1.02, 1.02),
            log=(False, False),
        ),
        draw_curves(
            "window-overlap",
            "Overlap of the first segments' span with that of later windows as long.",
            overlaps,
            over="t",
            labels=(f"first segment of the window of {k}", "overlap"),
            title="Does the span drift?",
            log=(False, False),
        ),
    ]
    return Section(
        title="Does the direction turn?",
        question="How near is each segment to the one before, and the span of the first k to that "
        "of k later ones?",
        figures=figures,
        sees=lines,
    )


def _turning_line(cosines: Sequence[Row], windows: Sequence[Row], label: str) -> str:
    values = sorted(defined(r.value) for r in cosines)
    text = "no two successive segments moved"
    if values:
        text = (
            f"successive segments have cosines from {number(values[0])} to {number(values[-1])}, "
            f"{number(values[len(values) // 2])} in the middle (unrelated directions: 0)"
        )
    if not windows:
        return _titled(label, f"{text}; the run is too short for windows of k segments.")
    early, late = windows[0], windows[-1]
    return _titled(
        label,
        f"{text}. The span of the first {early.context['k']} overlaps with the next as many by "
        f"{number(early.value)} and with the last by {number(late.value)} (random spans: "
        f"{number(early.null)}).",
    )


def _ranks(rows: Sequence[Row], spaces: Mapping[str, str]) -> Section:
    n = _segments(rows)
    return Section(
        title="How many dimensions does the way use?",
        question="Effective rank of the segments, against random vectors that share nothing but "
        "the norms in every tensor.",
        figures=[_rank_figure(rows, space, label) for space, label in spaces.items()],
        sees=[
            _rank_line(rows, space, label, mean, n)
            for space, label in spaces.items()
            for mean in names.MEANS
        ],
    )


def _rank_figure(rows: Sequence[Row], space: str, label: str) -> Drawing:
    curves = []
    for i, mean in enumerate(names.MEANS):
        here: dict[str, Any] = {"space": space, "mean": mean, "band": False}
        for vectors, c in ((names.MEASURED, i), (names.PER_TENSOR, i), (names.ISOTROPIC, i + 2)):
            drawn = vectors != names.MEASURED
            name = f"{mean}: {vectors}{' sketch' if drawn else ''}"
            more = {**here, "vectors": vectors, "dashed": drawn}
            curves.append(curve(rows, "participation_rank", name, c, **more))
    return draw_curves(
        f"ranks-{space}",
        "Participation ratio of the first n segments, with two random sketches of the same norms.",
        curves,
        over="segments",
        labels=("number of segments n", "participation ratio"),
        title=_titled(label, "effective rank"),
        limits=None,
        log=(True, True),
        base=2,
    )


def _rank_line(rows: Sequence[Row], space: str, label: str, mean: str, n: int) -> str:
    here = {"space": space, "mean": mean, "segments": n}
    kinds = ", ".join(
        f"{kind} {number_of(rows, f'{kind}_rank', vectors=names.MEASURED, **here)} "
        f"(sketch {number_of(rows, f'{kind}_rank', vectors=names.PER_TENSOR, **here)})"
        for kind in names.RANKS
    )
    return _titled(label, f"effective ranks of all {n} segments, {mean}: {kinds}.")
