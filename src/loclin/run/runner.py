"""The one runner of every study: settings are checked once, every run is kept as it ends, then come
summary and verdicts. A run that was interrupted goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from loclin.errors import LoclinError
from loclin.progress import Kept, ProgressCallback, afresh, silent
from loclin.run.dispatch import LOADING, Place, results
from loclin.run.display import Display, distinct
from loclin.run.interrupt import interruptions
from loclin.run.pieces import Pieces
from loclin.run.record import Record, part_name
from loclin.run.rows import Claim, Part, Row, summaries


class RunnableSettings(Protocol):
    """What the runner asks of a study's settings."""

    @property
    def entry(self) -> str:
        """Name of the study in the record."""

    @property
    def kind(self) -> str:
        """Which study it is."""

    @property
    def runs(self) -> int:
        """Independent runs."""

    @property
    def in_process(self) -> bool:
        """Whether `measure` runs in this process, keeps its own unfinished work and spreads it."""

    @property
    def stage(self) -> str:
        """Of a run: the parts of another one stand beside those of the first."""

    @property
    def kept(self) -> bool:
        """Whether a finished run is kept, or the same command does it again."""

    @property
    def models(self) -> int:
        """How many models the runs share, in turn, of a study whose rows are summed up."""

    @property
    def scales(self) -> Mapping[str, Any]:
        """On which scale the mean of a quantity is taken, where it is not plain."""

    @property
    def workers(self) -> int: ...  # noqa: D102
    @property
    def ray(self) -> str | None: ...  # noqa: D102

    def where(self) -> str:
        """The device, in words; refused where it is not there."""

    def fingerprint(self) -> dict[str, Any]:
        """Settings that decide the record, and digests of the files that were named."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Where the parts of a study are: modules, none of which is imported before it is needed.

    Attributes:
        summary: one line for `loclin --help`.
        settings: module and class of its settings, joined by a colon.
        measure: module with `measure(settings, run, session) -> Part`; of a study in the command's
            own process also `deliver(settings, session)`, which hands out what is finished.
        page: module with `sections(rows, settings) -> list[Section]`.
        claims: module with `decide(settings, rows) -> list[Claim]`, where it decides any, and
            `conclude(settings, rows) -> list[Row]`, where it recommends something, and
            `widened(settings, rows)`, the settings of a second stage where one is called for.
    """

    summary: str
    settings: str
    measure: str
    page: str
    claims: str | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Session:
    """What the runner gives to one run of a study.

    Attributes:
        progress: called with the stage and the share of it that is done.
        display: of a study that runs in this process, to print beside the bar.
        record: of such a study, to keep unfinished work in.
        problem: of such a study, the model with its data, where it was loaded to time passes.
        pieces: called with the name of a piece of the run and what makes its part: that which was
            kept, or a new one; `now` has it written at once.
        kept: the same of a piece that gives arrays alone.
    """

    progress: ProgressCallback = silent
    display: Display | None = None
    record: Record | None = None
    problem: Any = None
    pieces: Callable[..., Part] = afresh
    kept: Kept[Any] = afresh

    def note(self, sentence: str) -> None:
        """Print a sentence at once, where there is a display."""
        if self.display is not None:
            self.display.note(sentence)


@dataclass(frozen=True, kw_only=True)
class StudyJob:
    """Runs of a study, for workers; pieces of unfinished ones are kept in the folder, where there
    is one that they can reach.
    """

    measure: str
    settings: Any
    device: str
    folder: Path | None = None

    def build(self) -> StudyWorker:
        """Import what measures."""
        return StudyWorker(import_module(self.measure), self.settings, self.folder)


class StudyWorker:
    """Does one run after the other; what a run has to say is in its part."""

    notes: Sequence[str] = ()

    def __init__(self, module: Any, settings: Any, folder: Path | None) -> None:
        self._module, self._settings = module, settings
        self._record = Record(folder) if folder else None

    def do(self, item: int, progress: ProgressCallback) -> Part:
        """One run."""
        session = Session(progress=progress, **_keeping(self._record, self._settings, item))
        return _measured(self._module, self._settings, item, session)


