"""`loclin search replay`: candidates of a finished search built again from their seeds, and held
against what was kept.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from loclin.errors import LoclinError
from loclin.models import load
from loclin.models.pretrained import device_of
from loclin.run.record import Record
from loclin.run.workers import one_thread
from loclin.search.candidate import candidates
from loclin.search.export import Ensemble, check_rebuilt, write_candidate
from loclin.search.ledger import read
from loclin.search.noise import Noise
from loclin.search.scorer import check_same
from loclin.search.scoring import Outcome
from loclin.studies.search.measure import described, kept_basis, named
from loclin.studies.search.settings import ReplaySettings, SearchSettings

CLOSE = 1e-5  # relative difference of two losses that counts as rounding


def replay(asked: ReplaySettings) -> None:
    """Rebuild, check and, where a folder is given, write; what was found is printed.

    Raises:
        LoclinError: no finished search there, another model or other data than those of the search
            (the first difference is named), weights or outcomes that are not what was kept.
    """
    folder, record = asked.folder, Record(asked.folder)
    settings = _settings(record)
    kept = Ensemble.read(folder / named("ensemble.json", asked.search))
    asked_then, lines = read(folder / named("ledger.jsonl", asked.search))
    outcomes, group = {o.candidate.index: o for o in lines}, asked_then.get("group", 1)
    seed, pairs = settings.seed + asked.search, settings.antithetic
    every = candidates(settings.n, settings.sigma, seed=seed, antithetic=pairs)
    members = {m.candidate.index: m for m in (kept.best, *kept.members)}
    wanted = list(members) if asked.index is None else [asked.index]
    for index in wanted:
        if index not in outcomes or index >= len(every):
            raise LoclinError(
                f"expected the index of a candidate from 0 to {len(every) - 1}, found {index}: "
                "change --index"
            )
    if asked.device != "auto":
        settings = dataclasses.replace(settings, device=asked.device)
    device_of(settings)  # refused before the data are read
    problem = load(settings, seed=settings.seed)
    spec, _, _ = described(settings, Noise.parse(kept.noise), problem)
    different: list[str] = []
    with one_thread(spec.device):
        spec = dataclasses.replace(spec, basis=kept_basis(record, settings.entry))
        scorer = spec.build(problem)
        remedy = "replay with what was searched"
        check_same(kept.fingerprint, scorer.fingerprint, remedy, but=("device",))
        with scorer.perturbed:
            for index in wanted:
                if index in members:
                    check_rebuilt(scorer.perturbed, members[index])
                where = asked.out and asked.out / f"candidate-{index}"
                if where is not None:
                    where = write_candidate(scorer.problem, scorer.perturbed, every[index], where)
                first = index - index % group  # candidates that shared its passes, if any did
                again = scorer.do(every[first : first + group])[index - first]
                print(_line(outcomes[index], again, where, checked=index in members))
                different += [] if _same(outcomes[index], again) else [str(index)]
    if different:
        raise LoclinError(
            "expected the outcomes of the ledger, found others for candidate "
            f"{', '.join(different)}, from the same weights: replay where the search ran; this "
            "machine or these versions round otherwise"
        )


def _settings(record: Record) -> SearchSettings:
    """The settings of a finished search."""
    run = record.run()["studies"] if (record.folder / "run.json").exists() else {}
    entry = next((e for e, held in run.items() if held.get("study") == SearchSettings.kind), None)
    if entry is None or not record.finished(entry):
        raise LoclinError(
            f"expected the folder of a finished search, found none in {record.folder}: let `loclin "
            "search` end first"
        )
    known = {f.name for f in dataclasses.fields(SearchSettings)}
    try:
        settings: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in run[entry].items() if k in known
        }
        if settings.get("adapter"):
            settings["adapter"] = Path(settings["adapter"])
        return SearchSettings(**settings).checked()
    except (KeyError, TypeError, ValueError) as error:
        raise LoclinError(
            f"expected the settings of a search in {record.folder / 'run.json'}, found {error}: "
            "restore the file"
        ) from error


def _same(kept: Outcome, again: Outcome) -> bool:
    close = math.isclose(kept.loss, again.loss, rel_tol=0, abs_tol=CLOSE * abs(kept.loss))
    return bool((kept.right == again.right).all()) and (close or _equal(kept, again))


def _equal(kept: Outcome, again: Outcome) -> bool:
    return repr(kept.loss) == repr(again.loss)  # NaN is as NaN


def _line(kept: Outcome, again: Outcome, where: Path | None, *, checked: bool) -> str:
    weights = "weights as they were, bit for bit" if checked else "weights built from the seed"
    agreeing = int(np.sum(kept.right == again.right))
    outcome = f"{agreeing} of {len(kept.right)} outcomes and a loss of {again.loss:.6g}"
    exactly = "" if _equal(kept, again) else f" (the ledger has {kept.loss:.6g})"
    written = f"; written to {where}" if where else ""
    return (
        f"candidate {kept.candidate.index} (σ = {kept.candidate.sigma:g}): {weights}; {outcome} as "
        f"in the ledger{exactly}{written}"
    )
