"""Drawing: curves with bands, dots with whiskers, as SVG text that is the same bytes for the same
numbers. Every drawing has a `name` and a `caption`, its axes have `labels`, its panel a `title`.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from loclin.run.rows import Row

#: Okabe and Ito's palette, told apart by colour-blind readers too.
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#56B4E9", "#5D3A9B", "#8C564B", "#555555"),
)

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "font.size": 10,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "loclin",
    "svg.fonttype": "none",  # text stays text: smaller, and it can be searched
    "font.family": ["DejaVu Sans", "sans-serif"],
    "savefig.dpi": 150,  # of what is rasterised
}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One finished figure.

    Attributes:
        name: of its file.
        svg: the picture.
        caption: what is drawn, for readers and for screen readers.
    """

    name: str
    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Rows to join into a line over one context key."""

    rows: Sequence[Row]
    label: str
    colour: str
    dashed: bool = False
    band: bool = True


def select(rows: Sequence[Row], quantity: str, **context: Any) -> list[Row]:
    """The summary rows (over runs) of a quantity under a condition."""
    return [
        r
        for r in rows
        if r.quantity == quantity
        and r.value is not None
        and "run" not in r.context
        and all(r.context.get(k) == v for k, v in context.items())
    ]


def curve(
    rows: Sequence[Row],
    quantity: str,
    label: str,
    colour: int,
    *,
    dashed: bool = False,
    band: bool = True,
    **context: Any,
) -> Curve:
    """The summary rows of a quantity under a condition as a line, in a colour of the palette."""
    chosen, shade = select(rows, quantity, **context), PALETTE[colour]
    return Curve(rows=chosen, label=label, colour=shade, dashed=dashed, band=band)


def defined(value: float | None) -> float:
    """The value, or NaN where there is none: a gap in the drawing."""
    return math.nan if value is None else value


def draw_curves(
    name: str,
    caption: str,
    curves: Sequence[Curve],
    *,
    over: str,
    labels: tuple[str, str],
    title: str,
    limits: tuple[float, float] | None = (-0.02, 1.02),
    log: tuple[bool, bool] = (True, False),
    base: int = 10,
    decades: bool = False,
) -> Drawing:
    """Lines with 95 % bands over a context key.

    Args:
        curves: what to draw; those without rows are left out.
        over: the context key of the horizontal axis.
        limits: of the vertical axis; None fits them.
        log: which axes are logarithmic.
        base: of the logarithm.
        decades: mark the decades of the horizontal axis (round numbers where it is not logarithmic)
            rather than the places where something was measured.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for curve in curves:
            _curve(axes, curve, over)
        axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
        if limits:
            axes.set_ylim(*limits)
        for axis, wanted in ((axes.set_xscale, log[0]), (axes.set_yscale, log[1])):
            if wanted:
                axis("log", base=base)
        axes.minorticks_off()  # they take longer to lay out than all else
        if not decades:
            _plain_ticks(axes, curves, over, log=log[0])
        elif not log[0]:
            axes.ticklabel_format(axis="x", scilimits=(-3, 4))
            axes.locator_params(axis="x", nbins=5)
        figure.legend(loc="outside lower center", ncols=2)
        return Drawing(name=name, svg=drawn_svg(figure), caption=caption)


def _curve(axes: Axes, curve: Curve, over: str) -> None:
    rows = sorted(curve.rows, key=lambda r: r.context[over])
    if not rows:
        return
    x, y = [r.context[over] for r in rows], [defined(r.value) for r in rows]
    style = "--" if curve.dashed else "-"
    axes.plot(
        x,
        y,
        style,
        color=curve.colour,
        label=curve.label,
        marker="" if curve.dashed else "o",
        markersize=3,
    )
    bounded = [r for r in rows if r.low is not None]
    if curve.band and bounded:
        axes.fill_between(
            [r.context[over] for r in bounded],
            [defined(r.low) for r in bounded],
            [defined(r.high) for r in bounded],
            color=curve.colour,
            alpha=0.15,
            linewidth=0,
        )


def _plain_ticks(axes: Axes, curves: Sequence[Curve], over: str, *, log: bool) -> None:
    """The values themselves as ticks, thinned where more than nine would stand too close."""
    ticks = sorted({r.context[over] for c in curves for r in c.rows})
    places = [math.log(t) if log else float(t) for t in ticks]
    kept: list[int] = []
    for i, place in enumerate(places):
        if not kept or len(ticks) <= 9 or place - places[kept[-1]] >= (places[-1] - places[0]) / 10:
            kept.append(i)
    axes.set_xticks([ticks[i] for i in kept], [str(ticks[i]) for i in kept])
    axes.minorticks_off()