def _keeping(record: Record | None, settings: Any, run: int) -> dict[str, Any]:
    """How a session keeps the pieces of a run, if it can."""
    if record is None or not settings.kept:
        return {}
    pieces = Pieces(record, settings.entry, part_name(run, settings.stage))
    return {"pieces": pieces, "kept": pieces.arrays}


def _measured(module: Any, settings: Any, run: int, session: Session) -> Part:
    began = time.perf_counter()
    part: Part = module.measure(settings, run, session)
    return replace(part, seconds=time.perf_counter() - began)


def run_studies(
    planned: Sequence[tuple[Study, RunnableSettings]],
    folder: Path,
    *,
    option: str = "--out",
    draw: Callable[[Sequence[str]], None] = lambda still: None,
    seconds: float = 0.0,
    problem: Any = None,
) -> None:
    """Run studies into one folder, one after the other, under one display.

    One study that cannot go on does not cost the others.

    Args:
        planned: studies with their settings, checked before.
        folder: of the record; one that was interrupted goes on where it was.
        option: of the command that names the folder.
        draw: draws the page; called at the start and as each study ends, with the entries that are
            still to come.
        seconds: that it will take, where that is known.
        problem: the model with its data, of one study in this process, where it is loaded already.

    Raises:
        LoclinError: what stopped studies, in one line.
    """
    record, failed = Record(folder, option=option), list[str]()
    entries = [settings.entry for _, settings in planned]
    total = sum(settings.runs for _, settings in planned)
    with record.working(), Display(total, expected=seconds) as display:
        for i, (study, settings) in enumerate(planned):
            try:
                begun = partial(draw, entries[i:])
                run_study(study, settings, record, display, begun=begun, problem=problem)
            except LoclinError as error:
                failed.append(f"{settings.entry}: {error}" if len(planned) > 1 else str(error))
        if any(record.finished(entry) for entry in entries):
            draw(())
    if failed:
        raise LoclinError("; ".join(failed))


def run_study(
    study: Study,
    settings: RunnableSettings,
    record: Record,
    display: Display,
    *,
    begun: Callable[[], None] = lambda: None,
    problem: Any = None,
) -> list[Claim]:
    """Run what is not done yet of a study, and decide its claims.

    Call it inside `record.working()`. A finished run is never done again.

    Raises:
        LoclinError: a folder of another configuration, a device or Ray that is not there, a run
            that cannot go on, too little memory. Finished runs are kept.
    """
    where, entry, began = settings.where(), settings.entry, time.perf_counter()
    device = f"{where}, Ray at {settings.ray}" if settings.ray else where
    record.open_study(entry, settings.fingerprint(), device=device, kind=settings.kind)
    begun()
    parts = _every_part(study, settings, where, record, display, problem)
    rules = import_module(study.claims) if study.claims else None
    if rules is not None and hasattr(rules, "widened"):
        more = rules.widened(settings, [row for part in parts for row in part.rows])
        if more is not None:
            display.more(more.runs)
            parts += _every_part(study, more, where, record, display, problem)
    claims = _finish(record, study, settings, parts, began)
    if settings.in_process and hasattr(module := import_module(study.measure), "deliver"):
        module.deliver(settings, _session(settings, record, display, 0))
    return claims


def _every_part(
    study: Study,
    settings: RunnableSettings,
    where: str,
    record: Record,
    display: Display,
    problem: Any,
) -> list[Part]:
    """Every run of one stage, in their order; each is kept as it ends."""
    parts = _parts(record, settings)
    display.open(settings.entry, kept=len(parts))
    display.note(*_notes(parts.values()))
    measured = partial(_here, problem=problem) if settings.in_process else _in_workers
    with closing(measured(study, settings, where, record, display, parts)) as found:
        for run, part in found:
            record.write_part(settings.entry, part_name(run, settings.stage), part)
            parts[run] = part
            display.note(*part.notes)
            display.close(run)
    return [parts[run] for run in sorted(parts)]


