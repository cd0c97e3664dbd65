"""A run folder: what was asked, measured and decided. Writes are atomic; parts survive an
interruption.

```
runs/<name>/
  run.json                     settings of every study; versions, device, timings of every session
  claims.json                  the verdicts of all studies
  <entry>/results.json         tidy rows (docs/record.md)
  <entry>/arrays.safetensors   arrays by key
  <entry>/parts/               one independent run each; a resumed command does not do it again
  <entry>/parts/<run>/         pieces of a run that has not ended (run/pieces.py)
```
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.numpy
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from loclin.errors import LoclinError
from loclin.run.rows import Claim, Part, Row

FORMAT = 2  # of the record; raised when a reader of older records would be wrong
LOCK = ".lock"
#: What a field of a row or a claim is in JSON, by its annotation; a bool is no number.
TYPES: dict[str, set[type]] = {
    "str": {str}, "int": {int}, "float | None": {float, int, type(None)},
    "Mapping[str, Any]": {dict},
}  # fmt: skip
T = TypeVar("T")
EMPTY = {LOCK, "run.json", "report.html", "report.md"}  # what a command leaves that did nothing


class Record:
    """Reads and writes one run folder.

    Args:
        folder: made if it is not there.
        option: of the command that names the folder, for messages.

    Raises:
        LoclinError: the path is a file, or a folder that holds something else.
    """

    def __init__(self, folder: Path, *, option: str = "--out") -> None:
        self.folder, self.option = folder, option
        if folder.exists() and not folder.is_dir():
            raise LoclinError(
                f"expected a folder for the run, found the file {folder}: choose another {option}"
            )
        others = folder.is_dir() and any(p.name not in EMPTY for p in folder.iterdir())
        if others and not (folder / "run.json").exists():
            raise LoclinError(
                f"expected an empty folder or an earlier run, found other files in {folder}: "
                f"choose another {option}"
            )

    @contextmanager
    def working(self) -> Iterator[None]:
        """This folder for one process alone; removed again where nothing came of it.

        Raises:
            LoclinError: another process works there.
        """
        lock = FileLock(self.folder / LOCK)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise LoclinError(
                f"expected {self.folder} for this command alone, found another process working "
                f"there: wait for it, or choose another {self.option}"
            ) from error
        except OSError as error:
            raise self._unwritable(self.folder, error) from error
        try:
            yield
        finally:
            lock.release()
            if {p.name for p in self.folder.iterdir()} <= EMPTY:
                shutil.rmtree(self.folder, ignore_errors=True)

    def open_study(
        self, study: str, settings: Mapping[str, Any], *, device: str, kind: str | None = None
    ) -> None:
        """Enter a study's settings, or check that they are those already there; start a session.

        Settings with which nothing was ever finished are replaced.

        Args:
            study: its entry in this record.
            settings: those that decide it.
            device: what it runs on, in words.
            kind: which study it is; a record may hold one on several models.

        Raises:
            LoclinError: the folder holds this entry with other settings.
        """
        run = self.run()
        asked = {"study": kind or study, **_plain(settings)}
        held = run["studies"].get(study)
        if held is not None and held != asked and any((self.folder / study).rglob("*.json")):
            name = next(k for k in {**held, **asked} if held.get(k, "") != asked.get(k, ""))
            raise LoclinError(
                f"{self.folder} belongs to another configuration of {study} "
                f"({name} is {held.get(name)!r} there, {asked.get(name)!r} here): choose another "
                f"{self.option} or the same settings"
            )
        run["studies"][study] = asked
        started = {"study": study, "started": _now(), "device": device, "commit": _commit()}
        run["sessions"].append(started | _versions())
        self._write_json("run.json", run)

    def close_study(self, study: str, seconds: float, notes: Sequence[str] = ()) -> None:
        """Note how long the session and each run took, and what the study says of its data."""
        run, files = self.run(), sorted(self._parts(study).glob("*.json"))
        parts = {p.stem: json.loads(p.read_text())["seconds"] for p in files}
        ended = {"ended": _now(), "seconds": round(seconds, 1), "part_seconds": parts}
        run["sessions"][-1] |= ended
        run["notes"][study] = list(notes)
        self._write_json("run.json", run)

    def run(self) -> dict[str, Any]:
        """run.json, or an empty one.

        Raises:
            LoclinError: it cannot be read, or is of a newer format.
        """
        path = self.folder / "run.json"
        if not path.exists():
            name = self.folder.resolve().name
            return {"format": FORMAT, "name": name, "studies": {}, "notes": {}, "sessions": []}
        run: dict[str, Any] = self._read_json("run.json", dict)
        if run.get("format") != FORMAT:
            raise LoclinError(
                f"expected a record of format {FORMAT} in {path}, found {run.get('format')}: "
                "read it with the loclin that wrote it, or run again into another --out"
            )
        kinds = {"name": str, "studies": dict, "notes": dict, "sessions": list}
        entries = [*self._fields(run, kinds, "run.json")["studies"].values(), *run["sessions"]]
        if not all(isinstance(entry, dict) for entry in entries):
            raise self._unreadable("run.json", "an entry that is no object")
        return run

    def part(self, study: str, name: str) -> Part | None:
        """A finished part, or None. A part is finished when its JSON file exists; its arrays were
        written before.
        """
        path = self._parts(study) / f"{name}.json"
        if not path.exists():
            return None
        where = str(path.relative_to(self.folder))
        data = self._read_json(where, dict)
        self._fields(data, {"rows": list, "seconds": (int, float), "notes": list}, where)
        arrays = self._read_arrays(path.with_suffix(".safetensors"))
        rows = [self._made(Row, r, where) for r in data["rows"]]
        return Part(rows=rows, arrays=arrays, seconds=data["seconds"], notes=data["notes"])

    def ended(self, study: str, run: int) -> bool:
        """Whether a run's part is there."""
        return (self._parts(study) / f"{part_name(run)}.json").exists()

    def write_part(self, study: str, name: str, part: Part) -> None:
        """Keep a finished part: arrays first, then the JSON file that says they are whole."""
        self._write_arrays(f"{study}/parts/{name}.safetensors", part.arrays)
        rows = [dataclasses.asdict(r) for r in part.rows]
        content = {"rows": rows, "seconds": round(part.seconds, 1), "notes": list(part.notes)}
        self._write_json(f"{study}/parts/{name}.json", content)
        shutil.rmtree(self._parts(study) / name, ignore_errors=True)  # its pieces

    def rows_so_far(self, study: str) -> list[Row]:
        """The rows of every finished run, and of the finished pieces of others."""
        folder = self._parts(study)
        runs, pieces = (sorted(folder.glob(pattern)) for pattern in ("*.json", "*/*.json"))
        ended = [path.with_suffix("") for path in runs]
        files = [*runs, *(path for path in pieces if path.parent not in ended)]
        rows: list[Row] = []
        for name in (str(path.relative_to(self.folder)) for path in files):
            part = self._fields(self._read_json(name, dict), {"rows": list}, name)
            rows += [self._made(Row, row, name) for row in part["rows"]]
        return rows

    def write_results(
        self, study: str, rows: Sequence[Row], arrays: Mapping[str, np.ndarray]
    ) -> None:
        """Write a study's tidy rows and arrays."""
        self._write_arrays(f"{study}/arrays.safetensors", arrays)
        self._write_json(f"{study}/results.json", [dataclasses.asdict(r) for r in rows])

    def finished(self, study: str) -> bool:
        """Whether a study's results are there."""
        return (self.folder / study / "results.json").is_file()

    def results(self, study: str) -> list[Row]:
        """A study's rows.

        Raises:
            LoclinError: the study has no results yet, or they cannot be read.
        """
        if not self.finished(study):
            raise LoclinError(
                f"expected results of {study} in {self.folder}, found none: let it end first"
            )
        where = f"{study}/results.json"
        return [self._made(Row, r, where) for r in self._read_json(where, list)]

    def arrays(self, study: str) -> dict[str, np.ndarray]:
        """A study's arrays by key."""
        return self._read_arrays(self.folder / study / "arrays.safetensors")

    def write_claims(self, study: str, claims: Sequence[Claim]) -> None:
        """Replace this study's claims, leaving those of other studies."""
        kept = [c for c in self._claim_entries() if c["study"] != study]
        self._write_json(
            "claims.json", [*kept, *({"study": study, **dataclasses.asdict(c)} for c in claims)]
        )

    def claims(self) -> list[tuple[str, Claim]]:
        """Every decided claim with the study that decided it."""
        every = self._claim_entries()
        return [(c.pop("study"), self._made(Claim, c, "claims.json")) for c in every]

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file of the record, such as a figure or the report."""
        return self._write(name, text.encode())

    def _claim_entries(self) -> list[dict[str, Any]]:
        there = (self.folder / "claims.json").exists()
        every = self._read_json("claims.json", list) if there else []
        return [self._fields(c, {"study": str}, "claims.json") for c in every]

    def _parts(self, study: str) -> Path:
        return self.folder / study / "parts"

    def _read_json(self, name: str, kind: type) -> Any:
        try:
            text = (self.folder / name).read_text(encoding="utf-8")
            content = json.loads(text, parse_constant=_no_number)
        except (OSError, ValueError, RecursionError) as error:
            raise self._unreadable(name, error) from error
        if not isinstance(content, kind):
            raise self._unreadable(name, f"a {type(content).__name__}")
        return content

    def _fields(self, content: Any, kinds: Mapping[str, Any], name: str) -> dict[str, Any]:
        """The object, whose fields are of these kinds."""
        held = content if isinstance(content, dict) else {}
        wrong = next((k for k, kind in kinds.items() if not isinstance(held.get(k), kind)), None)
        if wrong is not None:
            raise self._unreadable(name, f"an entry without a right {wrong!r}")
        return held

    def _made(self, kind: type[T], content: Any, name: str) -> T:
        """A row or a claim of the object that was written for it."""
        try:
            made = kind(**content)
        except TypeError as error:
            raise self._unreadable(name, error) from error
        for held in dataclasses.fields(kind):  # type: ignore[arg-type]
            value = getattr(made, held.name)
            if type(value) not in TYPES[str(held.type)]:
                raise self._unreadable(name, f"{value!r} in {held.name!r}")
        return made

    def _unreadable(self, name: str, found: object) -> LoclinError:
        return LoclinError(
            f"expected JSON in {self.folder / name} as loclin writes it, found "
            f"{str(found)[:200]}: delete it and run again"
        )

    def _read_arrays(self, path: Path) -> dict[str, np.ndarray]:
        try:
            return dict(safetensors.numpy.load_file(path))
        except (OSError, SafetensorError) as error:
            raise LoclinError(
                f"expected arrays in {path}, found {error}: delete it and run again"
            ) from error

    def _write_json(self, name: str, content: Any) -> None:
        text = json.dumps(_plain(content), ensure_ascii=False, indent=1, allow_nan=False)
        self._write(name, text.encode())

    def _write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        plain = {k: np.ascontiguousarray(arrays[k]) for k in sorted(arrays)}
        self._write(name, safetensors.numpy.save(plain))

    def _write(self, name: str, content: bytes) -> Path:
        """Temporary file, flushed to disk, then renamed: a reader sees the old file or the new one,
        never half of it.
        """
        path = self.folder / name
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with scratch.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        except OSError as error:
            scratch.unlink(missing_ok=True)
            raise self._unwritable(path, error) from error
        return path

    def _unwritable(self, path: Path, error: OSError) -> LoclinError:
        return LoclinError(
            f"expected to write {path}, found {error.strerror or error}: make room or choose "
            f"another {self.option}; everything finished so far is kept"
        )


def _no_number(name: str) -> None:
    raise ValueError(f"{name}, which no record holds")


def part_name(run: int, stage: str = "run") -> str:
    """Name of a run's part, or of what a later stage adds to it."""
    return f"{stage}-{run:03d}"


def _plain(value: Any) -> Any:
    """JSON values only: dataclasses and tuples opened, numbers that are not finite as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, Any]:
    names = ("loclin", "torch", "transformers", "peft", "numpy", "scipy")
    return {
        "versions": {"python": platform.python_version(), **{n: metadata.version(n) for n in names}}
    }


def _commit() -> str:
    """Commit of the loclin checkout that runs, "" for an installed package."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # no git on this machine
        return ""
    return answer.stdout.strip()
