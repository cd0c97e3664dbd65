"""Task data from where it is kept: JSON Lines, JSON, CSV and TSV files, folders of them, and
Hugging Face data sets.

What a record may look like is in `schemas`, what is dropped in `data.cleaned`; docs/data.md shows
both.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loclin.errors import LoclinError
from loclin.options import check_hub_data, data_files
from loclin.tasks.data import TaskData, merged
from loclin.tasks.hub import hub_or_cache
from loclin.tasks.records import Record, listed, shown
from loclin.tasks.schemas import task_data

#: What files that are no text begin with, and what they are.
KINDS = {
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive or spreadsheet",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
SPLITS = ("train", "test", "validation", "valid", "dev")  # how the hub names files of one data set


def read_file(
    path: str | Path, *, template: str | None = None, columns: Mapping[str, str] | None = None
) -> TaskData:
    """Read a file of records in any of the schemas: JSON Lines, one JSON array, or a CSV or TSV
    table with a row of names (files that end in .csv or .tsv).

    Args:
        path: the file. Its name without the ending is the task of records that name none.
        template: the prompt, made from the record's own fields (`parse_template`).
        columns: for fields of a schema, their name in this file (`renamed`).

    Raises:
        LoclinError: no such file, a folder, not UTF-8, empty, broken JSON (with its line), a record
            that is no object, a row of another length than the names, or whatever `task_data`
            refuses.
    """
    path = Path(path)
    records = (_table if path.suffix.lower() in (".csv", ".tsv") else _records)(path)
    return task_data(records, source=path.name, task=path.stem, template=template, columns=columns)


def read_folder(
    path: str | Path, *, template: str | None = None, columns: Mapping[str, str] | None = None
) -> TaskData:
    """Read the files of a folder, each a task; or, where they are named as the splits of one data
    set (train.jsonl), as `read_hub` does.

    Raises:
        LoclinError: one task in two files, or what `read_file` or `read_hub` refuses.
    """
    files = data_files(path)
    if not files or any(re.split(r"[-_.]", p.stem)[0] in SPLITS for p in files):
        return read_hub(str(path), template=template, columns=columns)
    data = merged([read_file(p, template=template, columns=columns) for p in files])
    return replace(data, source=str(path))


def _records(path: Path) -> Iterator[Record]:
    text = _text(path)
    if text.lstrip().startswith("["):
        records = enumerate(_parsed(text, path, 1), start=1)
        values = ((f"{path} record {i}", value) for i, value in records)
    else:  # not splitlines: a string in JSON may hold U+2028 and its like
        lines = ((i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip())
        values = ((f"{path} line {i}", _parsed(line, path, i)) for i, line in lines)
    for where, value in values:
        if not isinstance(value, dict):
            raise LoclinError(
                f"expected a JSON object, found {shown(value)} in {where}: write every record as "
                f"{{...}} on a line of its own"
            )
        yield Record(where=where, fields=value)


def _table(path: Path) -> Iterator[Record]:
    text = _text(path)
    first, _, _ = text.lstrip().partition("\n")
    # the separator is the one that the first line has most
    mark = max("\t" if path.suffix.lower() == ".tsv" else ",;\t", key=first.count)
    rows = csv.reader(io.StringIO(text), delimiter=mark, strict=True)
    try:
        full = (row for row in rows if "".join(row).strip())
        names = [name.strip() for name in next(full, [])]
        if len(set(names)) < len(names):
            raise LoclinError(
                f"expected columns of different names, found {listed(names)} in {path}: rename one"
            )
        for row in full:
            if len(row) != len(names):
                raise LoclinError(
                    f"expected {len(names)} cells as in the first line, found {len(row)} in {path} "
                    f"line {rows.line_num}: put cells that hold {mark!r} in quotes"
                )
            where = f"{path} line {rows.line_num}"
            yield Record(where=where, fields=dict(zip(names, row, strict=True)))
    except csv.Error as error:
        raise LoclinError(
            f"expected rows of a table, found {error} in {path} line {rows.line_num}: mend the "
            "quotes"
        ) from None


def _text(path: Path) -> str:
    if not path.exists():
        raise LoclinError(f"expected a file of task data, found nothing at {path}: check the path")
    if path.is_dir():
        raise LoclinError(
            f"expected a file of task data, found the folder {path}: name a file in it"
        )
    content = path.read_bytes()
    kind = next((kind for start, kind in KINDS.items() if content.startswith(start)), None)
    if kind is not None:
        raise LoclinError(
            f"expected JSON Lines, JSON or CSV in UTF-8, found {kind} at {path}: save it as one of "
            "these"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LoclinError(
            f"expected UTF-8 text, found byte {error.object[error.start]:#04x} at position "
            f"{error.start} of {path}: save the file as UTF-8"
        ) from None
    if not text.strip():
        raise LoclinError(
            f"expected at least one record, found none in {path}: fill it or choose other data"
        )
    return text


def _parsed(text: str, path: Path, line: int) -> Any:
    """The value of JSON text that begins on a line of the file."""
    remedy = "mend or remove it"
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what = f"broken JSON ({error.msg})"
        if line == 1 and error.pos == 0 and re.search(r"[\t,;]", text):
            what, remedy = "what looks like a table", f"name it {path.stem}.csv or {path.stem}.tsv"
        elif line == 1 and text.strip() == "{":
            what, remedy = "an object over several lines", "write a list of objects, or one a line"
        line += error.lineno - 1
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets nested as deep
        what = "JSON that is nested too deeply or holds too long a number"
    raise LoclinError(
        f"expected one JSON object a line, or one array of them, found {what} in {path} line "
        f"{line}: {remedy}"
    )


def read_hub(
    name: str,
    *,
    split: str = "train",
    template: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> TaskData:
    """Read a Hugging Face data set ("google/boolq") or a folder of data files in any of the
    schemas.

    Where the hub cannot be reached, what was fetched before is used. Data sets that need code of
    their own are refused.

    Raises:
        LoclinError: `datasets` is not installed, the data set or split cannot be had, or whatever
            `task_data` refuses.
    """
    with hub_or_cache(name):
        rows = _hub_rows(name, split)
    records = (Record(where=f"{name} row {i}", fields=row) for i, row in enumerate(rows, start=1))
    return task_data(
        records,
        source=f"{name} ({split})",
        task=Path(name).resolve().name,
        template=template,
        columns=columns,
    )


def _hub_rows(name: str, split: str) -> Iterable[dict[str, Any]]:
    try:
        import datasets
        from huggingface_hub import snapshot_download
    except ImportError:
        raise LoclinError(
            f"expected the package datasets for the data set {name!r}, found none: pip install "
            "'loclin[hub]'"
        ) from None
    refusals = (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError)
    if Path(name).is_dir():
        try:
            return _load(str(Path(name).resolve()), split)
        except refusals as error:
            raise LoclinError(
                f"expected a folder of data files with a split {split!r}, found {_reason(error)} "
                f"in {name}: mend the files, name the one of the split {split}.jsonl, or ask for "
                "another split"
            ) from None
    check_hub_data(name)
    try:
        return _load(name, split)
    except refusals as error:
        reason = _reason(error)
    try:  # `hf download` fills a cache that load_dataset does not look into
        return _load(snapshot_download(name, repo_type="dataset", local_files_only=True), split)
    except refusals:
        raise LoclinError(
            f"expected the data set {name!r} with a split {split!r} on the Hugging Face hub or in "
            f"its cache, found {reason}: check the name, or fetch it where there is a network: hf "
            f"download --repo-type dataset {name}"
        ) from None


def _load(path: str, split: str) -> Iterable[dict[str, Any]]:
    """Rows of one split, without the bars and log lines of `datasets`."""
    import datasets
    from datasets.utils import are_progress_bars_disabled, logging

    level, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(path, split=split)
        return rows
    finally:
        logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def _reason(error: Exception) -> str:
    """The first line of somebody else's error, or of what it came from where that says more."""
    generated = type(error).__name__ == "DatasetGenerationError"
    cause = (error.__cause__ or error) if generated else error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__} ({lines[0].rstrip('.') if lines else 'no message'})"
