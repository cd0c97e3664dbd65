"""`loclin search replay`: candidates of a finished search built again from their seeds, and held
against what was kept.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from loclin.errors import LoclinError
from loclin.models import BUILT_IN
from loclin.models.pretrained import device_named
from loclin.record import Record
from loclin.report.search import ENTRY
from loclin.search.candidate import Candidate
from loclin.search.command import divided_setup, kept_basis, named, search_candidates
from loclin.search.config import Config, Replay
from loclin.search.executors import one_thread
from loclin.search.export import Ensemble, check_rebuilt, differing, write_candidate
from loclin.search.ledger import read
from loclin.search.noise import Noise
from loclin.search.scoring import Outcome
from loclin.search.setup import Worker, check_same

#: Settings of a fingerprint that say where and how fast candidates were scored, not which weights
#: they are.
NOT_WHICH = ("device", "batched")


def replay(asked: Replay) -> None:
    """Rebuild, check and, where a folder is given, write; what was found is printed.

    Raises:
        LoclinError: no finished search there, another model or other data than those of the search
            (the first difference is named), weights or outcomes that are not what was kept.
    """
    config = _config(asked.folder)
    kept = Ensemble.read(asked.folder / named("ensemble.json", asked.search))
    outcomes = {
        o.candidate.index: o for o in read(asked.folder / named("ledger.jsonl", asked.search))[1]
    }
    device = device_named(
        config.device if asked.device == "auto" else asked.device, small=config.model in BUILT_IN
    )
    setup, _, _ = divided_setup(config, Noise.parse(kept.noise), device)
    setup = dataclasses.replace(
        setup, batched=bool(kept.fingerprint.get("batched")), basis=kept_basis(Record(asked.folder))
    )
    every = search_candidates(config, asked.search)
    members = {m.candidate.index: m for m in (kept.best, *kept.members)}
    wanted = list(members) if asked.index is None else [asked.index]
    for index in wanted:
        if index not in outcomes or index >= len(every):
            raise LoclinError(
                f"expected the index of a candidate from 0 to {len(every) - 1}, found {index}: "
                "change --index"
            )
    different: list[str] = []
    with one_thread(setup.device):
        worker = setup.build()
        check_same(
            kept.fingerprint, worker.fingerprint(), "replay with what was searched", but=NOT_WHICH
        )
        with worker.perturbed:
            for index in wanted:
                if index in members:
                    check_rebuilt(worker.perturbed, members[index])
                where = None
                if asked.out is not None:
                    where = write_candidate(
                        worker.problem,
                        worker.perturbed,
                        every[index],
                        asked.out / f"candidate-{index}",
                    )
                again = _scored(worker, every, index, config.group if setup.batched else 1)
                told, same = _told(outcomes[index], again, where, checked=index in members)
                print(told)
                different += [] if same else [str(index)]
    if different:
        raise LoclinError(
            "expected the outcomes of the ledger, found others for candidate "
            f"{', '.join(different)}, from the same weights: replay "
            "where the search ran; this machine or these versions round otherwise"
        )


def _config(folder: Path) -> Config:
    """The settings of a finished search."""
    if not (folder / "run.json").exists() or not (folder / ENTRY / "results.json").exists():
        raise LoclinError(
            f"expected the folder of a finished search, found none in {folder}: let `loclin "
            "search` end first"
        )
    known = {f.name for f in dataclasses.fields(Config)}
    try:
        held = dict(Record(folder).run()["studies"][ENTRY])
        settings: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in held.items() if k in known
        }
        if settings.get("adapter"):
            settings["adapter"] = Path(settings["adapter"])
        return Config(**settings).checked()
    except (KeyError, TypeError, ValueError) as error:
        raise LoclinError(
            f"expected the settings of a search in {folder / 'run.json'}, found {error}: restore "
            "the file"
        ) from error


def _scored(worker: Worker, every: list[Candidate], index: int, size: int) -> Outcome:
    """The candidate's outcome, scored in the group that it was scored in."""
    start = index // size * size
    return worker.score(every[start : start + size])[index - start]


def _told(kept: Outcome, again: Outcome, where: Path | None, *, checked: bool) -> tuple[str, bool]:
    lost = differing(kept.right, again.right)
    close = kept.loss == again.loss or (
        kept.loss != kept.loss and again.loss != again.loss
    )  # both not a number
    same = not lost and (close or abs(kept.loss - again.loss) <= 1e-5 * abs(kept.loss))
    weights = "weights as they were, bit for bit" if checked else "weights built from the seed"
    outcome = f"{len(kept.right) - len(lost)} of {len(kept.right)} outcomes and a loss of {again.loss:.6g}"
    exactly = "" if close else f" (the ledger has {kept.loss:.6g})"
    written = f"; written to {where}" if where else ""
    candidate = kept.candidate
    return (
        f"candidate {candidate.index} (σ = {candidate.sigma:g}): {weights}; {outcome} as in the "
        f"ledger{exactly}{written}",
        same,
    )
