"""Every candidate's outcome, kept as it comes: one file that is appended to, survives a kill, and
belongs to one search.

```
{"format": 1, "search": <hash of the settings>, "settings": {...}}
{"index": 0, "seed": ..., "sigma": 0.001, "sign": 1, "loss": 1.93, "score": 0.25, ...}
...
```

Candidates stand in the order of their arrival; two ledgers are the same when they hold the same
lines.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Bool

from loclin.errors import LoclinError
from loclin.search.candidate import Candidate
from loclin.search.scoring import Outcome

FORMAT = 1  # raised when a reader of older ledgers would be wrong


class Ledger:
    """The ledger of one search, open for more of its outcomes inside `opened`.

    Attributes:
        note: what was repaired when it was opened, in a sentence; "" where nothing was.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings, self.note = path, settings, ""
        self._size = 0  # bytes of whole lines
        self._held: dict[int, Outcome] = {}
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self.note = (
                f"{path}: cut off an unfinished last line of {len(data) - len(whole)} bytes; its "
                "candidate is scored again"
            )
        if not whole:
            self._write(_header(settings).encode())
            return
        there, self._held = _parsed(path, whole)
        for name in [*settings, *there]:
            if there.get(name) != settings.get(name):
                raise LoclinError(
                    f"{path} belongs to another search ({name} is {there.get(name)!r} there, "
                    f"{settings.get(name)!r} here): choose another --out, or the same model, data "
                    "and settings"
                )
        self._size = len(whole)
        if self.note:
            self._write(b"")

    def outcomes(self) -> list[Outcome]:
        """All outcomes by index, whatever the order in which they came."""
        return [self._held[i] for i in sorted(self._held)]

    def append(self, outcomes: Iterable[Outcome]) -> None:
        """Keep outcomes: on disk when this ends, all of them or none. A candidate that is in it
        already stays as it is.

        Raises:
            LoclinError: a disk without room; what was there before stays whole.
        """
        every = {o.candidate.index: o for o in reversed(list(outcomes))}  # of two the first stands
        fresh = {i: o for i, o in reversed(every.items()) if i not in self._held}
        if fresh:
            self._write("".join(map(line, fresh.values())).encode())
            self._held |= fresh

    def _write(self, data: bytes) -> None:
        """Put data after the last whole line, on disk, or leave that line the last one."""
        try:
            fresh = not self.path.exists()
            with self.path.open("xb" if fresh else "r+b", buffering=0) as file:
                try:
                    file.truncate(self._size)
                    file.seek(self._size)
                    left = memoryview(data)
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
                except BaseException:  # a full disk, or a second Ctrl-C
                    file.truncate(self._size)
                    raise
            if fresh:
                _flush_folder(self.path.parent)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._size += len(data)


