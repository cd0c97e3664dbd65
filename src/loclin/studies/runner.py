"""Runs a study: its independent runs side by side, each kept as it ends; then the summary and the verdicts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from loclin.errors import LoclinError
from loclin.jobs import side_by_side
from loclin.record import Claim, Part, Record, Row
from loclin.studies import STUDIES
from loclin.studies.table import summaries

#: Settings that say where and how fast, not what: two runs that differ in these alone give the same record.
NOT_WHAT = ("out", "workers", "profile")


def run_study(study: str, config: Any, *, out: Path) -> list[Claim]:
    """Run what is not done yet of a study into a run folder, and decide its claims.

    The study's name in the record is `config.entry`, which tells apart studies on several models.

    Args:
        study: a name in `STUDIES`.
        config: its `Config`.
        out: the run folder; one that was interrupted goes on where it was.

    Raises:
        LoclinError: bad settings, a folder of another configuration, a run that cannot go on. Finished runs are kept.
    """
    if study not in STUDIES:
        raise LoclinError(f"unknown study {study!r}: expected one of {', '.join(STUDIES)}")
    config = config.checked()
    experiment = import_module(f"loclin.studies.{study}.experiment")
    device = experiment.device(config)
    record, began, entry = Record(out), time.perf_counter(), config.entry
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_WHAT}
    record.open_study(entry, settings, device=config.device_map or device, kind=study)
    names = [f"run-{run:03d}" for run in range(config.seeds)]
    missing = [run for run, name in enumerate(names) if record.part(entry, name) is None]
    for run, part in side_by_side(
        f"loclin.studies.{study}.experiment",
        config,
        missing,
        workers=config.workers if device == "cpu" and not config.device_map else 1,
        title=entry,
    ):
        record.write_part(entry, names[run], part)
    parts = [part for part in (record.part(entry, name) for name in names) if part is not None]
    claims = _finish(record, study, config, parts)
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    print(*parts[0].notes, sep="\n", flush=True)
    record.close_study(entry, time.perf_counter() - began, notes)
    return claims


def _finish(record: Record, study: str, config: Any, parts: Sequence[Part]) -> list[Claim]:
    rows: list[Row] = [row for part in parts for row in part.rows]
    record.write_results(config.entry, rows + summaries(rows), {k: v for part in parts for k, v in part.arrays.items()})
    claims: list[Claim] = import_module(f"loclin.studies.{study}.claims").decide(config, rows)
    record.write_claims(config.entry, claims)
    return claims
