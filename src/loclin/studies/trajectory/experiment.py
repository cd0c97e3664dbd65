"""The measurement of one run from its checkpoint folders, start to record."""

from __future__ import annotations

import time
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from loclin.integrations.checkpoints import read_run
from loclin.record import Record
from loclin.studies.trajectory.config import Config
from loclin.studies.trajectory.measure import STUDY, write_record
from loclin.studies.trajectory.movement import run_of


def measure_folder(config: Config, *, out: Path) -> None:
    """Read a run's checkpoints tensor by tensor, showing the progress, and write the record.

    Args:
        config: what to measure.
        out: the run folder; measured again where it exists already.

    Raises:
        LoclinError: bad settings, checkpoints that cannot be read or do not belong together, a
            folder of other settings.
    """
    config = config.checked()
    record, began = Record(out), time.perf_counter()
    points = read_run(config.folder, start=config.start, pattern=config.pattern)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), transient=True
    ) as bar:
        task = bar.add_task(f"reading {len(points.labels)} points", total=1.0)
        run = run_of(
            points, lambda text, share: bar.update(task, completed=share, description=text)
        )
    settings = {
        "folder": config.folder.resolve(),
        "start": config.start,
        "pattern": config.pattern,
        "ks": config.ks,
        "shuffles": config.shuffles,
        "seed": config.seed,
    }
    write_record(
        record,
        run,
        settings,
        ks=config.ks,
        shuffles=config.shuffles,
        seed=config.seed,
        device="files",
    )
    record.close_study(STUDY, time.perf_counter() - began)
