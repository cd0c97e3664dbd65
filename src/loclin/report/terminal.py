"""The verdicts of a run folder as a table in the terminal, and its studies' brief sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from loclin.report.section import Section, Table
from loclin.report.words import estimate_text, p_text
from loclin.run.record import Record
from loclin.run.rows import Claim

COLOURS = {
    "supported": "green",
    "refuted": "red",
    "inconclusive": "yellow",
    "measurement": "cyan",
    "not run": "dim",
}


def print_record(folder: Path, drawn: Mapping[str, Mapping[str, Any]]) -> None:
    """Print every claim, then the sections that are marked brief of every finished study.

    Args:
        drawn: the studies, as `report.page.build` drew them.
    """
    record, console = Record(folder), Console()
    if claims := [claim for _, claim in record.claims()]:
        console.print(_verdicts(claims))
    for name in filter(record.finished, record.run()["studies"]):
        for section in drawn[name]["sections"]:
            if section.brief:
                _print_section(console, section)


def _print_section(console: Console, section: Section) -> None:
    console.print(Text(section.title, style="bold"))
    for table in section.tables:
        console.print(_grid(table))
    for line in section.sees:
        console.print(Padding(Text(line), (0, 0, 0, 2)))


def _grid(table: Table) -> Grid:
    """The columns of a table that are for the terminal."""
    columns = table.brief or range(len(table.header))
    grid = Grid(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i in columns:
        grid.add_column(table.header[i], overflow="fold")
    for row in table.rows:
        style = "bold" if row[0] == table.chosen else ""
        grid.add_row(*(Text(row[i]) for i in columns), style=style)
    return grid


def _verdicts(claims: Sequence[Claim]) -> Grid:
    grid = Grid(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    least = {"claim": 16, "tested on": 11, "p Holm": 7, "verdict": 12}
    for heading in ("claim", "tested on", "measured", "p Holm", "verdict"):
        whole = heading in ("measured", "p Holm", "verdict")  # others may take two lines
        grid.add_column(heading, no_wrap=whole, overflow="fold", min_width=least.get(heading))
    for claim in claims:
        measured = estimate_text(claim.value, claim.low, claim.high)
        cells = (claim.id, claim.setting, measured, p_text(claim.p_of_verdict))
        verdict = Text(claim.verdict, style=COLOURS[claim.verdict])
        grid.add_row(*map(Text, cells), verdict)
    return grid
