"""Tables in a terminal: no word of them is broken, whatever its width."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from loclin.report.page import build
from loclin.report.terminal import print_record, print_table, verdict_rows
from tests.report.test_page import CLAIM, folder, sections

__all__ = ["folder"]
HEADER = ("", "measured", "p Holm", "verdict")
CLAIMS = [
    replace(CLAIM, id=name, setting=setting, value=-0.00987, low=-0.00987, high=-0.00123)
    for name, setting in (
        ("simultaneous-differ-little", "statements, LoRA, AdamW"),
        ("prefix-predicts-recovery", "statements, LoRA, θ_D, equal radius"),
        ("prefix-predicts-recovery", "statements, E1 and CAA, late blocks"),
    )
] + [replace(CLAIM, id="two-routes-agree", verdict="inconclusive")]


def test_the_terminal_shows_claims_and_brief_sections_with_brief_columns(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: dict[str, Any] = {}
    build(folder, lambda kind: sections, drawn=drawn)
    print_record(folder, drawn)
    shown = capsys.readouterr().out
    assert "refuted" in shown
    assert "Is it straight?" in shown
    assert "It rises." in shown
    assert "long" not in shown
    assert "Only on the page." not in shown


def shown(width: int, terminal: bool, capsys: pytest.CaptureFixture[str]) -> list[str]:
    console = Console(width=width, force_terminal=terminal, color_system=None)
    print_table(console, HEADER, verdict_rows(CLAIMS))
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_word_is_broken(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(width, True, capsys)
    words = {word for claim in CLAIMS for word in (claim.id, *claim.setting.split())}
    words |= {"inconclusive", "-0.00987", "[-0.00987,", "-0.00123]"}
    assert words <= set(" ".join(lines).split())
    assert max(map(len, lines)) <= max(width, 26 + 10 + 5 + 12 + 3 * 2)  # what the words need


def test_a_claim_has_a_line_of_its_own_above_its_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [line.strip() for line in shown(80, True, capsys)]
    at = lines.index("prefix-predicts-recovery")
    assert lines[at + 1].startswith("statements, LoRA,")
    assert lines.count("prefix-predicts-recovery") == 1


def test_without_a_terminal_every_row_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(20, False, capsys)
    assert len([line for line in lines if line.strip()]) == 2 + 3 + len(CLAIMS)
    table = [["a" * 50, "b c " * 60]]
    print_table(Console(width=20), ("x", "y"), [[Text(cell) for cell in row] for row in table])
    assert " ".join(["a" * 50, "", *["b c"] * 60]) in capsys.readouterr().out
