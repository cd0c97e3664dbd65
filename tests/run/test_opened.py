import base64
from pathlib import Path

import numpy as np
import pytest

import loclin
from loclin.errors import LoclinError
from loclin.run.record import Record
from loclin.run.rows import Row
from tests.run.constant import CLAIM


def made(folder: Path) -> None:
    record = Record(folder)
    record.open_study("recovery", {"steps": 5}, device="cpu")
    rows = [Row(quantity="q", value=0.5, null=0.1, context={"run": 0, "null": "drift"})]
    record.write_results("recovery", rows, {"a": np.eye(2)})
    record.write_claims("recovery", [CLAIM])


def test_claims_rows_and_arrays_are_there(tmp_path: Path) -> None:
    made(tmp_path / "run")
    run = loclin.open(tmp_path / "run")
    assert run.entries == ("recovery",)
    assert run.claims.loc[0, ["study", "id", "verdict"]].tolist() == [
        "recovery",
        CLAIM.id,
        CLAIM.verdict,
    ]
    row = run.rows().loc[0]
    assert (row["value"], row["null"], row["null_in_context"], row["run"]) == (0.5, 0.1, "drift", 0)
    assert np.array_equal(run.arrays("recovery")["a"], np.eye(2))
    assert repr(run).endswith("recovery)")


def test_a_notebook_shows_claims_and_a_figure_of_every_entry(tmp_path: Path) -> None:
    made(tmp_path / "run")
    run = loclin.open(tmp_path / "run")
    assert CLAIM.id in run._repr_html_()
    assert "<img" not in run._repr_html_()
    figure = tmp_path / "run" / "figures" / "recovery" / "drift.svg"
    figure.parent.mkdir(parents=True)
    figure.write_text("<svg/>")
    assert run.figures("recovery") == (figure,)
    assert base64.b64encode(b"<svg/>").decode() in run._repr_html_()


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LoclinError, match=r"expected a run folder with a run\.json"):
        loclin.open(tmp_path)
    made(tmp_path / "run")
    with pytest.raises(LoclinError, match="choose among recovery"):
        loclin.open(tmp_path / "run").arrays("spectrum")
