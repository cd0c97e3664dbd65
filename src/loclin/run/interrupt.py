"""Ctrl-C: noted when it comes, raised where nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interruption:
    """A Ctrl-C: noted when it comes, raised where `check` is called."""

    noted = False

    def check(self) -> None:
        """Stop here if a Ctrl-C came.

        Raises:
            KeyboardInterrupt: it did.
        """
        if self.noted:
            self.noted = False
            raise KeyboardInterrupt


@contextmanager
def interruptions() -> Iterator[Interruption]:
    """Note a first Ctrl-C, for `check` to raise; one not checked for comes at the end, a second one
    at once.

    Raised wherever it arrives, it would cut a write in two, or be lost in a finaliser.
    """
    interruption, before = Interruption(), signal.getsignal(signal.SIGINT)
    # Only the main thread may set handlers. Where Ctrl-C is ignored, as in what a script starts in
    # the background, it stays so.
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield interruption
        return

    def note(*_: Any) -> None:
        interruption.noted = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)
        if interruption.noted:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def held_back() -> Iterator[None]:
    """Ctrl-C waits meanwhile, and never reaches processes started meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
