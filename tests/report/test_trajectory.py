"""The sentences of a run's page, made from rows with known numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loclin.record import Record
from loclin.report import build, trajectory
from loclin.report.terminal import print_findings
from loclin.studies.trajectory.measure import run_rows, write_record
from loclin.studies.trajectory.movement import Movement, Run
from tests.planted import drifting_steps, white_steps

SETTINGS = {"pattern": "*"}


def movement(updates: np.ndarray) -> Movement:
    half = updates.shape[1] // 2
    norms = np.stack(
        [np.linalg.norm(part, axis=1) for part in (updates[:, :half], updates[:, half:])], axis=1
    )
    return Movement(
        gramian=updates @ updates.T,
        norms=norms,
        names=("h.attn.w", "h.mlp.w"),
        sizes=(half, half),
        still=3,
    )


def run(spaces: dict[str, np.ndarray], **change: Any) -> Run:
    points = len(next(iter(spaces.values()))) + 1
    whole: dict[str, Any] = {
        "labels": tuple(f"checkpoint-{i}" for i in range(points)),
        "steps": tuple(range(0, 10 * points, 10)),
        "notes": ("the first point is a guess",),
        "spaces": {name: movement(u) for name, u in spaces.items()},
        **change,
    }
    return Run(**whole)


def sentences(found: Run) -> str:
    rows = list(run_rows(found, (1, 2, 3, 5), 19, seed=0))
    return "\n".join(
        line for section in trajectory.sections(rows, SETTINGS) for line in section.sees
    )


DRIFT = drifting_steps(12, 400, 4.0, np.random.default_rng(0))
WHITE = white_steps(12, 400, np.random.default_rng(1))


def test_one_run_has_no_interval_and_says_so() -> None:
    text = sentences(run({"weights": DRIFT}))
    assert "12 segments between checkpoint-0 and checkpoint-12. One run: no interval." in text
    assert "Each segment is 10 optimiser steps long." in text
    assert "400 coordinates in 2 tensors that moved; 3 never did." in text
    assert "attention 0." in text
    assert "Note: the first point is a guess." in text
    assert "The first 3 segments hold 0." in text
    assert (
        "The future-only capture differs by less than 0.05 from what a constant drift gives."
        in text
    )
    assert "[" not in text


def test_segments_of_unequal_or_unknown_length_are_pointed_out() -> None:
    steps = tuple(range(12))
    assert "from 1 to 4 optimiser steps" in sentences(run({"weights": WHITE}, steps=(*steps, 15)))
    assert "is not written down in every checkpoint" in sentences(
        run({"weights": WHITE}, steps=(*steps, None))
    )


def test_two_spaces_that_disagree_are_told_apart() -> None:
    text = sentences(run({"factors": WHITE, "weights": DRIFT}))
    assert "At k = 3 the two spaces disagree on the future-only capture" in text
    assert text.index("weights ΔW: ") < text.index("factors A, B: ")
    assert "At k = 3 the two spaces agree" in sentences(run({"factors": DRIFT, "weights": DRIFT}))


def test_the_error_of_a_sketch_is_stated() -> None:
    text = sentences(run({"weights": DRIFT}, sketch=500))
    assert "sketches of 500 numbers: that adds a standard deviation of up to 0.0" in text


def test_a_run_that_bends_is_said_to_hold_less_of_its_future() -> None:
    bent = np.concatenate(
        [
            DRIFT[:6],
            drifting_steps(6, 400, 4.0, np.random.default_rng(2)) @ np.roll(np.eye(400), 7, 1),
        ]
    )
    assert "less of the future than a constant drift explains." in sentences(run({"weights": bent}))


def test_the_shortest_run_has_a_page(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    write_record(
        record, run({"weights": WHITE[:2]}), SETTINGS, ks=(1, 2), shuffles=5, seed=0, device="test"
    )
    record.close_study("trajectory", 0.0)
    page = build(record.folder).read_text()
    assert page.count("<figure>") == len(list((record.folder / "figures").rglob("*.svg"))) == 8
    assert "too short for windows" not in page
    assert "No claim is decided here." in page
    assert "| claim |" not in (record.folder / "report.md").read_text()


def test_findings_are_printed_for_folders_that_have_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record(tmp_path / "run")
    record.open_study("recovery", {}, device="test")
    print_findings(record.folder, "trajectory")
    assert capsys.readouterr().out == ""
    write_record(
        record, run({"weights": WHITE}), SETTINGS, ks=(1, 2), shuffles=5, seed=0, device="test"
    )
    print_findings(record.folder, "trajectory")
    assert "Do the first segments span the way?" in capsys.readouterr().out


def test_a_run_without_successive_movement_has_a_sentence_too() -> None:
    found = "No two successive segments moved; the run is too short for windows of k segments."
    assert trajectory._turning_line([], [], "") == found
