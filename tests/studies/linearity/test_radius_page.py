"""The radius on a page and in the terminal, written by the command."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loclin.cli import main
from loclin.run.rows import Row
from loclin.studies.linearity.radius_page import sections

SETTINGS: dict[str, Any] = {"direction": "a/base..b/tuned", "tolerance": 0.1, "folds": 4}


def radii(**value: float | None) -> list[Row]:
    """Rows of both sides, in every unit, with two steps of the line."""
    rows = [Row(quantity="limit", value=1e-7, context={"tolerance": 0.1})]
    for sign, side in {"+": "forward", "−": "backward"}.items():
        for step in (0.01, 0.1):
            here, change = {"sign": sign, "step": step}, float(f"{sign}1".replace("−", "-")) * step
            rows.append(Row(quantity="loss_change", value=change, null=change, context=here))
            rows.append(Row(quantity="first_order_error", value=step, context=here))
            rows.append(Row(quantity="score", value=1.0, context=here))
        size = value.get(side)
        for unit in ("‖δ‖/‖θ‖", "‖δ‖", "λ"):
            here = {"sign": sign, "as": unit}
            rows.append(Row(quantity="radius", value=size, low=size, high=size, context=here))
    return rows


def test_a_command_writes_a_record_a_page_and_a_table(
    folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    direction, out = f"{folders}/base..{folders}/tuned", str(tmp_path / "run")
    command = ["radius", "--model", str(folders / "base"), "--data", "sequences-small"]
    command += ["--direction", direction, "--examples", "20", "--per-decade", "1", "--out", out]
    main(command)
    shown = capsys.readouterr().out
    for words in ("largest step", "forward", "backward", "by curvature", "score there"):
        assert words in shown
    for words in (
        "The whole vector, λ = 1",
        "A step or merge coefficient",
        "Round-off begins",
        "of the model's 28 tensors",
    ):
        assert words in shown
    assert (tmp_path / "run" / "radius-base-sequences-small-base-tuned" / "results.json").exists()
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<figure>") == 3
    assert "How far along base..tuned?" in page
    main(command)  # nothing is measured again
    assert "following the loss" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "--tolerance", "0.3"])
    assert "tolerance is 0.1 there, 0.3 here" in capsys.readouterr().err


def test_a_size_is_an_estimate_a_bound_or_none() -> None:
    rows = [*radii(forward=0.25), Row(quantity="radius_open", value=1.0, context={"sign": "+"})]
    section, _ = sections(rows, SETTINGS)
    assert section.title == "How far along base..tuned?"
    assert section.brief
    table = section.tables[0]
    assert table.rows[0][:3] == ["‖δ‖/‖θ‖", "≥ 0.25", "none above round-off"]
    assert all(len(row) == len(table.header) for row in table.rows)
    assert any("No predictable step above round-off backward" in line for line in section.sees)
    closed, _ = sections(radii(forward=0.25, backward=0.5), SETTINGS)
    assert closed.tables[0].rows[2][:3] == ["λ", "0.25 [0.25, 0.25]", "0.5 [0.5, 0.5]"]


def test_a_safe_step_is_the_lower_end_of_the_radius() -> None:
    rows = [
        replace(r, low=0.125) if r.quantity == "radius" and r.value else r
        for r in radii(forward=0.25)
    ]
    section, _ = sections(rows, SETTINGS)
    assert section.follows == [
        "A step or merge coefficient λ up to 0.125 forward is safe: the loss changes as its "
        "gradient says to within τ = 0.1 (largest such step 0.25 [0.125, 0.25])."
    ]


def test_along_the_gradient_the_multiple_is_a_learning_rate() -> None:
    section, _ = sections(radii(forward=0.25), {**SETTINGS, "direction": "gradient"})
    assert section.tables[0].rows[2][0] == "λ (learning rate)"
    assert any(line.startswith("Forward is up the gradient") for line in section.sees)


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        (1.0, "inside the radius: its effect is predictable. The loss there is not finite."),
        (0.0, "outside the radius: its effect is not gradient times step."),
        (None, "beyond the last step that was tried."),
    ],
)
def test_the_whole_vector_has_a_verdict(inside: float | None, words: str) -> None:
    rows = [Row(quantity="whole_step", value=0.1), Row(quantity="whole_inside", value=inside)]
    section, _ = sections([*radii(forward=0.25), *rows], SETTINGS)
    assert f"The whole vector, λ = 1 (‖δ‖/‖θ‖ = 0.1), is {words}" in section.follows[-1]
