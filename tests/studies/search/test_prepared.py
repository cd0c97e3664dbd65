"""What is known before the first candidate, measured once."""

import json
from pathlib import Path

import pytest

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.progress import silent
from loclin.run.record import Record
from loclin.search.candidate import Candidate, candidates
from loclin.search.scorer import Scorer
from loclin.studies.search import prepared as module
from loclin.studies.search.prepared import Prepared, Splits, kept, prepared
from loclin.studies.search.settings import SearchSettings

SETTINGS = SearchSettings(model="sequences-small", sigma=(0.01, 0.02), probes=2)


@pytest.fixture
def splits(trained: Problem) -> Splits:
    every = trained.examples["test"]["swap"]
    return {"select": every[:8], "validate": every[8:12], "test": every[12:16]}


@pytest.fixture
def scorer(trained: Problem, splits: Splits) -> Scorer:
    return Scorer(trained, ParameterSpace(trained.model), splits["select"])


def made(folder: Path, scorer: Scorer, splits: Splits) -> Prepared:
    return prepared(Record(folder), "s/prepared.json", scorer, splits, SETTINGS, silent)


def test_it_is_measured_once_and_read_back_as_it_was(
    scorer: Scorer, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(tmp_path, scorer, splits)
    assert (first.loss, first.score) == scorer.own
    assert first.forecast is not None
    assert first.forecast.loss.value == pytest.approx(first.loss)
    (shown,) = candidates(1, [0.02], seed=0)
    assert first.realised["0.02"] == scorer.perturbed.realised(shown)
    assert isinstance(shown, Candidate)
    (own, *others) = first.rows()
    assert own.value == first.score
    assert len(others) == 2 * len(first.sizes)
    (tmp_path / "run.json").write_text("{}")
    monkeypatch.setattr(module, "_measured", None)
    assert made(tmp_path, scorer, splits) == first


def test_other_data_another_model_and_a_broken_file_are_refused(
    trained: Problem, scorer: Scorer, splits: Splits, tmp_path: Path
) -> None:
    made(tmp_path, scorer, splits)
    (tmp_path / "run.json").write_text("{}")
    other = {**splits, "validate": splits["validate"][:3]}
    with pytest.raises(LoclinError, match="expected the validate examples that this search began"):
        made(tmp_path, scorer, other)
    part = Scorer(trained, ParameterSpace(trained.model, "*attn*"), splits["select"])
    with pytest.raises(LoclinError, match=r"found others \(searched weights is .*: give the same"):
        made(tmp_path, part, splits)
    path = tmp_path / "s" / "prepared.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in held.items() if k != "sizes"}))
    with pytest.raises(LoclinError, match=r"what an earlier session measured in .*delete it and"):
        made(tmp_path, scorer, splits)
    path.write_text("{")
    with pytest.raises(LoclinError, match=r"expected JSON in .*: restore it, or search into"):
        made(tmp_path, scorer, splits)


def test_a_file_is_made_once(tmp_path: Path) -> None:
    record = Record(tmp_path)
    assert kept(record, "a.json", lambda: {"σ": 0.1})[0] == {"σ": 0.1}
    assert kept(record, "a.json", dict) == ({"σ": 0.1}, tmp_path / "a.json")
