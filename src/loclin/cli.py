"""The command line: one flat list of commands. Imports nothing heavy before one starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args

import tyro

from loclin.errors import LoclinError, disk_error
from loclin.options import BUILT_IN, PACKAGED, fact_form
from loclin.renamed import refuse_old
from loclin.run.record import Record
from loclin.run.rows import Row
from loclin.run.runner import Study, run_studies, summed_up
from loclin.studies import KINDS, STUDIES, TITLES
from loclin.studies.settings import Profile

T = TypeVar("T")
#: The commands that run a study, and its kind. A second word asks a second question of the room.
COMMANDS = {kind: kind for kind in KINDS if kind not in ("search-claims", "steering")}
CLAIMS = {"search": "search-claims", "steer": "steering"}
CLAIMED_PAIRS = ("conflicting",)  # what `reproduce` asks schedules of a model of your own

HELP = """\
usage: loclin COMMAND [options]

Which local linear structure does a trained network really have, in its weights and activations, at
what scale?

commands:
  reproduce         ask every study of the built-in models, or of your own; one report
{studies}
  search replay DIR rebuild the candidates that a search found from their seeds, bit for bit
  steer apply FILE  what a model says with a steering vector at several strengths, side by side
  search claims     does random search gain what its law says, and what are its best worth together?
  steer claims      do labels, a gradient step and a search give one steering vector, beyond chance?
  report DIR        draw the report of a run folder again from its record alone

`loclin COMMAND --help` lists every setting. An interrupted command goes on where it was when it is
given again. Bad input ends with one line and exit code 2. Start with:

  loclin reproduce --profile smoke
"""


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Ask every study of the built-in models, or of your own, and say where the report is.

    The page is there from the start and grows as each study ends. The same command goes on where it
    stopped.

    Example: loclin reproduce --model path/to/model --data mine.jsonl --studies recovery spectrum
    """

    profile: Profile = "standard"
    """smoke: a few minutes, wide intervals. standard: minutes on two cores. paper: the paper's
    own models too, hours."""
    studies: tuple[str, ...] = tuple(STUDIES)
    """Which studies."""
    models: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--model",))] = ()
    """Which models: built-in names, smollm2-135m, folders, GGUF files or hub ids; those of the
    profile by default."""
    data: tuple[str, ...] = ()
    """What they are asked: JSON Lines files, hub data sets, facts, sequences, statements, or self.
    A built-in model brings its own."""
    fields: tuple[str, ...] = ()
    """Names of the data's own columns, where they are others: prompt=text answer=target."""
    group: str | None = None
    """Column of what no two splits may share."""
    template: str | None = None
    """Prompt made from a record's fields: "{passage}\\nQuestion: {question}?\\nAnswer:"."""
    chat: bool = False
    """Put prompts into the tokenizer's chat template."""
    system: str | None = None
    """What the system says first, with --chat."""
    seeds: int | None = None
    """Runs of each study; the profile decides by default."""
    models_per_claim: int | None = None
    """Independently pretrained models behind a claim, which its runs take in turn; the profile
    decides by default."""
    seed: int = 0
    """Of everything random; another one is another study of the same claims."""
    workers: int = 0
    """Runs side by side on the CPU; 0 takes every core. The record does not depend on it."""
    ray: str | None = None
    """local, auto, or the address of a Ray cluster that shares the runs."""
    out: Path | None = None
    """Run folder; runs/PROFILE by default."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Draw report.html, report.md and the figures of a run folder again from its record alone."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The run folder."""


