"""A run trained elsewhere on a page: what its segments are, and what the numbers about them say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from loclin.record import Row
from loclin.report.figures import (
    PALETTE,
    Curve,
    Drawing,
    defined,
    draw_curves,
    draw_dots,
    draw_matrix,
    select,
)
from loclin.report.section import Section
from loclin.report.words import number, p_text

#: What a space is called where there are two, and where there is one.
TWO = {"weights": "weights ΔW", "factors": "factors A, B"}
NULLS = {
    "prefix_capture": (
        "stationary drift",
        "white, own norms",
        "white",
        "heavy ball",
        "shuffled order",
    ),
    "future_capture": ("stationary drift", "shuffled order"),
}
DISAGREE = 0.05  # captures in the two spaces of an adapter that differ by more are pointed out


def sections(rows: Sequence[Row], config: Mapping[str, Any]) -> list[Section]:
    """The study's sections in reading order."""
    spaces = _spaces(rows)
    return [_run(rows, spaces), _prefix(rows, spaces), _turning(rows, spaces), _ranks(rows, spaces)]


def _spaces(rows: Sequence[Row]) -> dict[str, str]:
    """The spaces that were measured, weights first, and a label for each ("" where there is but
    one).
    """
    found = {r.context["space"] for r in rows if r.quantity == "dimension"}
    return {space: TWO[space] if len(found) > 1 else "" for space in TWO if space in found}


def _one(rows: Sequence[Row], quantity: str, **context: Any) -> Row | None:
    found = select(rows, quantity, **context)
    return found[0] if found else None


def _number(rows: Sequence[Row], quantity: str, **context: Any) -> str:
    found = _one(rows, quantity, **context)
    return number(found.value) if found else "not defined"


def _titled(label: str, text: str) -> str:
    return f"{label}: {text}" if label else text[0].upper() + text[1:]


def _run(rows: Sequence[Row], spaces: Mapping[str, str]) -> Section:
    points = sorted(
        (r for r in rows if r.quantity == "point_step"), key=lambda r: r.context["point"]
    )
    segments = len(points) - 1
    figures = [_shares(rows, space, label) for space, label in spaces.items()]
    return Section(
        title="The run",
        question="Which points is it seen at, how far apart are they, and which tensors moved?",
        figures=[*figures, _lengths(rows, spaces)],
        sees=[
            f"{segments} segments between {points[0].context['label']} and "
            f"{points[-1].context['label']}. One run: no interval. "
            "A p-value against shuffled order is exact for the run; it says nothing about other "
            "runs.",
            _spacing([r.value for r in points]),
            *(
                _titled(
                    label,
                    f"{_number(rows, 'dimension', space=s)} coordinates in "
                    f"{_number(rows, 'tensors', space=s)} tensors that "
                    f"moved; {_number(rows, 'still_tensors', space=s)} never did. Shares of the "
                    "squared segment lengths: "
                    f"{_share_text(rows, s)}.",
                )
                for s, label in spaces.items()
            ),
            *_sketch_lines(rows, spaces),
            *(f"Note: {r.context['text']}." for r in rows if r.quantity == "note"),
        ],
    )


def _spacing(steps: Sequence[float | None]) -> str:
    known = [s for s in steps if s is not None]
    if len(known) < len(steps):
        return (
            "How many optimiser steps each segment spans is not written down in every checkpoint."
        )
    lengths = [round(b - a) for a, b in pairwise(known)]
    if len(set(lengths)) == 1:
        return (
            f"Each segment is {lengths[0]} optimiser {'step' if lengths[0] == 1 else 'steps'} long."
        )
    return (
        f"Segments differ in length, from {min(lengths)} to {max(lengths)} optimiser steps: longer "
        "ones weigh more in every "
        "capture, and nulls of equal steps do not fit; hold the curves against the one with the "
        "run's own norms."
    )


def _share_text(rows: Sequence[Row], space: str) -> str:
    return ", ".join(
        f"{r.context['group']} {number(r.value)} (of the coordinates {number(r.null)})"
        for r in select(rows, "movement_share", space=space)
    )


def _sketch_lines(rows: Sequence[Row], spaces: Mapping[str, str]) -> Iterator[str]:
    for space in spaces:
        errors = select(rows, "sketch_sd", space=space, of="future_capture")
        if errors:
            yield (
                f"Inner products were read from sketches of {errors[0].context['m']} numbers: that "
                "adds a standard deviation of up "
                f"to {number(max(defined(r.value) for r in errors))} to a future-only capture."
            )


