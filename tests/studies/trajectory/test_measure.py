"""Rows of runs with known answers, and the command on checkpoint folders."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loclin import theory
from loclin.cli import main
from loclin.errors import LoclinError
from loclin.geometry.gramian import future_capture
from loclin.studies.trajectory.measure import _response, lengths_for, run_part
from loclin.studies.trajectory.movement import Run, run_of
from loclin.studies.trajectory.settings import KS
from tests.models.runs import hand_made, weights, write
from tests.planted import drifting_steps, filtered_steps, white_steps
from tests.rows import value, values
from tests.studies.trajectory.planted import points_of, rows_of, run_along, walk


def test_planted_drift_and_white_steps_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    drift, white = (
        rows_of(run_along(u))
        for u in (drifting_steps(20, 3000, 3.0, rng), white_steps(20, 3000, rng))
    )
    assert value(drift, "future_capture", k=5) > 0.8
    assert value(white, "future_capture", k=5) < 0.05
    assert np.median([r.value for r in drift if r.quantity == "successive_cosine"]) > 0.7
    assert abs(np.median([r.value for r in white if r.quantity == "successive_cosine"])) < 0.05
    assert value(drift, "participation_rank", segments=20, vectors="measured", mean="uncentred") < 3
    measured = value(white, "participation_rank", segments=20, vectors="measured", mean="uncentred")
    assert measured == pytest.approx(
        value(white, "participation_rank", segments=20, vectors="per tensor", mean="uncentred"),
        rel=0.02,
    )
    overlaps = [r for r in white if r.quantity == "window_overlap"]
    assert [r.context["t"] for r in overlaps] == list(range(6, 17))
    assert overlaps[0].null == pytest.approx(5 / 3000)
    assert np.mean([r.value for r in overlaps]) == pytest.approx(5 / 3000, rel=0.7)


def test_a_turned_span_has_no_overlap_and_a_kept_one_all() -> None:
    basis = np.eye(8)
    kept = rows_of(run_along(basis[[0, 1, 0, 1, 1, 0, 0, 1]]))
    turned = rows_of(run_along(basis))
    assert [r.value for r in kept if r.quantity == "window_overlap"] == pytest.approx([1.0] * 5)
    assert all(abs(r.value or 0) < 1e-12 for r in turned if r.quantity == "window_overlap")


def test_shares_of_movement_go_by_the_names_of_the_tensors() -> None:
    rows = rows_of(
        run_of(
            points_of(
                {"h.0.attn.w": walk(np.ones((3, 4))), "h.0.mlp.w": walk(np.full((3, 12), 2.0))}
            )
        )
    )
    assert value(rows, "movement_share", group="attention") == pytest.approx(4 / 52)
    nulls = {r.context["group"]: r.null for r in rows if r.quantity == "movement_share"}
    assert nulls == {"attention": 0.25, "MLP": 0.75}


def test_the_heavy_ball_null_is_kept_for_single_steps_alone() -> None:
    u = walk(white_steps(6, 50, np.random.default_rng(0)))
    nulls = [
        {
            r.context["null"]
            for r in rows_of(run_of(points_of({"w": u}, steps)))
            if r.quantity == "prefix_capture_null"
        }
        for steps in (tuple(range(7)), tuple(range(0, 70, 10)), (*range(6), None))
    ]
    assert ["heavy ball" in n for n in nulls] == [True, False, False]
    assert (
        nulls[0] - {"heavy ball"}
        == nulls[1]
        == {"white", "white, own norms", "drift", "shuffled order"}
    )


def test_the_optimisers_memory_is_in_the_drift_where_it_is_known() -> None:
    """Momentum noise alone: without its memory a drift is seen in it that is not there."""
    steps = theory.impulse_response(range(81), 0.9)
    u = filtered_steps(steps, 0.0, np.ones(80), 5000, np.random.default_rng(0))
    run = run_along(np.pad(u, ((0, 0), (0, 5000 - u.shape[1]))))
    excess = {}
    for momentum in (None, 0.0, 0.9):
        rows = rows_of(dataclasses.replace(run, momentum=momentum))
        assert values(rows, "momentum") == [momentum]
        excess[momentum] = value(rows, "future_capture", k=10) - value(
            rows, "future_capture_null", null="drift", k=10
        )
        rest = values(rows, "future_capture_null", null="drift from rest", k=10)
        assert len(rest) == (momentum == 0.9)
    assert excess[None] == excess[0.0] < -0.1
    assert abs(excess[0.9]) < 0.05


def test_segments_and_resumed_runs_have_the_response_of_their_steps() -> None:
    u = white_steps(4, 50, np.random.default_rng(0))

    def response(*steps: int | None) -> np.ndarray | None:
        return _response(dataclasses.replace(run_along(u, steps=steps), momentum=0.5))

    assert response(0, 2, 3, 5, 6) == pytest.approx(theory.impulse_response([0, 2, 3, 5, 6], 0.5))
    later = response(8, 9, 10, 11, 12)
    assert later is not None
    assert later.shape == (4, 12)
    assert later[:, :8].any()  # what was averaged before
    assert response(0, 1, 2, 3, None) is None
    assert response(0, 1, 2, 3, 10_000_000) is None
    rows = rows_of(dataclasses.replace(run_along(u, steps=(0, 1, 2, 3, None)), momentum=0.5))
    assert values(rows, "momentum") == [None]  # it is not in the null


def test_segments_of_length_zero_are_measured_and_leave_gaps() -> None:
    updates = white_steps(6, 50, np.random.default_rng(0))
    updates[[0, 3]] = 0  # a warm-up that starts at a learning rate of zero
    rows = rows_of(run_along(updates))
    cosines = {r.context["t"]: r.value for r in rows if r.quantity == "successive_cosine"}
    assert [t for t, v in cosines.items() if v is None] == [2, 4, 5]
    assert value(rows, "prefix_capture", k=6) == pytest.approx(1)


def test_two_segments_are_the_shortest_run_and_long_runs_stay_short_tables() -> None:
    short = rows_of(run_along(white_steps(2, 50, np.random.default_rng(0))))
    assert value(short, "future_capture", k=1) < 0.2
    long = rows_of(run_along(white_steps(150, 300, np.random.default_rng(0))), shuffles=1)
    assert len([r for r in long if r.quantity == "segment_cosine"]) == 32**2
    assert len([r for r in long if r.quantity == "window_overlap"]) == 32
    assert lengths_for(1000, KS)[0][-1] == 200  # every capture at T is 1, and costs T³


def test_a_sketch_no_longer_than_the_run_is_refused() -> None:
    run = run_along(white_steps(5, 50, np.random.default_rng(0)))
    short = Run(**{**vars(run), "sketch": 5})
    with pytest.raises(
        LoclinError, match="a sketch longer than the run's 5 updates, found 5: raise size"
    ):
        rows_of(short)


def test_kept_gramians_give_the_captures_again() -> None:
    run = run_along(drifting_steps(9, 200, 1.0, np.random.default_rng(0)))
    part = run_part(run, (1, 3), 9, seed=0)
    again = future_capture(part.arrays["update_gramian/weights"], [3])[0]
    assert value(list(part.rows), "future_capture", k=3) == again
    assert all(r.low is None and "run" not in r.context for r in part.rows)
    assert part.arrays["segment_norms/weights"].shape == (9, 1)


def test_the_command_measures_a_folder_and_names_the_page(tmp_path: Path) -> None:
    """As a user types it, and once more in this process: the record is measured anew and says the
    same.
    """
    hand_made(tmp_path / "mine", steps=(1, 2, 3, 4))
    write(tmp_path / "base", weights(0))
    out = tmp_path / "runs" / "trajectory-mine"
    command = [
        sys.executable,
        "-m",
        "loclin",
        "trajectory",
        "mine",
        "--start",
        "base",
        "--shuffles",
        "9",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == f"report: {out / 'report.html'}"
    assert "4 segments between base and checkpoint-4" in answer.stdout
    assert "<h2>Claims</h2>" not in (out / "report.html").read_text()
    run = json.loads((out / "run.json").read_text())
    assert run["studies"]["trajectory-mine"]["start"] == "base"
    results = out / "trajectory-mine" / "results.json"
    before = results.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        main(command[3:])
    assert results.read_bytes() == before
    write(tmp_path / "mine" / "checkpoint-5", weights(5), step=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        main(command[3:])
    assert "checkpoint-5" in results.read_text()  # the run has gone on meanwhile


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nowhere"],
            "expected a folder of checkpoints, found none at nowhere: give a Trainer's output_dir",
        ),
        (
            ["nan"],
            "expected finite weights, found NaN or infinity in wte.weight at checkpoint-3: leave "
            "that point out",
        ),
        (["mine", "--pattern", "fly"], "expected a pattern that matches a tensor, found 'fly'"),
        (
            ["mine", "--out", "mine"],
            "expected an empty folder or an earlier run, found other files in mine",
        ),
        (["mine", "--ks", "0"], "expected k of at least 1, found [0]: change --ks"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    hand_made(tmp_path / "mine")
    broken = weights(3)
    broken["wte.weight"][2, 2] = float("nan")
    write(hand_made(tmp_path / "nan", steps=(1, 2)) / "checkpoint-3", broken)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["trajectory", *arguments])
    assert end.value.code == 2
    errors = capsys.readouterr().err.strip()
    assert message in errors
    assert len(errors.splitlines()) == 1
