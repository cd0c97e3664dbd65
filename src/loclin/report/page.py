"""Assembles the page: claims first, then for each study its questions, figures, findings and
settings.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from loclin.errors import LoclinError
from loclin.record import Record, Row
from loclin.report import (
    krylov,
    linearity,
    pilot,
    radius,
    recovery,
    schedules,
    search,
    searched,
    spectrum,
    steered,
    steering,
    trajectory,
)
from loclin.report.figures import Drawing
from loclin.report.section import Section
from loclin.report.words import estimate_text, number, p_text

PAGES: dict[str, Callable[[Sequence[Row], Mapping[str, Any]], list[Section]]] = {
    "recovery": recovery.sections,
    "spectrum": spectrum.sections,
    "linearity": linearity.sections,
    "krylov": krylov.sections,
    "search": searched.sections,
    "steering": steered.sections,
    "schedules": schedules.sections,
    "trajectory": trajectory.sections,
    "radius": radius.sections,
    "pilot": pilot.sections,
    search.KIND: search.sections,
    steering.KIND: steering.sections,
}


def build(folder: Path) -> Path:
    """Write figures/*.svg, report.md and report.html of a run folder from its record alone.

    Returns:
        The HTML page: one self-contained file that opens from disk.

    Raises:
        LoclinError: no record, or one with no finished study.
    """
    record = Record(folder)
    run = record.run()
    finished = [s for s in run["studies"] if (folder / s / "results.json").exists()]
    if not finished:
        raise LoclinError(
            f"expected a run folder with a finished study, found none in {folder}: let `loclin "
            "run` end first"
        )
    studies = [
        {
            "name": s,
            "config": run["studies"][s],
            "notes": run["notes"].get(s, []),
            "sections": PAGES[run["studies"][s]["study"]](record.results(s), run["studies"][s]),
        }
        for s in finished
    ]
    for study in studies:
        for section in study["sections"]:
            for drawing in section.figures:
                record.write_text(f"figures/{study['name']}/{drawing.name}.svg", drawing.svg)
    environment = Environment(
        loader=PackageLoader("loclin", "report"),
        autoescape=lambda name: name == "page.html",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "p_text": p_text, "image": _image}
    environment.globals |= {"estimate_text": estimate_text}
    content = {
        "run": run,
        "studies": studies,
        "unfinished": [s for s in run["studies"] if s not in finished],
        "claims": [claim for _, claim in record.claims()],
        "last": run["sessions"][-1],
    }
    record.write_text("report.md", environment.get_template("page.md").render(content))
    return record.write_text("report.html", environment.get_template("page.html").render(content))


def _image(drawing: Drawing) -> str:
    """The figure as an image of its own: nothing inside it can reach the page."""
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.svg.encode()).decode()
