"""The sentences of a run's page, made from rows with known numbers."""

import re
from typing import Any

import numpy as np
import pytest

from loclin.report.section import Section
from loclin.run.rows import Row
from loclin.studies.trajectory import page
from loclin.studies.trajectory.movement import Movement, Run
from tests.planted import drifting_steps, white_steps
from tests.studies.trajectory.planted import rows_of

FIGURES = {
    "movement-shares-weights", "segment-lengths", "prefix-capture-weights",
    "future-capture-weights", "cosines-weights", "successive-cosines", "window-overlap",
    "ranks-weights",
}  # fmt: skip


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


def sections_of(found: Run) -> list[Section]:
    return page.sections(rows_of(found, ks=(1, 2, 3, 5)), {})


def sentences(found: Run) -> str:
    return "\n".join(line for section in sections_of(found) for line in section.sees)


DRIFT = drifting_steps(12, 400, 4.0, np.random.default_rng(0))
WHITE = white_steps(12, 400, np.random.default_rng(1))


def test_one_run_has_no_interval_and_says_so() -> None:
    text = sentences(run({"weights": DRIFT}))
    assert "12 segments between checkpoint-0 and checkpoint-12. One run: no interval." in text
    assert "Each segment is 10 optimiser steps long." in text
    follows = " ".join(line for s in sections_of(run({"weights": DRIFT})) for line in s.follows)
    assert re.match(r"About \S+ directions hold this run \(participation ratio of its 12 ", follows)
    assert "its first 3 segments hold 0." in follows
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


def test_the_page_says_which_memory_the_drift_has() -> None:
    for momentum, text in (
        (None, "The optimiser's momentum is not known here: the drift has none."),
        (0.0, "The optimiser has no momentum, and the drift has none."),
        (0.9, "The drift goes through the optimiser's momentum, 0.9."),
    ):
        text_of_run = sentences(run({"weights": DRIFT}, momentum=momentum))
        assert text in text_of_run
        assert ("one that comes from rest" in text_of_run) == (momentum == 0.9)


@pytest.mark.parametrize(
    ("future", "rest", "text"),
    [(0.9, 0.5, "0.2 more"), (0.3, 0.5, "0.2 less"), (0.6, 0.5, "differs by less than 0.05")],
)
def test_more_is_more_than_both_drifts(future: float, rest: float, text: str) -> None:
    rows = [Row(quantity="future_capture", value=v, null=0.7) for v in (future, rest)]
    assert text in page._verdict(*rows)


def test_the_shortest_run_has_every_figure_and_all_is_for_the_terminal_too() -> None:
    made = sections_of(run({"weights": WHITE[:2]}))
    figures = [figure for section in made for figure in section.figures]
    assert {figure.name for figure in figures} == FIGURES
    assert all(figure.svg.startswith("<?xml") for figure in figures)
    assert all(section.brief and section.sees for section in made)


def test_a_run_without_successive_movement_has_a_sentence_too() -> None:
    found = "No two successive segments moved; the run is too short for windows of k segments."
    assert page._turning_line([], [], "") == found
