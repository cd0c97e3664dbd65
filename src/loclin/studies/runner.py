"""Runs a study: its independent runs side by side, each kept as it ends; then the summary and the
verdicts.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from loclin.errors import LoclinError
from loclin.jobs import interruptions, side_by_side
from loclin.record import Claim, Part, Record, Row
from loclin.studies import OWN, STUDIES
from loclin.studies.table import summaries

#: Settings that say where and how fast, not what: two runs that differ in these alone give the same
#: record.
NOT_WHAT = ("out", "workers", "profile")


def run_study(study: str, config: Any, *, out: Path) -> list[Claim]:
    """Run what is not done yet of a study into a run folder, and decide its claims.

    The study's name in the record is `config.entry`, which tells apart studies on several models.

    Args:
        study: a name in `STUDIES` or `OWN`.
        config: its `Config`.
        out: the run folder; one that was interrupted goes on where it was.

    Raises:
        LoclinError: bad settings, a folder of another configuration, a run that cannot go on.
            Finished runs are kept.
    """
    if study not in (*STUDIES, *OWN):
        raise LoclinError(f"unknown study {study!r}: expected one of {', '.join(STUDIES)}")
    config = config.checked()
    experiment = import_module(f"loclin.studies.{study}.experiment")
    device = experiment.device(config)
    record, began, entry = Record(out), time.perf_counter(), config.entry
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_WHAT}
    if study in OWN:
        settings |= experiment.fingerprint(config)
    record.open_study(entry, settings, device=config.device_map or device, kind=study)
    names = [f"run-{run:03d}" for run in range(config.seeds)]
    there = {
        run: part.notes
        for run, name in enumerate(names)
        if (part := record.part(entry, name)) is not None
    }
    told = _different(there.values())
    for note in told:
        print(note, flush=True)
    results = side_by_side(
        f"loclin.studies.{study}.experiment",
        config,
        [run for run in range(config.seeds) if run not in there],
        workers=config.workers if device == "cpu" and not config.device_map else 1,
        title=entry,
        finished=len(there),
        told=told,
    )
    with closing(results):
        for run, part in results:
            record.write_part(entry, names[run], part)
    parts = [part for part in (record.part(entry, name) for name in names) if part is not None]
    return _finish(record, study, config, parts, began)


def _different(notes: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(chain.from_iterable(notes)))


def _finish(
    record: Record, study: str, config: Any, parts: Sequence[Part], began: float
) -> list[Claim]:
    """Results, verdicts, end of the session; Ctrl-C stops it before the verdicts are there, or when
    the record is closed.
    """
    rows: list[Row] = [row for part in parts for row in part.rows]
    with interruptions() as interruption:
        record.write_results(
            config.entry,
            rows + summaries(rows),
            {k: v for part in parts for k, v in part.arrays.items()},
        )
        claims: list[Claim] = import_module(f"loclin.studies.{study}.claims").decide(config, rows)
        interruption.check()
        record.write_claims(config.entry, claims)
        record.close_study(
            config.entry, time.perf_counter() - began, _different(part.notes for part in parts)
        )
    return claims