@contextmanager
def opened(path: Path, settings: Mapping[str, Any]) -> Iterator[Ledger]:
    """Begin a ledger, or go on with the one that is there; inside, no other process opens it.

    A last line that was cut short by a kill is cut off, and `note` says so.

    Args:
        path: of the file.
        settings: everything that decides the outcomes (hashes of model and data, noise, seed, σ,
            ...), as plain JSON values under names that a user reads; "examples" is how many are
            scored.

    Raises:
        LoclinError: a ledger of other settings (the first that differs is named) or of a newer
            format, a line in its middle that is no outcome, a file that cannot be written, a ledger
            that another process has open.
    """
    plain = json.loads(json.dumps(settings))
    if not isinstance(plain.get("examples"), int):  # else what is written is not read back
        raise LoclinError(
            f"expected the number of examples in a ledger's settings, found {sorted(plain)}: name "
            "it"
        )
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LoclinError(
            f"expected {path} for this search alone, found another process writing to it: wait for "
            "it, or choose another --out"
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield Ledger(path, plain)
    finally:
        lock.release()


def read(path: Path) -> tuple[dict[str, Any], list[Outcome]]:
    """The settings and the outcomes of a ledger, by index; the file is left as it is, an unfinished
    last line left out.

    Raises:
        LoclinError: no ledger there, or one that cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LoclinError(
            f"expected a ledger at {path}, found {error.strerror or error}: give the folder of a "
            "search"
        ) from error
    settings, held = _parsed(path, data[: data.rfind(b"\n") + 1])
    return settings, [held[i] for i in sorted(held)]


def line(outcome: Outcome) -> str:
    """What a ledger holds of one candidate: right answers as the hex digits of their packed bits, a
    loss that is not finite as null.

    >>> made = Candidate(index=2, seed=5, sigma=0.1)
    >>> line(Outcome(candidate=made, loss=1.5, right=np.array([True, False, True]))).split(", ")[6:]
    ['"right": "a0"', '"finite": true}\\n']
    """
    finite = math.isfinite(outcome.loss)
    entry = {
        **asdict(outcome.candidate),
        "loss": outcome.loss if finite else None,
        "score": outcome.score,
        "right": packed(outcome.right),
        "finite": finite,
    }
    return json.dumps(entry, allow_nan=False) + "\n"


def packed(right: Bool[np.ndarray, " n"]) -> str:
    """Right answers as the hex digits of their bits, the first one the highest."""
    return np.packbits(right).tobytes().hex()


def unpacked(text: str, count: int) -> Bool[np.ndarray, " count"]:
    """The same read back."""
    bits = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    return np.unpackbits(bits, count=count).astype(bool)


def _header(settings: Mapping[str, Any]) -> str:
    canonical = json.dumps(settings, sort_keys=True)
    search = hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
    header = {"format": FORMAT, "search": search, "settings": settings}
    return json.dumps(header, ensure_ascii=False) + "\n"


def _parsed(path: Path, whole: bytes) -> tuple[dict[str, Any], dict[int, Outcome]]:
    """Header and outcomes of whole lines; where an index comes twice, the first stands."""
    first, *rest = whole.splitlines() or [b""]
    try:
        header = json.loads(first)
        written, settings = header["format"], header["settings"]
        examples = int(settings["examples"])
    except (ValueError, KeyError, TypeError) as error:
        raise LoclinError(
            f"expected the header of a ledger in line 1 of {path}, found {_shown(first)}: choose "
            "another --out, or move the file away"
        ) from error
    if written != FORMAT:
        raise LoclinError(
            f"expected a ledger of format {FORMAT} in {path}, found {written}: read it with the "
            "loclin that wrote it, or choose another --out"
        )
    held: dict[int, Outcome] = {}
    for number, text in enumerate(rest, start=2):
        try:
            outcome = _outcome(text, examples)
        except (ValueError, KeyError, TypeError) as error:
            raise LoclinError(
                f"expected the outcome of a candidate in line {number} of {path}, found "
                f"{_shown(text)}: restore the file, or move it away and search again"
            ) from error
        held.setdefault(outcome.candidate.index, outcome)
    return settings, held


def _outcome(text: bytes, examples: int) -> Outcome:
    """Of one line, which has to be the very one that would be written."""
    entry = json.loads(text)
    right = unpacked(entry["right"], examples)
    named = {name: entry[name] for name in ("index", "seed", "sigma", "sign")}
    loss = float(entry["loss"]) if entry["finite"] else math.nan
    outcome = Outcome(candidate=Candidate(**named), loss=loss, right=right)
    if line(outcome).encode() != text + b"\n":
        raise ValueError("a line that says otherwise than it would be written")
    return outcome


def _shown(text: bytes) -> str:
    return repr(text[:60].decode(errors="replace")) + ("..." if len(text) > 60 else "")


def _unwritable(path: Path, error: OSError) -> LoclinError:
    return LoclinError(
        f"expected to write {path}, found {error.strerror or error}: make room or choose another "
        "--out; the candidates scored so far are kept"
    )


def _flush_folder(folder: Path) -> None:
    """A new file is on disk only when its folder is."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