def draw_dots(
    name: str,
    caption: str,
    groups: Mapping[str, Sequence[tuple[str, Row]]],
    *,
    label: str,
    title: str,
    log: bool = False,
    fitted: bool = False,
) -> Drawing:
    """One line per label, a dot with its interval for each group.

    Args:
        groups: for every group (its name goes into the legend), labelled summary rows; the first
            group orders the labels.
        label: of the horizontal axis.
        log: whether the horizontal axis is logarithmic and fitted; otherwise it goes from 0 to 1.
        fitted: whether it is fitted and not logarithmic, with a line at 0.
    """
    order = [text for text, _ in next(iter(groups.values()))]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 1.4 + 0.36 * len(order)), layout="constrained")
        axes = figure.add_subplot()
        for i, (group, entries) in enumerate(groups.items()):
            known = dict(entries)
            for j, text in enumerate(order):
                row = known.get(text)
                if row is None or row.value is None:
                    continue
                y = len(order) - 1 - j + 0.16 * (0.5 - i)
                if row.low is not None:
                    axes.plot([row.low, defined(row.high)], [y, y], color=PALETTE[i], linewidth=1.4)
                axes.plot(
                    row.value,
                    y,
                    "o",
                    color=PALETTE[i],
                    markersize=5,
                    label=group if j == 0 else None,
                )
        axes.set(xlabel=label, title=title, yticks=range(len(order)))
        if log:
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            if high < 30 * low:  # hardly a decade mark is in sight
                axes.xaxis.set_major_locator(
                    LogLocator(subs=(1, 2, 5)) if high > 4 * low else MaxNLocator(5)
                )
                axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        elif fitted:
            axes.axvline(0, color=PALETTE[8], linewidth=0.8)
        else:
            axes.set_xlim(-0.05, 1.1)
        axes.set_yticklabels(order[::-1])
        figure.legend(loc="outside lower center", ncols=2)
        return Drawing(name=name, svg=drawn_svg(figure), caption=caption)


def draw_points(
    name: str,
    caption: str,
    groups: Mapping[str, Sequence[tuple[float, float]]],
    *,
    labels: tuple[str, str],
    title: str,
    fitted: bool = False,
    log: bool = False,
    diagonal: bool = False,
) -> Drawing:
    """A scatter of (x, y) pairs, one colour a group.

    Args:
        groups: what to draw; those without points are left out.
        fitted: fit the axes to the points; otherwise both go from 0 to 1.
        log: whether both axes are logarithmic, and fitted; points that are not positive are then
            left out.
        diagonal: draw the line y = x.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for i, (group, pairs) in enumerate(groups.items()):
            kept = [p for p in pairs if not log or min(p) > 0]
            if kept:
                colour, size = PALETTE[i % len(PALETTE)], 3 if len(kept) > 100 else 4
                axes.plot(
                    *zip(*kept, strict=True),
                    "o",
                    color=colour,
                    markersize=size,
                    alpha=0.6,
                    label=group,
                    rasterized=len(kept) > 300,  # a few kilobytes for any number of points
                )
        axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
        if log:
            axes.set(xscale="log", yscale="log")
            axes.minorticks_off()
        elif fitted:
            axes.locator_params(axis="x", nbins=5)
        else:
            axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        if diagonal:
            axes.axline((1, 1), (10, 10), color=PALETTE[8], linestyle="--", linewidth=1)
        if len(groups) > 1:
            figure.legend(loc="outside lower center", ncols=4)
        return Drawing(name=name, svg=drawn_svg(figure), caption=caption)


def draw_matrix(
    name: str,
    caption: str,
    rows: Sequence[Row],
    *,
    over: tuple[str, str],
    labels: tuple[str, str],
    title: str,
    least: float = -1.0,
    most: float | None = 1.0,
) -> Drawing:
    """Values over two context keys, as colours: blue below zero, white at it, red above; dark to
    bright from 0.

    Args:
        rows: one per cell; cells without a value stay grey.
        over: the context keys of the horizontal and the vertical axis.
        least, most: the range of the colours; least is −1 or 0, and no `most` takes the largest
            value.
    """
    places = [sorted({r.context[key] for r in rows}) for key in over]
    cells = {(r.context[over[0]], r.context[over[1]]): defined(r.value) for r in rows}
    values = [[cells.get((x, y), math.nan) for x in places[0]] for y in places[1]]
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(5.4, 4.4), layout="constrained")
        axes = figure.add_subplot()
        axes.set_facecolor("#bbbbbb")
        image = axes.imshow(
            values,
            cmap="RdBu_r" if least < 0 else "viridis",
            vmin=least,
            vmax=most,
            origin="lower",
            aspect="auto",
        )
        for set_ticks, marks in ((axes.set_xticks, places[0]), (axes.set_yticks, places[1])):
            named = any(
                isinstance(m, str) for m in marks
            )  # every name is shown, numbers as far as they fit
            shown = range(0, len(marks), 1 if named else -(-len(marks) // 8))
            set_ticks(list(shown), [str(marks[i]) for i in shown])
        if any(isinstance(m, str) for m in places[0]):
            axes.tick_params(axis="x", labelrotation=90)
        axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
        figure.colorbar(image, ax=axes)
        return Drawing(name=name, svg=drawn_svg(figure), caption=caption)


def drawn_svg(figure: Figure) -> str:
    """The same bytes for the same numbers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _smaller(buffer.getvalue())


def _smaller(svg: str) -> str:
    """The same picture in a third of the bytes: places to a hundredth of a point (what stands
    between tags is left as it is), no comments, no line breaks, and a style by a name.
    """
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"(?<=>)\s+(?=<)", "", re.sub(r"\s*\n\s*", " ", svg))
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(?<=\d\.\d\d)\d+", "", tag[0]), svg)
    svg = re.sub(r'<g id="(?!figure)[^"]*">', "<g>", svg)
    styles = {s: f"s{i}" for i, s in enumerate(dict.fromkeys(re.findall(r'style="([^"]*)"', svg)))}
    named = "".join(f".{name}{{{style}}}" for style, name in styles.items())
    svg = re.sub(r'style="([^"]*)"', lambda found: f'class="{styles[found[1]]}"', svg)
    return re.sub(r"(<svg[^>]*>)", rf"\1<style>{named}</style>", svg, count=1)