def _parts(record: Record, settings: RunnableSettings) -> dict[int, Part]:
    """The runs that an earlier session finished."""
    if not settings.kept:
        return {}
    names = {run: part_name(run, settings.stage) for run in range(settings.runs)}
    kept = {run: record.part(settings.entry, name) for run, name in names.items()}
    return {run: part for run, part in kept.items() if part is not None}


def _notes(parts: Any) -> list[str]:
    return distinct(list(chain.from_iterable(part.notes for part in parts)))


Runs = Generator[tuple[int, Part], None, None]


def _in_workers(
    study: Study, settings: Any, where: str, record: Record, display: Display, kept: Any
) -> Runs:
    left = [run for run in range(settings.runs) if run not in kept]
    device, folder = where.split(":")[0], None if settings.ray else record.folder
    job = StudyJob(measure=study.measure, settings=settings, device=device, folder=folder)
    count = settings.workers if where == "cpu" else 1
    place = Place(workers=count, ray=settings.ray, alone=False, retries=0)

    def progress(item: int, stage: str, share: float) -> None:
        if item != LOADING:
            display.update(left[item], stage, share)

    with closing(results(job, left, place, progress=progress, note=display.note)) as found:
        for item, part in found:
            yield left[item], part


def _here(
    study: Study,
    settings: Any,
    where: str,
    record: Record,
    display: Display,
    kept: Any,
    problem: Any,
) -> Runs:
    for run in range(settings.runs):
        if run not in kept:
            session = replace(_session(settings, record, display, run), problem=problem)
            try:
                yield run, _measured(import_module(study.measure), settings, run, session)
            except MemoryError as error:
                raise _no_room(where, error) from error
            except RuntimeError as error:  # torch.OutOfMemoryError, without importing torch here
                if type(error).__name__ != "OutOfMemoryError":
                    raise
                raise _no_room(where, error) from error


def _session(settings: Any, record: Record, display: Display, run: int) -> Session:
    progress, keeping = partial(display.update, run), _keeping(record, settings, run)
    return Session(progress=progress, display=display, record=record, **keeping)


def _no_room(where: str, error: BaseException) -> LoclinError:
    return LoclinError(
        f"expected room for the model and what is asked of it on {where}, found too little "
        f"({' '.join(str(error).split())[:120]}): give a smaller --dtype, fewer examples, a "
        "pattern with --space, or another --device; what was finished is kept"
    )


def _finish(
    record: Record, study: Study, settings: Any, parts: Sequence[Part], began: float
) -> list[Claim]:
    """Results, verdicts, end of the session; Ctrl-C stops it before the verdicts are there, or when
    the record is closed.
    """
    rows: list[Row] = [row for part in parts for row in part.rows]
    claims: list[Claim] = []
    with interruptions() as interruption:
        arrays = {k: v for part in parts for k, v in part.arrays.items()}
        record.write_results(settings.entry, summed_up(study, settings, rows), arrays)
        if study.claims:
            claims = import_module(study.claims).decide(settings, rows)
        interruption.check()
        if claims:
            record.write_claims(settings.entry, claims)
        record.close_study(settings.entry, time.perf_counter() - began, _notes(parts))
    return claims


def summed_up(study: Study, settings: Any, rows: list[Row]) -> list[Row]:
    """The rows of runs, what they are on average, and what follows."""
    rules = import_module(study.claims) if study.claims else None
    more = [] if settings.in_process else summaries(rows, settings.models, settings.scales)
    return [
        *rows,
        *more,
        *(rules.conclude(settings, rows) if hasattr(rules, "conclude") and rules else []),
    ]
