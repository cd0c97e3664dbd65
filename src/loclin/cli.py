"""The command line: `loclin reproduce | run | search | steer | schedules | radius | trajectory |
report`. Imports nothing heavy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import tyro

from loclin.errors import LoclinError
from loclin.studies import STUDIES
from loclin.studies.settings import BUILT_IN, Profile

T = TypeVar("T")

HELP = """\
usage: loclin COMMAND [options]

Which local linear structure does a trained network really have, in its weights and activations, at what scale?

commands:
  reproduce         run every study on the built-in models, then write and name the HTML report
  run STUDY         run one study; `loclin run STUDY --help` lists every setting
  search            search around the weights of your model at random: a forecast, locked splits, ensembles, on one core or Ray
  search replay DIR rebuild the candidates that a search found from their seeds, bit for bit
  steer             a vector that shifts your model's answers, from labels, one gradient step or a search: where, how well, at what cost
  steer apply FILE  what a model says with such a vector at several strengths, side by side
  schedules         how to train several tasks of your own into one model: a short pilot of every schedule, a recommendation
  radius            how large a step along a gradient, a task vector or an adapter stays predictable, on your model
  trajectory DIR    measure a training run of your own from its checkpoint folders (Hugging Face Trainer or peft)
  report DIR        rebuild the report of a run folder from its record alone

studies:
  recovery          destroy a task, train it back: do fixed bases, or the first updates, span the way?
  spectrum          are task gradients of low rank, do tasks share a space, which weights hold it?
  linearity         over which steps is the loss straight, along which directions, and why does it end?
  krylov            does the way back lie in the space that gradient and Hessian at the damaged point make, and until when?
  search            does random search gain what its law says, in any space; where to search; are the best worth more together?
  steering          do labels, one gradient step and random search give one steering vector, does each steer, and what is chance?
  schedules         is training tasks one after another brittle, which schedule is better, what mends it?

A run that was interrupted goes on where it was when the same command is given again; steer starts again.
Bad input ends with one line and exit code 2. Start with:  loclin reproduce --profile smoke
"""


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Run every study on the built-in models, then write the report and say where it is."""

    profile: Profile = "standard"
    """smoke: a few minutes, wide intervals. standard: 16 minutes on two cores. paper: the paper's
    own models too, hours."""
    studies: tuple[str, ...] = STUDIES
    """Which studies to run."""
    seeds: int | None = None
    """Independent runs of each study; the profile decides by default."""
    workers: int = 0
    """Runs side by side on the CPU; 0 takes every core. The record does not depend on it."""
    out: Path | None = None
    """Run folder; runs/PROFILE by default. The same folder and settings go on where they stopped.
    """


