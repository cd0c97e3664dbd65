"""All claims of a run in one figure, and what they say in a few sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loclin.report.figures import STYLE, Drawing, drawn_svg
from loclin.report.words import VERDICTS, estimate_text
from loclin.run.rows import Claim

#: Numbers in the paper's words: 0.77 (Fig. 2); r ≈ −0.40; cosine ≈ 0.58.
PAPER = re.compile(r"(?:^|≈ )([−-]?0\.\d+)")


def glance(claims: Sequence[Claim], *, narrow: bool = False) -> Drawing:
    """One line a claim and setting: where its estimate lies beside the bar that it is held against.

    Every line has its own scale: the bar stands in the middle and what supports the claim lies
    right of it; the interval's further end is at one. On a narrow screen it stands below its words.
    """
    names = list(dict.fromkeys(c.id for c in claims))
    lines: list[str | Claim] = []
    for name in names:
        lines += [name, *(c for c in claims if c.id == name)]
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        each = 2 if narrow else 1
        end = sum(each if isinstance(line, Claim) else 1 for line in lines)
        height = 0.9 + 0.19 * end
        figure = Figure(figsize=(4.4 if narrow else 9.6, height))
        left, width = (0.03, 0.94) if narrow else (0.25, 0.56)
        axes, y = figure.add_axes((left, 0.4 / height, width, 1 - 0.8 / height)), 0
        for line in lines:
            if isinstance(line, Claim):
                _line(axes, line, y, narrow=narrow)
                y += each
            else:
                axes.axhline(y - 0.5, color="#e6e6e6", linewidth=0.8)
                axes.text(0.0 if narrow else -0.43, y, line, weight="bold", **_words(axes))
                y += 1
        axes.axvline(0, color="#999999", linewidth=0.8, zorder=0)
        axes.set(xlim=(-1.15, 1.15), ylim=(end - 0.4, -1.0), yticks=[])
        sides = ("against it", "for it") if narrow else ("speaks against it", "speaks for it")
        axes.set_xticks([-1, 0, 1], [sides[0], "the bar", sides[1]])
        axes.spines["left"].set_visible(False)
        for word, look in VERDICTS.items():
            if any(c.verdict == word for c in claims):
                axes.plot([], [], look.mark, color=look.light, label=word, linestyle="none")
        axes.plot([], [], "|", color="#000000", label="the paper", linestyle="none")
        figure.legend(loc="upper center", ncols=3 if narrow else 6)
        caption = "Every claim: its estimate with the 95 % interval beside the bar. " + " ".join(
            sentences(claims)
        )
        return Drawing(
            name="glance-narrow" if narrow else "glance", svg=drawn_svg(figure), caption=caption
        )


def _words(axes: Axes) -> dict[str, Any]:
    return {"va": "center", "fontsize": 8, "transform": axes.get_yaxis_transform()}


def _line(axes: Axes, claim: Claim, line: int, *, narrow: bool) -> None:
    (colour, _, mark, _), words = VERDICTS[claim.verdict], _words(axes)
    ends, y = ((0.02, 1.0), line + 0.85) if narrow else ((-0.41, 1.01), line)
    text = estimate_text(claim.value, claim.low, claim.high)
    axes.text(ends[0], line, claim.setting, **words)
    axes.text(ends[1], line, text, color=colour, ha="right" if narrow else "left", **words)
    if claim.bar is None or claim.value is None:
        axes.plot(1.1, y, mark, color=colour, clip_on=False)
        return
    value = towards(claim, claim.value)
    low, high = (None if v is None else towards(claim, v) for v in (claim.low, claim.high))
    paper = PAPER.search(claim.paper)
    said = towards(claim, float(paper[1].replace("−", "-"))) if paper else None
    reach = max(abs(v) for v in (low, value, high, said) if v is not None) or 1.0
    if low is not None and high is not None:
        axes.plot([low / reach, high / reach], [y, y], color=colour, linewidth=1.4)
    axes.plot(value / reach, y, mark, color=colour, markersize=5)
    if said is not None:
        axes.plot(said / reach, y, "|", color="#000000", markersize=8)


def towards(claim: Claim, value: float) -> float:
    """How far a number lies on the claim's side of its bar, in its own units."""
    bar = claim.bar or 0.0
    if claim.supports == "within":
        return bar - (value if (claim.value or 0.0) >= 0 else -value)
    return (value - bar) * (-1 if claim.supports == "below" else 1)


def sentences(claims: Sequence[Claim]) -> list[str]:
    """What the verdicts say together, in five sentences at most; in brackets in how many of the
    settings in which a claim was decided.
    """
    ruled = [c for c in claims if c.verdict not in ("measurement", "not run")]
    counts = {word: sum(c.verdict == word for c in claims) for word in VERDICTS}
    said = [
        f"Of {len(ruled)} claims under a rule {counts['supported']} are supported, "
        f"{counts['refuted']} refuted and {counts['inconclusive']} open; in brackets, in how many "
        "of a claim's settings.",
    ]
    for word in ("supported", "refuted"):
        if some := [c for c in ruled if c.verdict == word]:
            said.append(f"{word.capitalize()}: {_counted(some, ruled, in_words=True)}.")
    moved = [
        c for c in ruled if c.verdict != "inconclusive" and {c.halved, c.doubled} - {c.verdict, ""}
    ]
    if moved:
        said.append(f"Verdicts that hang on where the bar stands: {_counted(moved, ruled)}.")
    near = [
        c
        for c in ruled
        if c.verdict == "inconclusive" and c.p_holm is not None and (c.p or 1) < 0.05
    ]
    if near:
        listed = _counted(near, ruled)
        said.append(f"Open, but below 0.05 before Holm's correction: {listed}.")
    return said


def verdicts(claims: Sequence[Claim]) -> list[str]:
    """For every verdict what has it, and where: a study's answer in its claims' words."""
    found = {
        word: _where([c for c in claims if c.verdict == word], in_words=True) for word in VERDICTS
    }
    return [
        f"{'Open' if word == 'inconclusive' else word.capitalize()}: "
        + "; ".join(f"{name} ({' · '.join(places)})" for name, places in some.items())
        + "."
        for word, some in found.items()
        if some
    ]


def _where(claims: Sequence[Claim], *, in_words: bool) -> dict[str, list[str]]:
    """Where each claim was tested, by its statement or its name."""
    where: dict[str, list[str]] = {}
    for claim in claims:
        name = f"“{claim.statement.rstrip('.')}”" if in_words else claim.id
        where.setdefault(name, []).append(claim.setting)
    return where


def _counted(some: Sequence[Claim], among: Sequence[Claim], *, in_words: bool = False) -> str:
    """Claims with the number of their settings, of all in which they were decided."""
    every = _where(among, in_words=in_words)
    found = _where(some, in_words=in_words)
    return "; ".join(f"{name} ({len(at)} of {len(every[name])})" for name, at in found.items())
