"""What a command shows while it works: one bar with the time left, or plain lines in a file."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

EVERY = 30.0  # seconds between two plain lines


class Display:
    """The progress of a whole command, over all its studies and their runs.

    On a terminal a bar with the time left and a line for every run at work. Elsewhere a plain line
    with a time stamp at each new stage, and every 30 seconds.

    Args:
        total: independent runs of all studies together.
        expected: seconds that they will take, where that is known beforehand.
    """

    def __init__(self, total: int, *, expected: float = 0.0) -> None:
        self._expected, self._closed = expected, threading.Event()
        self._total, self._finished, self._began = total, 0.0, time.monotonic()
        self._fresh = 0.0  # finished in this session: what the time left is estimated from
        self._shares: dict[int, float] = {}
        self._stages: dict[int, str] = {}
        self._notes: set[str] = set()
        self._entry, self._printed = "", 0.0
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[stage]}"),
            transient=True,
        )
        self._whole = self._bars.add_task("", total=float(total), stage="")
        self._lines: dict[int, Any] = {}

    def __enter__(self) -> Display:
        if self._terminal:
            self._bars.start()
        else:
            threading.Thread(target=self._remind, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        if self._terminal:  # elsewhere it would print an empty line
            self._bars.stop()

    @property
    def console(self) -> Console:
        """Where to print beside the bar."""
        return self._bars.console

    @property
    def _terminal(self) -> bool:
        return self.console.is_terminal

    def open(self, entry: str, *, kept: int) -> None:
        """A study begins, of which some runs were kept by an earlier session."""
        for run in list(self._stages):  # of a study that could not go on
            self._forget(run)
        self._entry, self._finished = entry, self._finished + kept
        self._show(None)

    def more(self, runs: int) -> None:
        """There are more runs than was thought."""
        self._total += runs
        self._bars.update(self._whole, total=float(self._total))

    def update(self, run: int, stage: str, share: float) -> None:
        """A run is in a stage, and a share of it is done."""
        changed = self._stages.get(run) != stage
        self._stages[run], self._shares[run] = stage, share
        if self._terminal:
            if run not in self._lines:
                self._lines[run] = self._bars.add_task(f"  run {run}", total=1.0, stage=stage)
            self._bars.update(self._lines[run], completed=share, stage=stage)
        self._show(run, changed=changed)

    def close(self, run: int) -> None:
        """A run has ended."""
        self._finished, self._fresh = self._finished + 1, self._fresh + 1
        self._forget(run)
        self._show(None, changed=True)

    def _forget(self, run: int) -> None:
        self._stages.pop(run, None)
        self._shares.pop(run, None)
        if run in self._lines:
            self._bars.remove_task(self._lines.pop(run))

    def note(self, *notes: str) -> None:
        """Print what a user should know, each sentence once, above the bar and whole."""
        for note in distinct(notes):
            if note not in self._notes:
                self.console.print(Text(note), soft_wrap=True)
        self._notes.update(notes)

    def _show(self, run: int | None, *, changed: bool = True) -> None:
        summary = f"{self._finished:.0f} of {self._total} runs{self._left()}"
        if self._terminal:
            self._bars.update(
                self._whole, description=self._entry, completed=self._finished, stage=summary
            )
        elif changed or time.monotonic() - self._printed > EVERY:
            self._printed = time.monotonic()
            doing = ""
            if run is not None:
                doing = f", run {run}: {self._stages[run]} {self._shares[run]:.0%}"
            stamp = time.strftime("%H:%M:%S")
            self.console.print(Text(f"[{stamp}] {self._entry}: {summary}{doing}"), soft_wrap=True)

    def _remind(self) -> None:
        """A line every so often, however long a stage takes."""
        while not self._closed.wait(max(EVERY / 10, 1.0)):
            if self._entry and time.monotonic() - self._printed > EVERY:
                self._show(next(iter(self._stages), None))

    def _left(self) -> str:
        """The time left: from the runs that ended in this session, before the first one from what
        was expected.
        """
        passed = time.monotonic() - self._began
        if self._finished >= self._total or not (self._fresh or self._expected > passed):
            return ""
        seconds = self._expected - passed
        if self._fresh:
            seconds = passed / self._fresh * (self._total - self._finished)
        left = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
        return f", about {left} left"


def distinct(notes: Sequence[str]) -> list[str]:
    """Every sentence once, in order."""
    return list(dict.fromkeys(notes))
