"""A study of constant numbers, for worker processes, which import it by name."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loclin.errors import LoclinError
from loclin.run.rows import Claim, Part, Row
from loclin.run.runner import Session, Study

STUDY = Study(
    summary="", settings=__name__ + ":Constant", measure=__name__, page=__name__, claims=__name__
)
CLAIM = Claim(
    id="c",
    statement="s",
    setting="m",
    paper="1",
    measured="x",
    value=0.5,
    low=None,
    high=None,
    n=1,
    null="0",
    p=None,
    p_holm=None,
    rule="r",
    verdict="inconclusive",
)


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Each run leaves a file named by its number in `folder`; `deadly` kills its worker, `fails`
    cannot go on.
    """

    folder: Path
    entry: str = "constant"
    kind: str = "constant"
    runs: int = 2
    in_process: bool = True
    kept: bool = True
    stage: str = "run"
    widen: bool = False
    models: int = 1
    scales: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    ray: str | None = None
    value: float = 0.5
    fails: int = -1
    deadly: int = -1
    device: str = "cpu"

    def where(self) -> str:
        if self.device != "cpu":
            raise LoclinError("expected a device among cpu, found cuda")
        return "cpu"

    def fingerprint(self) -> dict[str, Any]:
        return {"value": self.value}


def measure(settings: Constant, run: int, session: Session) -> Part:
    session.progress("working", 0.5)
    if run == settings.deadly:
        time.sleep(0.5)  # run 0 is with the runner by then
        os.kill(os.getpid(), signal.SIGKILL)
    if run == settings.fails:
        raise LoclinError("expected a score, found none: try again")
    with (settings.folder / f"run {run}").open("a") as file:
        file.write("done\n")
    rows = [Row(quantity="q", value=settings.value, context={"run": run})]
    return Part(rows=rows, arrays={f"a/{run}": np.eye(2)}, notes=("of all", f"of run {run}"))


def decide(settings: Constant, rows: Sequence[Row]) -> list[Claim]:
    assert all("run" in row.context for row in rows)
    return [CLAIM]


def conclude(settings: Constant, rows: Sequence[Row]) -> list[Row]:
    return [Row(quantity="recommended", value=float(len(rows)))]


def times_done(settings: Constant) -> dict[str, int]:
    """How often every run was done."""
    files = settings.folder.glob("run *")
    return {path.name: len(path.read_text().splitlines()) for path in files}
