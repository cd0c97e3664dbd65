"""`loclin search`, start to record: divide, foresee, score every candidate into the ledger, choose,
test once, export.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from loclin.errors import LoclinError
from loclin.models import BUILT_IN, load
from loclin.models.lora import Lora
from loclin.models.pretrained import How, device_named
from loclin.record import Record, Row
from loclin.report.search import ENTRY, KIND, forecast_lines
from loclin.search.candidate import Candidate, candidates
from loclin.search.chosen import Choice
from loclin.search.config import NOT_WHAT, Config
from loclin.search.ensemble import table
from loclin.search.executors import Progress as Told
from loclin.search.executors import one_thread, scores
from loclin.search.export import Ensemble, member, weights_hash, write_candidate
from loclin.search.ledger import Ledger
from loclin.search.noise import Noise
from loclin.search.prepared import Prepared, prepared
from loclin.search.rows import (
    compared_rows,
    forecast_rows,
    histogram_rows,
    observed_rows,
    over_searches,
    winner_rows,
)
from loclin.search.scoring import Outcome
from loclin.search.setup import Setup, Worker
from loclin.search.splits import Splits, askable, divided, learned
from loclin.search.trial import Trial, locked_choice, trial_of
from loclin.tasks.example import Example

PREPARED = f"{ENTRY}/prepared.json"
BASIS = f"{ENTRY}/basis.safetensors"


def search(config: Config, *, out: Path) -> None:
    """Search, showing the progress, and write the record. A search that was interrupted goes on; a
    finished one stays as it is.

    Args:
        config: what to search.
        out: the run folder.

    Raises:
        LoclinError: bad settings, a model or data that cannot be read, splits that are too small or
            overlap, a folder of another search; everything scored so far is kept.
    """
    config = config.checked()
    noise, began = Noise.parse(config.noise), time.perf_counter()
    record = Record(out)
    device = device_named(config.device, small=config.model in BUILT_IN)
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_WHAT}
    notes: list[str] = record.run()["notes"].get(ENTRY, [])
    where = config.device_map or device
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        record.open_study(
            ENTRY,
            settings,
            device=f"{where}, Ray at {config.ray}" if config.ray else where,
            kind=KIND,
        )
        if (out / ENTRY / "results.json").exists():
            print(
                f"the search in {out} ended before: this is its record; model and data are not "
                "read again"
            )
        else:
            try:
                with _shown() as (console, told):
                    told("reading model and data", 0.0)
                    setup, splits, notes = divided_setup(config, noise, device)
                    rows, more = _searched(config, setup, splits, record, console, told)
            except torch.OutOfMemoryError as error:
                raise LoclinError(
                    f"expected room for the model and what the search asks of it on {where}, found "
                    "too little "
                    f"({' '.join(str(error).split())[:120]}): give a smaller --dtype, "
                    "--no-forecast, fewer examples or another "
                    "--device; the candidates scored so far are kept"
                ) from error
            record.write_results(ENTRY, rows, {})
            notes = [*notes, *more]
        record.close_study(ENTRY, time.perf_counter() - began, notes)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One process in a run folder at a time.

    Raises:
        LoclinError: another one searches there.
    """
    lock = FileLock(out / ".search.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LoclinError(
            f"expected {out} for this search alone, found another process searching there: wait "
            "for it, or choose another --out"
        ) from error
    try:
        yield
    finally:
        lock.release()


def divided_setup(config: Config, noise: Noise, device: str) -> tuple[Setup, Splits, list[str]]:
    """What candidates are scored with, the three parts of the data, and what is to be said of them.

    Args:
        config: what to search.
        noise: of the candidates.
        device: where.
    """
    how = How.of(config, device)
    problem = load(
        config.model,
        data=config.data,
        seed=config.seed,
        how=how,
        template=config.template,
        long=config.long,
    )
    prefix = config.space.startswith("prefix:")
    without = learned(config.model, config.data) or (("train",) if prefix else ())
    every = askable(problem.examples, task=config.task, without=without)
    splits = divided(
        every,
        {"select": config.select, "validate": config.validate, "test": config.test},
        seed=config.seed,
    )
    setup = Setup(
        model=config.model,
        how=how,
        seed=config.seed,
        space=config.space,
        noise=noise,
        lora=Lora(rank=config.rank, alpha=config.alpha, targets=config.targets),
        adapter=config.adapter,
        examples=splits.select,
        lessons=_lessons(problem.examples["train"], config.task) if prefix else (),
    )
    said = f"{config.select} examples select, {config.validate} choose, {config.test} test, of {len(every)}; no group in two of them"
    return setup, splits, [*problem.notes, said]