@dataclass(frozen=True, kw_only=True)
class _Early:
    """What decides the defaults of everything else."""

    profile: str = "standard"
    model: str | None = None
    data: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    schedules: tuple[str, ...] = ()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a `LoclinError` becomes one line on stderr and exit code 2, Ctrl-C code 130.

    A reader that stops listening (`| head`) ends it without a word, exit code 141.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            _dispatch(words)
        finally:
            sys.stdout.flush()  # a pipe that is closed is noticed here, not when Python ends
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest goes nowhere
        sys.exit(141)
    except LoclinError as error:
        print(f"loclin: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"loclin: {disk_error(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "loclin: stopped; what was finished is kept: the same command goes on where it was",
            file=sys.stderr,
        )
        sys.exit(130)


def _dispatch(words: list[str]) -> None:
    refuse_old(words)
    command, rest = words[0] if words else "--help", words[1:]
    if command in ("-h", "--help"):
        lines = (f"  {name:<17} {KINDS[kind].summary}" for name, kind in COMMANDS.items())
        print(HELP.format(studies="\n".join(lines)), end="")
    elif command == "--version":
        from importlib.metadata import version

        print(f"loclin {version('loclin')}")
    elif command == "reproduce":
        _reproduce(_parse(Reproduce, rest, command))
    elif command == "report":
        _report(_parse(Report, rest, command).folder)
    elif command in COMMANDS:
        _study_command(command, rest)
    else:
        names = ", ".join(["reproduce", *COMMANDS, "report"])
        raise LoclinError(f"unknown command {command!r}: expected one of {names}")


def _study_command(command: str, words: list[str]) -> None:
    """A study on one model, or what else its room offers."""
    if command == "search" and words[:1] == ["replay"]:
        from loclin.studies.search.settings import ReplaySettings

        asked = _parse(ReplaySettings, words[1:], "search replay")
        import_module("loclin.studies.search.replay").replay(asked)
        return
    if command == "steer" and words[:1] == ["apply"]:
        from loclin.studies.steering import apply

        apply.apply(_parse(apply.ApplySettings, words[1:], "steer apply").checked())
        return
    kind, title = COMMANDS[command], command
    if command in CLAIMS and words[:1] == ["claims"]:
        kind, title, words = CLAIMS[command], f"{command} claims", words[1:]
    module, name = _settings_of(kind)
    default = None
    if hasattr(module, "preset"):
        default = _preset(module, _early(words))
    settings = _parse(getattr(module, name), words, title, default)
    option = getattr(settings, "folder_option", "--out")
    _run([(KINDS[kind], settings)], settings.run_folder, option)


def _settings_of(kind: str) -> tuple[Any, str]:
    module, _, name = KINDS[kind].settings.partition(":")
    return import_module(module), name


def _preset(module: Any, early: _Early) -> Any:
    """The defaults of a study for a profile, a model, and whatever else makes a difference."""
    names = (f.name for f in fields(early) if f.name in signature(module.preset).parameters)
    return module.preset(**{name: getattr(early, name) for name in names})


def _early(words: Sequence[str]) -> _Early:
    """What decides the defaults of other options is read first."""
    plain = [word for word in words if word not in ("-h", "--help")]
    early, _ = cast(
        tuple[_Early, list[str]],
        tyro.cli(_Early, args=plain, return_unknown_args=True, add_help=False),
    )
    if early.profile not in get_args(Profile):
        raise LoclinError(
            f"unknown profile {early.profile!r}: expected one of {', '.join(get_args(Profile))}"
        )
    return early


def _parse(kind: type[T], words: list[str], command: str, default: T | None = None) -> T:
    if default is None:
        return tyro.cli(kind, args=words, prog=f"loclin {command}")
    return tyro.cli(kind, args=words, prog=f"loclin {command}", default=default)


def _reproduce(asked: Reproduce) -> None:
    planned: list[tuple[Study, Any]] = []
    for study in asked.studies:
        if study not in STUDIES:
            raise LoclinError(f"unknown study {study!r}: expected one of {', '.join(STUDIES)}")
        module, _ = _settings_of(STUDIES[study])
        every = module.reproduced(asked.profile)
        if asked.models:
            early = _Early(profile=asked.profile, data=asked.data, pairs=CLAIMED_PAIRS)
            every = [_preset(module, replace(early, model=model)) for model in asked.models]
        planned += [(KINDS[STUDIES[study]], _shared(s, asked)) for s in every]
    if not asked.models:
        planned = _there(planned)
    _run(planned, asked.out or Path("runs") / asked.profile, "--out")


def _there(planned: list[tuple[Study, Any]]) -> list[tuple[Study, Any]]:
    """Without models whose package is missing, which nobody named: a line says so."""
    from loclin.models.gguf import without_package

    missing = without_package()
    for model in sorted({settings.model for _, settings in planned} & {*missing}):
        print(f"{model} is left out: {missing[model]}")
    return [each for each in planned if each[1].model not in missing]


def _shared(settings: Any, asked: Reproduce) -> Any:
    """Settings with what was asked of all studies."""
    names = ["workers", "ray", "profile", "seed", "seeds", "models_per_claim", "data"]
    names += ["fields", "group", "template", "chat", "system"]
    every = {name: getattr(asked, name) for name in names}
    every["data"] = tuple(settings.facts if d == "facts" else d for d in asked.data)
    more = {name: value for name, value in every.items() if value not in (None, ())}
    known = {f.name for f in fields(settings)}
    return replace(settings, **{k: v for k, v in more.items() if k in known})


def _run(planned: Sequence[tuple[Study, Any]], folder: Path, option: str) -> None:
    """Settings are checked here, once, before anything starts; then every study is run."""
    ready = [(study, settings.checked()) for study, settings in planned]
    if len(ready) > 1:
        _all_cached([settings for _, settings in ready])
    elif hasattr(ready[0][1], "model"):  # before torch is there
        from loclin.tasks.hub import check_model

        check_model(ready[0][1].model, ready[0][1].revision)
    record, seconds, problem = Record(folder, option=option), 0.0, None
    if len(ready) == 1:
        settings, seconds, problem = _expected(ready[0][1], record)
        ready = [(ready[0][0], settings)]
    from loclin.report.page import build

    drawn: dict[str, Any] = {}

    def draw(still: Sequence[str]) -> None:
        build(folder, _sections, titles=TITLES, planned=still, drawn=drawn)

    run_studies(ready, folder, option=option, draw=draw, seconds=seconds, problem=problem)
    _print(folder, drawn)


def _expected(settings: Any, record: Record) -> tuple[Any, float, Any]:
    """Say what a command will take, where there are runs to make and passes can tell; and the model
    that they were timed on.
    """
    held = record.run()["studies"].get(settings.entry, {})
    if settings.budget and held:  # what a budget chose before stands
        counts = {name: held[name] for name in settings.lowered if name in held}
        settings = replace(settings, **counts).checked()
    left = not all(record.ended(settings.entry, run) for run in range(settings.runs))
    if not (settings.timed and settings.kept and left):
        return settings, 0.0, None
    from loclin.studies.estimate import expected

    return expected(settings, record)


def _all_cached(every: Sequence[Any]) -> None:
    """Before hours of work: what would have to be fetched is named, with the commands that do."""
    models = {s.model for s in every} - {*BUILT_IN, *PACKAGED}
    names = {name for s in every for name in s.data} - {*BUILT_IN, "self"}
    if not models and not names:
        return
    from loclin.tasks.hub import missing_from_cache

    sets = {n for n in names if not Path(n).exists() and fact_form(n) is None}
    missing = [f"hf download {m}" for m in sorted(models) if missing_from_cache(m)]
    missing += [
        f"hf download --repo-type dataset {d}"
        for d in sorted(sets)
        if missing_from_cache(d, dataset=True)
    ]
    if sets and find_spec("datasets") is None:
        missing.append("pip install 'loclin[hub]'")
    if missing:
        raise LoclinError(
            "expected the models and data of this command in the local cache, found "
            f"{len(missing)} missing: run {'; '.join(missing)} where there is a network"
        )


def _report(folder: Path) -> None:
    if not (folder / "run.json").exists():
        raise LoclinError(
            f"expected a run folder with a run.json, found none at {folder}: give a folder made by "
            "loclin"
        )
    from loclin.report.page import build

    try:
        record, drawn = Record(folder), dict[str, Any]()
        so_far = partial(_so_far, record)
        build(folder, _sections, titles=TITLES, drawn=drawn, so_far=so_far)
        _print(folder, drawn)
    except (LoclinError, OSError, MemoryError):
        raise
    except Exception as error:  # rows that no study writes lead the drawing to any
        first = " ".join(f"{type(error).__name__} ({error})".split())[:200]
        raise LoclinError(
            f"expected the record of a run in {folder}, found what cannot be drawn, {first}: run "
            "it again into another folder"
        ) from error


def _so_far(record: Record, entry: str) -> list[Row]:
    """The rows of a study that has not ended, and what follows from them."""
    held, rows = record.run()["studies"][entry], record.rows_so_far(entry)
    module, name = _settings_of(held["study"])
    kind = getattr(module, name)
    plain = {f.name: held[f.name] for f in fields(kind) if held.get(f.name) is not None}
    settings = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()})
    return summed_up(KINDS[held["study"]], settings, rows) if rows else []


def _print(folder: Path, drawn: Mapping[str, Any]) -> None:
    from loclin.report.terminal import print_record

    print_record(folder, drawn)
    print(f"report: {(folder / 'report.html').resolve()}")


def _sections(kind: str) -> Callable[..., Any]:
    """What makes the sections of a kind of study."""
    if kind not in KINDS:
        raise LoclinError(
            f"expected a study among {', '.join(KINDS)} in the record, found {kind!r}: read it "
            "with the loclin that wrote it"
        )
    from loclin.studies.known_page import with_known

    return with_known(import_module(KINDS[kind].page).sections)