@dataclass(frozen=True, kw_only=True)
class Report:
    """Rebuild report.html, report.md and the figures of a run folder from its record alone."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The run folder."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a `LoclinError` becomes one line on stderr and exit code 2, Ctrl-C exit code
    130.

    A reader that stops listening (`| head`) ends it without a word, exit code 141.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            _dispatch(given)
        finally:
            sys.stdout.flush()  # a pipe that is closed is noticed here, not when Python ends
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # what is still buffered goes nowhere
        sys.exit(141)
    except LoclinError as error:
        print(f"loclin: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk or a folder that cannot be written, wherever it was met
        where = f" at {error.filename}" if error.filename else ""
        print(
            f"loclin: expected to read and write files, found {error.strerror or error}{where}: "
            "make room or choose another --out or $LOCLIN_CACHE; finished runs are kept",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        kept = "finished runs are kept: the same command goes on where it was"
        if given[:1] == ["steer"]:
            kept = "a vector that was not finished is not kept: the same command starts again"
        print(f"loclin: stopped; {kept}", file=sys.stderr)
        sys.exit(130)


def _dispatch(arguments: list[str]) -> None:
    commands: dict[str, Callable[[list[str]], None]] = {
        "reproduce": _reproduce,
        "run": _run,
        "search": _search,
        "steer": _steer,
        "schedules": _schedules,
        "radius": _radius,
        "report": _report,
        "trajectory": _trajectory,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
    elif arguments[0] == "--version":
        from importlib.metadata import version

        print(f"loclin {version('loclin')}")
    elif arguments[0] not in commands:
        raise LoclinError(
            f"unknown command {arguments[0]!r}: expected one of {', '.join(commands)}"
        )
    else:
        commands[arguments[0]](arguments[1:])


def _parse(kind: type[T], arguments: list[str], command: str, default: T | None = None) -> T:
    if default is None:
        return tyro.cli(kind, args=arguments, prog=f"loclin {command}")
    return tyro.cli(kind, args=arguments, prog=f"loclin {command}", default=default)


def _reproduce(arguments: list[str]) -> None:
    asked = _parse(Reproduce, arguments, "reproduce")
    for study in asked.studies:
        _known(study)
    out = asked.out or Path("runs") / asked.profile
    configs = [
        (s, c)
        for s in asked.studies
        for c in import_module(f"loclin.studies.{s}.config").settings(asked.profile)
    ]
    if asked.seeds is not None:
        configs = [(s, replace(c, seeds=asked.seeds)) for s, c in configs]
    _all_cached([config.checked() for _, config in configs])
    failed: list[str] = []
    for study, config in configs:
        try:
            _study(study, replace(config, workers=asked.workers), out)
        except LoclinError as error:  # one model that cannot be studied does not cost the others
            failed.append(f"{config.entry}: {error}")
    if len(failed) < len(configs):
        _write_report(out)
    if failed:
        raise LoclinError("; ".join(failed))


def _all_cached(configs: Sequence[Any]) -> None:
    """Before hours of work: whatever would have to be fetched on the way is named, with the
    commands that fetch it.
    """
    named = {(c.model, c.data) for c in configs} - {(m, None) for m in BUILT_IN}
    if not named:
        return
    from loclin.models.pretrained import missing_from_cache

    models = {m for m, _ in named if m not in BUILT_IN}
    datasets = {d for _, d in named if d and d not in BUILT_IN}
    missing = [f"hf download {m}" for m in sorted(models) if missing_from_cache(m)]
    missing += [
        f"hf download --repo-type dataset {d}"
        for d in sorted(datasets)
        if missing_from_cache(d, dataset=True)
    ]
    if datasets and find_spec("datasets") is None:
        missing.append("pip install 'loclin[hub]'")
    if missing:
        raise LoclinError(
            "expected the models and data of this profile in the local cache, found "
            f"{len(missing)} missing: "
            f"run {'; '.join(missing)} where there is a network"
        )


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            f"usage: loclin run STUDY [options]\n\nstudies: {', '.join(STUDIES)}\n\nloclin run "
            "STUDY --help lists every setting."
        )
        return
    study, options = arguments[0], arguments[1:]
    _known(study)
    settings = import_module(f"loclin.studies.{study}.config")
    default = settings.preset(_profile(options), _early(options, "--model"))
    config: Any = _parse(settings.Config, options, f"run {study}", default)
    out = config.out or Path("runs") / f"{config.entry}-{config.profile}"
    _study(study, config, out)
    _write_report(out)


def _known(study: str) -> None:
    if study not in STUDIES:
        raise LoclinError(f"unknown study {study!r}: expected one of {', '.join(STUDIES)}")


def _profile(options: list[str]) -> Profile:
    asked = _early(options, "--profile")
    if asked is None:
        return "standard"
    for known in get_args(Profile):
        if asked == known:
            return known  # type: ignore[no-any-return]
    raise LoclinError(f"unknown profile {asked!r}: expected one of {', '.join(get_args(Profile))}")


def _early(options: list[str], name: str) -> str | None:
    """The value of an option that is read first, because it decides the defaults of others."""
    for option, value in zip(options, [*options[1:], ""], strict=True):
        given, _, joined = option.partition("=")
        if given == name:
            return joined or value
    return None


def _study(study: str, config: Any, out: Path) -> None:
    """Run a study into a run folder."""
    config = config.checked()
    from loclin.studies.runner import run_study

    run_study(study, config, out=out)


def _trajectory(arguments: list[str]) -> None:
    from loclin.studies.trajectory.config import Config

    config = _parse(Config, arguments, "trajectory").checked()
    out = config.out or Path("runs") / f"trajectory-{config.folder.resolve().name}"
    from loclin.studies.trajectory.experiment import measure_folder

    measure_folder(config, out=out)
    _write_report(out)


def _search(arguments: list[str]) -> None:
    from loclin.search.config import Config, Replay

    if arguments[:1] == ["replay"]:
        asked = _parse(Replay, arguments[1:], "search replay")
        from loclin.search.replay import replay

        replay(asked)
        return
    config = _parse(Config, arguments, "search").checked()
    from loclin.search.command import search

    search(config, out=config.folder)
    _write_report(config.folder)


def _steer(arguments: list[str]) -> None:
    if arguments[:1] == ["apply"]:
        from loclin.steering.apply_config import ApplyConfig

        asked = _parse(ApplyConfig, arguments[1:], "steer apply").checked()
        from loclin.steering.apply import apply

        apply(asked)
        return
    from loclin.steering.config import Config

    config = _parse(Config, arguments, "steer").checked()
    from loclin.steering.command import steer

    steer(config, out=config.run)
    _write_report(config.run)


def _schedules(arguments: list[str]) -> None:
    from loclin.studies.pilot.config import Config

    config = _parse(Config, arguments, "schedules").checked()
    _study("pilot", config, config.folder)
    _write_report(config.folder)


def _radius(arguments: list[str]) -> None:
    from loclin.studies.radius.config import Config

    config = _parse(Config, arguments, "radius").checked()
    out = config.out or Path("runs") / config.entry
    from loclin.studies.radius.experiment import measure_radius

    measure_radius(config, out=out)
    _write_report(out)


def _report(arguments: list[str]) -> None:
    asked = _parse(Report, arguments, "report")
    if not (asked.folder / "run.json").exists():
        raise LoclinError(
            f"expected a run folder with a run.json, found none at {asked.folder}: give a folder "
            "made by loclin"
        )
    _write_report(asked.folder)


def _write_report(folder: Path) -> None:
    from loclin.report import build
    from loclin.report.pilot import print_pilot
    from loclin.report.radius import print_radius
    from loclin.report.search import print_search
    from loclin.report.steering import print_steering
    from loclin.report.terminal import print_claims, print_findings

    page = build(folder)
    print_claims(folder)
    print_findings(folder, "trajectory")
    print_radius(folder)
    print_search(folder)
    print_steering(folder)
    print_pilot(folder)
    print(f"report: {page.resolve()}")