def _shares(rows: Sequence[Row], space: str, label: str) -> Drawing:
    shares = select(rows, "movement_share", space=space)
    chance = [Row(quantity="coordinates", value=r.null, context=r.context) for r in shares]
    return draw_dots(
        f"movement-shares-{space}",
        "Share of each group of tensors in the squared lengths of the segments, and in the "
        "coordinates.",
        {
            name: [(r.context["group"], r) for r in entries]
            for name, entries in {"movement": shares, "coordinates": chance}.items()
        },
        label="share",
        title=_titled(label, "which tensors moved"),
    )


def _lengths(rows: Sequence[Row], spaces: Mapping[str, str]) -> Drawing:
    curves = [
        Curve(
            rows=_thinned(select(rows, "segment_length", space=s)),
            label=label or "weights",
            colour=PALETTE[i],
        )
        for i, (s, label) in enumerate(spaces.items())
    ]
    return draw_curves(
        "segment-lengths",
        "Length of each segment.",
        curves,
        over="t",
        labels=("segment t", "‖u_t‖"),
        title="How far each segment goes",
        limits=None,
        log=(False, False),
    )


def _thinned(rows: Sequence[Row]) -> list[Row]:
    """At most about 60 of the rows, so that a long run stays readable."""
    return list(rows[:: max(1, len(rows) // 60)])


def _prefix(rows: Sequence[Row], spaces: Mapping[str, str]) -> Section:
    figures, lines = [], []
    for space, label in spaces.items():
        for quantity, of in (("prefix_capture", "d"), ("future_capture", "f_k")):
            figures.append(_captures(rows, space, label, quantity, of))
        lines.append(_capture_line(rows, space, label))
    return Section(
        title="Do the first segments span the way?",
        question="How much of the displacement d = Σu_t, and of the way f_k that is still to come "
        "after segment k, lies in the span "
        "of the first k segments, and how much would it for steps with no structure but a drift?",
        figures=figures,
        sees=[*lines, *_gauge_lines(rows, spaces)],
    )


def _captures(rows: Sequence[Row], space: str, label: str, quantity: str, of: str) -> Drawing:
    curves = [
        Curve(rows=select(rows, quantity, space=space), label="first k segments", colour=PALETTE[0])
    ]
    for null, colour in zip(NULLS[quantity], PALETTE[1:], strict=False):
        chosen = select(rows, f"{quantity}_null", null=null, space=space)
        curves.append(
            Curve(rows=chosen, label=f"null: {null}", colour=colour, dashed=True, band=False)
        )
    whole = quantity == "prefix_capture"
    return draw_curves(
        f"{quantity.replace('_', '-')}-{space}",
        f"Share of the {'whole displacement' if whole else 'displacement after segment k'} in the "
        "span of the first k segments.",
        curves,
        over="k",
        labels=("k", f"capture of {of}"),
        title=_titled(label, "prefix capture" if whole else "future-only capture"),
    )


def _compared(rows: Sequence[Row], space: str) -> int:
    """The k that the sentences are about: that of the overlaps, else the largest with a future."""
    overlaps = select(rows, "window_overlap", space=space)
    ks = [r.context["k"] for r in overlaps] or [
        r.context["k"] for r in select(rows, "future_capture", space=space)
    ]
    return int(max(ks, default=1))


def _capture_line(rows: Sequence[Row], space: str, label: str) -> str:
    k = _compared(rows, space)
    here = {"space": space, "k": k}
    future = _one(rows, "future_capture", **here)
    first = "first segment holds" if k == 1 else f"first {k} segments hold"
    return _titled(
        label,
        f"the {first} {_number(rows, 'prefix_capture', **here)} of the whole way and "
        f"{_number(rows, 'future_capture', **here)} of the way still to come. A stationary drift "
        "fitted to the same segments would "
        f"give {_number(rows, 'prefix_capture_null', null='stationary drift', **here)} and "
        f"{_number(rows, 'future_capture_null', null='stationary drift', **here)}, the segments in "
        "shuffled order "
        f"{_number(rows, 'prefix_capture_null', null='shuffled order', **here)} and "
        f"{_number(rows, 'future_capture_null', null='shuffled order', **here)} "
        f"(p = {p_text(future.p if future else None)} for the future), unrelated segments of the "
        "same lengths "
        f"{_number(rows, 'prefix_capture_null', null='white, own norms', **here)} and "
        f"0.{_verdict(rows, here)}",
    )


def _verdict(rows: Sequence[Row], here: Mapping[str, Any]) -> str:
    """Whether the future is held better or worse than a constant drift would explain."""
    future = _one(rows, "future_capture", **here)
    if future is None or future.value is None or future.null is None:
        return ""
    more = future.value - future.null
    if abs(more) < DISAGREE:
        return f" The future-only capture differs by less than {DISAGREE} from what a constant drift gives."
    return f" That is {number(abs(more))} {'more' if more > 0 else 'less'} of the future than a constant drift explains."


def _gauge_lines(rows: Sequence[Row], spaces: Mapping[str, str]) -> Iterator[str]:
    if len(spaces) < 2:
        return
    k = _compared(rows, "weights")
    found = {s: _one(rows, "future_capture", space=s, k=k) for s in spaces}
    values = {s: r.value for s, r in found.items() if r and r.value is not None}
    if len(values) == 2:
        apart = abs(values["weights"] - values["factors"])
        yield (
            f"At k = {k} the two spaces {'disagree' if apart > DISAGREE else 'agree'} on the "
            "future-only capture "
            f"({number(values['weights'])} in ΔW, {number(values['factors'])} in the factors). "
            "Numbers about the factors change with "
            "the gauge (A→RA, B→BR⁻¹) although the network does not: those about ΔW count."
        )


def _turning(rows: Sequence[Row], spaces: Mapping[str, str]) -> Section:
    cosines, overlaps, lines, figures = [], [], [], []
    for i, (space, label) in enumerate(spaces.items()):
        found, windows = (
            select(rows, "successive_cosine", space=space),
            select(rows, "window_overlap", space=space),
        )
        cosines.append(Curve(rows=_thinned(found), label=label or "measured", colour=PALETTE[i]))
        overlaps.append(Curve(rows=windows, label=label or "measured", colour=PALETTE[i]))
        chance = [Row(quantity="null", value=r.null, context=r.context) for r in windows]
        overlaps.append(
            Curve(
                rows=chance,
                label=f"{label} chance k/D".strip(),
                colour=PALETTE[i],
                dashed=True,
                band=False,
            )
        )
        lines.append(_turning_line(found, windows, label))
        cells = select(rows, "segment_cosine", space=space)
        caption = "Cosine of every segment with every other (evenly chosen ones of a long run)."
        title = _titled(label, "cosines between segments")
        figures.append(
            draw_matrix(
                f"cosines-{space}",
                caption,
                cells,
                over=("i", "j"),
                labels=("segment", "segment"),
                title=title,
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
    first, last = windows[0], windows[-1]
    return _titled(
        label,
        f"{text}. The span of the first {first.context['k']} overlaps with the next as many by "
        f"{number(first.value)} and with the "
        f"last by {number(last.value)} (random spans: {number(first.null)}).",
    )


def _ranks(rows: Sequence[Row], spaces: Mapping[str, str]) -> Section:
    figures, lines = [], []
    for space, label in spaces.items():
        curves = []
        for i, mean in enumerate(("uncentred", "centred")):
            for vectors, dashed, shift in (
                ("measured", False, 0),
                ("per tensor", True, 0),
                ("isotropic", True, 2),
            ):
                name = f"{mean}: measured" if vectors == "measured" else f"{mean}: {vectors} sketch"
                chosen = select(rows, "participation_rank", space=space, mean=mean, vectors=vectors)
                curves.append(
                    Curve(
                        rows=chosen,
                        label=name,
                        colour=PALETTE[i + shift],
                        dashed=dashed,
                        band=False,
                    )
                )
        figures.append(
            draw_curves(
                f"ranks-{space}",
                "Participation ratio of the first n segments, with two random sketches of the same "
                "norms.",
                curves,
                over="segments",
                labels=("number of segments n", "participation ratio"),
                title=_titled(label, "effective rank"),
                limits=None,
                log=(True, True),
                base=2,
            )
        )
        lines += [_rank_line(rows, space, label, mean) for mean in ("uncentred", "centred")]
    return Section(
        title="How many dimensions does the way use?",
        question="Effective rank of the segments, against random vectors that share nothing but "
        "the norms in every tensor.",
        figures=figures,
        sees=lines,
    )


def _rank_line(rows: Sequence[Row], space: str, label: str, mean: str) -> str:
    n = max(r.context["segments"] for r in rows if r.quantity == "participation_rank")
    here = {"space": space, "mean": mean, "segments": n}
    kinds = ", ".join(
        f"{kind} {_number(rows, f'{kind}_rank', vectors='measured', **here)} "
        f"(sketch {_number(rows, f'{kind}_rank', vectors='per tensor', **here)})"
        for kind in ("stable", "participation", "entropy")
    )
    return _titled(label, f"effective ranks of all {n} segments, {mean}: {kinds}.")
