"""The verdicts as a table in the terminal, and the findings of a study that decides none."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from loclin.record import Record
from loclin.report.page import PAGES
from loclin.report.words import estimate_text, p_text

COLOURS = {"supported": "green", "refuted": "red", "inconclusive": "yellow", "not run": "dim"}


def print_claims(folder: Path) -> None:
    """Print every claim of a run folder with its estimate, p-value and verdict; nothing where no
    claim was decided.
    """
    claims = Record(folder).claims()
    if not claims:
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("claim", "tested on", "measured", "p Holm", "verdict"):
        least = {"claim": 16, "tested on": 11, "p Holm": 7, "verdict": 12}.get(heading)
        whole = heading in (
            "measured",
            "p Holm",
            "verdict",
        )  # the others may take two lines where there is little room
        table.add_column(heading, no_wrap=whole, overflow="fold", min_width=least)
    for _, claim in claims:
        cells = (
            claim.id,
            claim.setting,
            estimate_text(claim.value, claim.low, claim.high),
            p_text(claim.p_holm),
        )
        table.add_row(*map(Text, cells), Text(claim.verdict, style=COLOURS[claim.verdict]))
    Console().print(table)


def print_findings(folder: Path, study: str) -> None:
    """Print what a study without claims found, in the sentences of its page; nothing where the
    folder does not hold it finished.
    """
    run = Record(folder).run()
    if (
        study not in run["studies"] or not (folder / study / "results.json").exists()
    ):  # begun and failed
        return
    console = Console()
    for section in PAGES[study](Record(folder).results(study), run["studies"][study]):
        console.print(Text(section.title, style="bold"))
        for line in section.sees:
            console.print(Padding(Text(line), (0, 0, 0, 2)))
