"""Searches that end, once for all tests: from the command line to the record."""

import copy
import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from loclin.cli import main
from loclin.models import Problem
from loclin.parameters import ParameterSpace

TINY = (
    *("--data", "sequences-small", "--task", "swap", "--n", "12", "--sigma", "5e-3", "3e-2"),
    *("--select", "24", "--validate", "16", "--test", "32", "--k", "1", "3", "--probes", "2"),
    *("--workers", "1", "--candidate-group", "4"),
)
ENTRY = "search-model-sequences-small"
GAIN = ("--target-gain", "0.001")


@pytest.fixture(scope="session")
def model(trained: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model off its minimum, as a folder: there is something to find."""
    place = tmp_path_factory.mktemp("search") / "model"
    moved = copy.deepcopy(trained.model)
    space = ParameterSpace(moved)
    space.add(space.noise(seed=4), scale=0.06)
    moved.save_pretrained(str(place))
    trained.tokenizer.save_pretrained(str(place))
    return place


def command(model: Path, out: Path, *more: str) -> list[str]:
    return ["search", "--model", str(model), *TINY, "--out", str(out), *more]


def search(model: Path, out: Path, *more: str) -> str:
    """What the command prints."""
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "140")
        main(command(model, out, *more))
    return printed.getvalue()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("loclin: ")
    assert error.count("\n") == 1
    return error


@pytest.fixture(scope="session")
def finished(model: Path) -> tuple[Path, str]:
    out = model.parent / "run"
    return out, search(model, out, *GAIN)


@pytest.fixture(scope="session")
def twice(model: Path) -> tuple[Path, str]:
    """Two searches over a new adapter's factors, in antithetic pairs, without a forecast."""
    out = model.parent / "twice"
    lora = ("--space", "lora", "--rank", "2", "--antithetic", "--sigma", "0.05", "--n", "8")
    return out, search(model, out, *lora, "--seeds", "2", "--no-forecast")