def search_candidates(config: Config, search: int) -> list[Candidate]:
    """The candidates of one of the searches."""
    return candidates(
        config.n, config.sigma, seed=config.seed + search, antithetic=config.antithetic
    )


def named(name: str, search: int) -> str:
    """A file of one of several searches: the first has the plain name.

    >>> named("ledger.jsonl", 0), named("ledger.jsonl", 2), named("best", 1)
    ('ledger.jsonl', 'ledger-2.jsonl', 'best-1')
    """
    stem, dot, ending = name.partition(".")
    return f"{stem}-{search}{dot}{ending}" if search else name


def _lessons(train: Mapping[str, tuple[Example, ...]], task: str | None) -> tuple[Example, ...]:
    return tuple(e for name, part in train.items() if task in (None, name) for e in part)


def _searched(
    config: Config, setup: Setup, splits: Splits, record: Record, console: Console, told: Told
) -> tuple[list[Row], list[str]]:
    """Every row of the record, and what happened on the way, in sentences."""
    k = setup.prefix
    with one_thread(setup.device):
        worker = dataclasses.replace(setup, basis=kept_basis(record)).build()
        first = search_candidates(config, 0)[: config.group]
        ready = prepared(record, PREPARED, worker, splits, config, first, told)
    fingerprint = {**worker.fingerprint(), "batched": ready.batched}
    basis = worker.perturbed.basis
    if basis is not None:
        _keep_basis(record, basis)
    setup = dataclasses.replace(setup, batched=ready.batched, basis=basis, expected=fingerprint)
    foreseen = (
        forecast_rows(ready.forecast, n=config.n, sigmas=config.sigma, k=k, wish=config.wish)
        if ready.forecast
        else []
    )
    for line in forecast_lines(foreseen, dataclasses.asdict(config)):
        console.print(Text(line), soft_wrap=True)
    del worker  # those that score bring their own
    gc.collect()
    if setup.device == "cuda":
        torch.cuda.empty_cache()
    outcomes: list[list[Outcome]] = []
    notes = [*ready.notes]
    for s in range(config.seeds):
        found, said = _scored(config, setup, fingerprint, record.folder, s, console, told)
        outcomes.append(found)
        notes += said
    told("choosing and testing", 1.0)
    rows: list[Row] = [*foreseen, *ready.rows(), *_histogram(config, ready, outcomes)]
    each: list[Row] = []
    with one_thread(setup.device):
        worker = setup.build()
        with worker.perturbed:
            for s, found in enumerate(outcomes):
                each += _ended(config, worker, splits, record, ready, found, s, fingerprint)
    return [*rows, *each, *over_searches(each)], list(dict.fromkeys(notes))


def kept_basis(record: Record) -> Tensor | None:
    """The basis of "prefix:K" of an earlier session: an accelerator may not make the very same
    again.
    """
    path = record.folder / BASIS
    if not path.exists():
        return None
    try:
        return load_file(path)["basis"]
    except (OSError, SafetensorError, KeyError) as error:
        raise LoclinError(
            f"expected a basis in {path}, found {error}: restore it, or search into another --out"
        ) from error


def _keep_basis(record: Record, basis: Tensor) -> None:
    path = record.folder / BASIS
    if not path.exists():
        scratch = path.with_name(f".{path.name}")
        save_file({"basis": basis.detach().cpu().contiguous()}, scratch)
        scratch.replace(path)


