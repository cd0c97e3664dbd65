"""Runs with known answers, given as points in memory, and the command on checkpoint folders."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from loclin.cli import main
from loclin.errors import LoclinError
from loclin.geometry.gramian import future_capture, gramian
from loclin.integrations import points
from loclin.integrations.points import Adapted, Points
from loclin.record import Record, Row
from loclin.studies.trajectory.config import KS, Config
from loclin.studies.trajectory.measure import GROUPS, group_of, lengths_for, run_rows, write_record
from loclin.studies.trajectory.movement import Run, run_of
from tests.integrations.runs import hand_made, weights, write
from tests.planted import drifting_steps, white_steps


def points_of(
    tensors: dict[str, Tensor], steps: tuple[int | None, ...] | None = None, **kwargs: object
) -> Points:
    """Points in memory: each tensor stacked over the points."""
    count = len(next(iter(tensors.values())))

    def read(name: str, rows: slice) -> Tensor:
        return tensors[name].reshape(count, *(tensors[name].shape[1:] or (1,)))[:, rows]

    return Points(
        labels=tuple(f"checkpoint-{i}" for i in range(count)),
        steps=steps or tuple(range(count)),
        shapes={name: tuple(t.shape[1:]) for name, t in tensors.items()},
        adapted={},
        read=read,
        **kwargs,  # type: ignore[arg-type]
    )


def walk(updates: np.ndarray) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros((1, updates.shape[1])), updates.cumsum(0)]))


def rows_of(run: Run, **kwargs: int) -> list[Row]:
    return list(run_rows(run, KS, kwargs.get("shuffles", 19), seed=0))


def value(rows: list[Row], quantity: str, **context: object) -> float:
    (found,) = [
        r
        for r in rows
        if r.quantity == quantity and all(r.context.get(k) == v for k, v in context.items())
    ]
    assert found.value is not None
    return found.value


@pytest.mark.parametrize("block", [1, 100, 1 << 23])
def test_the_gramian_is_that_of_all_tensors_in_any_blocks(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(points, "_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "h.0.attn.weight": torch.randn(5, 7, 3, generator=generator),
        "h.0.mlp.weight": torch.randn(5, 4, 2, 2, generator=generator),
        "scale": torch.randn(5, generator=generator),
    }
    run = run_of(points_of(tensors))
    dense = torch.cat([t.reshape(5, -1) for t in tensors.values()], dim=1).diff(dim=0)
    found = run.spaces["weights"]
    assert np.allclose(found.gramian, gramian(dense), rtol=1e-6)
    assert np.allclose((found.norms**2).sum(1), np.diag(found.gramian))
    assert (found.names, found.sizes, found.dimension) == (tuple(tensors), (21, 16, 1), 38)


def test_tied_tensors_count_once_and_still_ones_not_at_all() -> None:
    moving = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    tensors = {
        "wte": moving,
        "lm_head": moving.clone(),
        "like": moving + 1,
        "frozen": torch.ones(4, 9),
    }
    found = run_of(points_of(tensors)).spaces["weights"]
    assert found.names == ("wte", "like")
    assert (found.dimension, found.still) == (60, 1)


def test_an_adapter_is_measured_in_both_spaces_with_what_was_trained_beside_it() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "x.lora_A.weight": torch.randn(4, 2, 6, generator=generator).double(),
        "x.lora_B.weight": torch.randn(4, 5, 2, generator=generator).double(),
        "head.weight": torch.randn(4, 3, 2, generator=generator).double(),
    }
    pair = {"x": Adapted(a="x.lora_A.weight", b="x.lora_B.weight", scale=0.5)}
    run = run_of(Points(**{**vars(points_of(tensors)), "adapted": pair}))
    made = (0.5 * tensors["x.lora_B.weight"] @ tensors["x.lora_A.weight"]).flatten(1)
    dense = torch.cat([made, tensors["head.weight"].flatten(1)], dim=1).diff(dim=0)
    assert np.allclose(run.spaces["weights"].gramian, gramian(dense))
    assert (run.spaces["weights"].dimension, run.spaces["factors"].dimension) == (
        6 + 2 * (6 + 5 - 2),
        28,
    )


def test_planted_drift_and_white_steps_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    drift, white = (
        rows_of(run_of(points_of({"w": walk(u)})))
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
    kept = rows_of(run_of(points_of({"w": walk(basis[[0, 1, 0, 1, 1, 0, 0, 1]])})))
    turned = rows_of(run_of(points_of({"w": walk(basis)})))
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


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("embeddings", ["transformer.wte.weight", "model.embed_tokens.weight", "lm_head.weight"]),
        (
            "attention",
            ["transformer.h.3.attn.c_proj.weight", "model.layers.0.self_attn.q_proj.lora_A.weight"],
        ),
        ("MLP", ["transformer.h.3.mlp.c_fc.weight", "model.layers.0.mlp.up_proj.weight"]),
        (
            "norms",
            [
                "transformer.ln_f.bias",
                "model.layers.1.post_attention_layernorm.weight",
                "model.norm.weight",
            ],
        ),
        ("other", ["classifier.weight"]),
    ],
)
def test_tensors_of_the_usual_networks_are_grouped(group: str, names: list[str]) -> None:
    assert {group_of(n) for n in names} == {group}
    assert group in GROUPS


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
        == {"white", "white, own norms", "stationary drift", "shuffled order"}
    )


def test_segments_of_length_zero_are_measured_and_leave_gaps() -> None:
    updates = white_steps(6, 50, np.random.default_rng(0))
    updates[[0, 3]] = 0  # a warm-up that starts at a learning rate of zero
    rows = rows_of(run_of(points_of({"w": walk(updates)})))
    cosines = {r.context["t"]: r.value for r in rows if r.quantity == "successive_cosine"}
    assert [t for t, v in cosines.items() if v is None] == [2, 4, 5]
    assert value(rows, "prefix_capture", k=6) == pytest.approx(1)


def test_two_segments_are_the_shortest_run_and_long_runs_stay_short_tables() -> None:
    short = rows_of(run_of(points_of({"w": walk(white_steps(2, 50, np.random.default_rng(0)))})))
    assert value(short, "future_capture", k=1) < 0.2
    long = rows_of(
        run_of(points_of({"w": walk(white_steps(150, 300, np.random.default_rng(0)))})), shuffles=1
    )
    assert len([r for r in long if r.quantity == "segment_cosine"]) == 32**2
    assert len([r for r in long if r.quantity == "window_overlap"]) == 32
    assert lengths_for(1000, KS)[0][-1] == 200  # every capture at T is 1, and costs T³


def test_points_that_cannot_be_measured_say_why() -> None:
    moving = walk(white_steps(3, 50, np.random.default_rng(0)))
    moving[2, 7] = np.inf
    with pytest.raises(
        LoclinError,
        match="finite weights, found NaN or infinity in w at checkpoint-2: leave that point",
    ):
        run_of(points_of({"w": moving}))
    with pytest.raises(
        LoclinError,
        match="points that differ, found the same weights at all of checkpoint-0 to checkpoint-3",
    ):
        run_of(points_of({"w": torch.ones(4, 5)}))
    with pytest.raises(LoclinError, match=r"k of at least 1, found \[0, 2\]: change --ks"):
        Config(folder=Path(), ks=(0, 2)).checked()
    with pytest.raises(LoclinError, match="shuffles of at least 1, found 0: change --shuffles"):
        Config(folder=Path(), shuffles=0).checked()


def test_a_sketch_no_longer_than_the_run_is_refused() -> None:
    run = run_of(points_of({"w": walk(white_steps(5, 50, np.random.default_rng(0)))}))
    short = Run(**{**vars(run), "sketch": 5})
    with pytest.raises(
        LoclinError, match="a sketch longer than the run's 5 updates, found 5: raise size"
    ):
        rows_of(short)


def test_the_record_keeps_gramians_that_give_the_captures_again(tmp_path: Path) -> None:
    run = run_of(points_of({"w": walk(drifting_steps(9, 200, 1.0, np.random.default_rng(0)))}))
    record = Record(tmp_path / "run")
    write_record(record, run, {"pattern": "*"}, ks=(1, 3), shuffles=9, seed=0, device="test")
    rows, arrays = record.results("trajectory"), record.arrays("trajectory")
    again = future_capture(arrays["update_gramian/weights"], [3])[0]
    assert value(rows, "future_capture", k=3) == pytest.approx(
        again, rel=1e-14
    )  # read from a file, it may lie otherwise in memory
    assert all(r.low is None and "run" not in r.context for r in rows)
    with pytest.raises(LoclinError, match="another configuration of trajectory"):
        write_record(record, run, {"pattern": "*attn*"}, ks=(1,), shuffles=9, seed=0, device="test")


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
    assert json.loads((out / "run.json").read_text())["studies"]["trajectory"]["start"] == "base"
    before = (out / "trajectory" / "results.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        main(command[3:])
    assert (out / "trajectory" / "results.json").read_bytes() == before


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


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["trajectory", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Reads the folders checkpoint-N of any Hugging Face Trainer or peft run" in text
    assert "--start" in text
