"""The command of a small search, and how it is called."""

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from loclin.cli import main

TINY = (
    *("--data", "sequences-small", "--task", "swap", "--n", "12", "--sigma", "5e-3", "3e-2"),
    *("--select", "24", "--validate", "16", "--test", "32", "--k", "1", "3", "--probes", "2"),
    *("--workers", "1", "--candidate-group", "4"),
)
ENTRY = "search-model-sequences-small"
GAIN = ("--target-gain", "0.001")


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
