"""Draws a run folder as one self-contained HTML page and its Markdown twin: claims first, then the
sections of every study. Knows no study: it is told where their sections come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from loclin.errors import LoclinError
from loclin.report.figures import Drawing
from loclin.report.glance import glance, sentences, verdicts
from loclin.report.section import Missing, Section
from loclin.report.words import VERDICTS, estimate_text, number, p_text
from loclin.run.record import Record
from loclin.run.rows import Row

SO_FAR = "not finished: this is what is there so far; the command that started it goes on"
#: What a section that needs rows that are not there yet may raise.
MISSING_ROWS = (LoclinError, LookupError, StopIteration, TypeError, ValueError)
#: The sections of a study, from its rows and its settings, but those that end in an error of a
#: third argument: what draws an unfinished study.
Sections = Callable[..., list[Section]]


def build(
    folder: Path,
    sections: Callable[[str], Sections],
    *,
    titles: Mapping[str, str] | None = None,
    planned: Sequence[str] = (),
    drawn: dict[str, dict[str, Any]] | None = None,
    so_far: Callable[[str], list[Row]] = lambda name: [],
) -> Path:
    """Write figures/*.svg, report.md and report.html of a run folder from its record alone.

    Args:
        sections: for a kind of study, what makes its sections.
        titles: what a kind of study asks, in words.
        planned: entries that are still to come, in a command that goes on; not drawn as an earlier
            one left them.
        drawn: studies that an earlier call drew, which are not drawn again; added to.
        so_far: the rows of an unfinished study, where there are any.

    Returns:
        The HTML page: one file that opens from disk.

    Raises:
        LoclinError: a record that cannot be read.
    """
    record = Record(folder)
    run = record.run()
    done = [n for n in run["studies"] if record.finished(n) and n not in planned]
    drawn = {} if drawn is None else drawn
    begun = {n: rows for n in run["studies"] if n not in done and (rows := so_far(n))}
    for name in (n for n in (*done, *begun) if n not in drawn):
        rows = begun[name] if name in begun else record.results(name)
        study = _study(run, name, rows, sections, MISSING_ROWS if name in begun else ())
        if name in begun and not study["sections"]:
            continue
        drawn[name] = study
        for drawing in (d for section in drawn[name]["sections"] for d in section.figures):
            record.write_text(f"figures/{name}/{drawing.name}.svg", drawing.svg)
    shown = [name for name in (*done, *begun) if name in drawn]
    decided = record.claims()
    studies = [
        {
            **drawn[name],
            "title": (titles or {}).get(run["studies"][name]["study"], f"Study: {name}"),
            "notes": [*([SO_FAR] if name in begun else []), *drawn[name]["notes"]],
            "answer": [
                *drawn[name]["follows"],
                *verdicts([claim for entry, claim in decided if entry == name]),
            ],
        }
        for name in shown
    ]
    claims = [claim for _, claim in decided]
    content = {
        "run": run,
        "studies": studies,
        "unfinished": [n for n in run["studies"] if n not in shown and n not in planned],
        "planned": planned,
        "claims": claims,
        "glances": {w: glance(claims, narrow=w == "narrow") for w in ("broad", "narrow") if claims},
        "says": sentences(claims),
        "last": run["sessions"][-1] if run["sessions"] else None,
    }
    pages = _environment()
    record.write_text("report.md", pages.get_template("page.md").render(content))
    return record.write_text("report.html", pages.get_template("page.html").render(content))


def _study(
    run: Mapping[str, Any],
    name: str,
    rows: Sequence[Row],
    sections: Callable[[str], Sections],
    skip: Missing,
) -> dict[str, Any]:
    settings = run["studies"][name]
    made = sections(settings["study"])(rows, settings, skip)
    return {
        "name": name,
        "settings": settings,
        "notes": run["notes"].get(name, []),
        "sections": made,
        "follows": [line for section in made for line in section.follows],
    }


def _environment() -> Environment:
    pages = Environment(
        loader=PackageLoader("loclin", "report"),
        autoescape=lambda name: name == "page.html",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"number": number, "p_text": p_text, "image": _image}
    pages.globals |= {"estimate_text": estimate_text, "looks": VERDICTS}
    return pages


def _image(drawing: Drawing) -> Markup:
    """The figure as an image of its own, for an attribute in double quotes: without quotes and
    ampersands nothing inside it can reach the page.
    """
    return Markup("data:image/svg+xml," + quote(drawing.svg, safe=" :/;,=()-._'*!@$+?<>{}"))
