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

from loclin.report.section import Section
from loclin.report.words import VERDICTS, estimate_text, p_text
from loclin.run.record import Record
from loclin.run.rows import Claim


def print_record(folder: Path, drawn: Mapping[str, Mapping[str, Any]]) -> None:
    """Print every claim, then the sections that are marked brief of every finished study.

    Args:
        drawn: the studies, as `report.page.build` drew them.
    """
    record, console = Record(folder), Console()
    if claims := [claim for _, claim in record.claims()]:
        print_table(console, ("", "measured", "p Holm", "verdict"), verdict_rows(claims))
    for name in filter(record.finished, drawn):
        for section in filter(lambda s: s.brief, drawn[name]["sections"]):
            _print_section(console, section)


def _print_section(console: Console, section: Section) -> None:
    console.print(Text(section.title, style="bold"), soft_wrap=True)
    for line in section.follows:
        _print_line(console, Text(line, style="bold"))
    for table in section.tables:
        columns = table.brief or range(len(table.header))
        rows = [
            [Text(row[i], style="bold" if row[0] == table.chosen else "") for i in columns]
            for row in table.rows
        ]
        print_table(console, [table.header[i] for i in columns], rows)
    for line in section.sees:
        _print_line(console, Text(line))


def _print_line(console: Console, line: Text) -> None:
    """A sentence, set in by two; without a terminal on one line."""
    if console.is_terminal:
        console.print(Padding(line, (0, 0, 0, 2)))
    else:
        console.print(Text("  ").append_text(line), soft_wrap=True)


def verdict_rows(claims: Sequence[Claim]) -> list[list[Text]]:
    """A claim's name on a line of its own, then a line for each place where it was tested."""
    rows = []
    for name in dict.fromkeys(claim.id for claim in claims):
        rows.append([Text(name, style="bold"), Text(), Text(), Text()])
        for claim in (c for c in claims if c.id == name):
            measured = estimate_text(claim.value, claim.low, claim.high)
            cells = map(Text, (f"  {claim.setting}", measured, p_text(claim.p_of_verdict)))
            rows.append([*cells, Text(claim.verdict, style=VERDICTS[claim.verdict].style)])
    return rows


def print_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[Text]]) -> None:
    """A table in which no word is broken: as wide as the terminal, or as its words need; without a
    terminal as wide as its lines.
    """
    columns = list(zip(map(Text, header), *rows, strict=True))
    most = [max(cell.cell_len for cell in column) for column in columns]
    widths = [max(map(_longest_word, column)) for column in columns]
    gaps = 2 * (len(widths) - 1)
    left = console.width - gaps - sum(widths) if console.is_terminal else sum(most)
    for i in sorted(range(len(most)), key=lambda i: (i == 0, most[i] - widths[i])):
        more = max(min(most[i] - widths[i], left), 0)  # numbers come first, names take what is left
        widths[i], left = widths[i] + more, left - more
    grid = Grid(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name, width in zip(header, widths, strict=True):
        grid.add_column(name, width=width)
    for row in rows:
        grid.add_row(*row)
    Console(width=sum(widths) + gaps).print(grid)
    console.print()


def _longest_word(cell: Text) -> int:
    return max((Text(word).cell_len for word in cell.plain.split()), default=0)