def _histogram(
    config: Config, ready: Prepared, outcomes: Sequence[Sequence[Outcome]]
) -> Iterator[Row]:
    every = [o for found in outcomes for o in found]
    return histogram_rows(every, loss=ready.loss, sigmas=config.sigma, forecast=ready.forecast)


def _scored(
    config: Config,
    setup: Setup,
    fingerprint: dict[str, object],
    out: Path,
    search: int,
    console: Console,
    told: Told,
) -> tuple[list[Outcome], list[str]]:
    """All outcomes of one search; those that are in its ledger already are not scored again."""
    every = search_candidates(config, search)
    settings = {
        **fingerprint,
        "n": config.n,
        "sigma": list(config.sigma),
        "seed": config.seed + search,
        "antithetic": config.antithetic,
        "group": config.group,
    }
    notes: list[str] = []

    def tell(note: str) -> None:
        notes.append(note)
        console.print(Text(note), soft_wrap=True)

    with Ledger.open(out / named("ledger.jsonl", search), settings) as ledger:
        if ledger.note:
            tell(ledger.note)
        done = ledger.done
        groups = [every[i : i + config.group] for i in range(0, len(every), config.group)]
        left = [group for group in groups if not all(c.index in done for c in group)]
        share = len(groups) - len(left)

        def progress(text: str, part: float) -> None:
            of = f" of search {search + 1} of {config.seeds}" if config.seeds > 1 else ""
            told(f"{text}{of}", (share + part * len(left)) / len(groups))

        found = scores(
            setup, left, workers=config.workers, ray=config.ray, progress=progress, tell=tell
        )
        with closing(found):
            for outcomes in found:
                ledger.append(outcomes)
        for outcome in ledger.outcomes():
            index = outcome.candidate.index
            if index >= len(every) or every[index] != outcome.candidate:
                raise LoclinError(
                    f"expected candidate {index} of this search in {ledger.path}, found another "
                    "seed, σ or sign: restore the file, or "
                    "move it away and search again"
                )
        return ledger.outcomes(), notes


def _ended(
    config: Config,
    worker: Worker,
    splits: Splits,
    record: Record,
    ready: Prepared,
    outcomes: Sequence[Outcome],
    search: int,
    fingerprint: dict[str, object],
) -> list[Row]:
    """Choose, test, export; the rows of one search."""
    choice, lock = locked_choice(
        record,
        f"{ENTRY}/{named('locked.json', search)}",
        worker,
        splits,
        outcomes,
        config.k,
        seed=config.seed + search,
    )
    selected = next(o.score for o in outcomes if o.candidate.index == choice.best.index)
    found: Trial = trial_of(
        record,
        f"{ENTRY}/{named('test.json', search)}",
        worker,
        splits,
        choice,
        lock,
        selected=(selected, ready.score),
        temperature=config.temperature,
        seed=config.seed + search,
    )
    _export(worker, record, choice, search, fingerprint)
    groups = [e.group or e.prompt for e in splits.test]
    compared = table(found.arms, found.base, groups=groups, seed=config.seed)
    return [
        *observed_rows(
            outcomes, loss=ready.loss, sigmas=config.sigma, forecast=ready.forecast, search=search
        ),
        *compared_rows(compared, search=search),
        *winner_rows(found.winner, search=search),
    ]


def _export(
    worker: Worker, record: Record, choice: Choice, search: int, fingerprint: dict[str, object]
) -> None:
    perturbed = worker.perturbed
    write_candidate(worker.problem, perturbed, choice.best, record.folder / named("best", search))
    kept = Ensemble(
        noise=str(perturbed.noise),
        base=weights_hash(perturbed.base),
        fingerprint=fingerprint,
        best=member(perturbed, choice.best),
        members=tuple(member(perturbed, c) for c in choice.members),
    )
    record.write_text(named("ensemble.json", search), kept.text())


@contextmanager
def _shown() -> Iterator[tuple[Console, Told]]:
    """A progress bar, and where to print beside it."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), transient=True
    ) as bar:
        task = bar.add_task("", total=1.0)
        yield bar.console, lambda text, share: bar.update(task, description=text, completed=share)
