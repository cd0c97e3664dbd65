"""What is measured before the first candidate, and kept: the splits, the model's own score, the
forecast, what σ really does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loclin.errors import LoclinError
from loclin.record import Record, Row
from loclin.search.candidate import Candidate
from loclin.search.config import Config
from loclin.search.executors import Progress as Told
from loclin.search.forecast import FOLDS, Forecast, foretold
from loclin.search.scoring import agrees, faster
from loclin.search.setup import Worker, check_same
from loclin.search.splits import Splits
from loclin.search.stacked import why_not
from loclin.stats import Estimate


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a search knows before it begins.

    Attributes:
        splits: hash of every part of the data.
        fingerprint: of model and questions (`Worker.fingerprint`).
        batched: whether the candidates of a group go through the model together.
        loss, score: of the model itself on select.
        forecast: None where none was wanted.
        realised: for every σ, by tensor, the root mean square of what a candidate really moves it,
            as a share of σ.
        sizes: numbers in every tensor: the fewer, the further that share is from 1 by chance.
        notes: in sentences.
    """

    splits: Mapping[str, str]
    fingerprint: Mapping[str, Any]
    batched: bool
    loss: float
    score: float
    forecast: Forecast | None
    realised: Mapping[str, Mapping[str, float]]
    sizes: Mapping[str, int]
    notes: tuple[str, ...]

    def rows(self) -> Iterator[Row]:
        """The realised noise, and the model's own score."""
        yield Row(quantity="own_score", value=self.score, context={"split": "select"})
        for sigma, shares in self.realised.items():
            for tensor, share in shares.items():
                where = {"sigma": float(sigma), "tensor": tensor, "size": self.sizes[tensor]}
                yield Row(quantity="realised_sigma", value=share, context=where)

    @staticmethod
    def of(held: Mapping[str, Any]) -> Prepared:
        """From what `prepared` wrote."""
        forecast = held["forecast"]
        if forecast is not None:
            known = {
                name: forecast[name] and Estimate(**forecast[name])
                for name in ("trace", "frobenius")
            }
            forecast = Forecast(**{**forecast, **known, "notes": tuple(forecast["notes"])})
        return Prepared(**{**held, "forecast": forecast, "notes": tuple(held["notes"])})


def prepared(
    record: Record,
    name: str,
    worker: Worker,
    splits: Splits,
    config: Config,
    group: Sequence[Candidate],
    told: Told,
) -> Prepared:
    """Measure what is needed before the first candidate, or read it where an earlier session did.

    Args:
        record: the run folder.
        name: of the file in it.
        worker: the model.
        splits: the three parts of the data.
        config: of the search.
        group: candidates to time both ways of scoring with.
        told: called with what is done and the share of it.

    Raises:
        LoclinError: other data than those of the session before, a σ with which nothing moves,
            candidates that cannot go through the model together although they were to, a loss that
            is not finite.
    """
    path = record.folder / name
    if not path.exists():
        found = _measured(worker, splits, config, group, told)
        record.write_text(
            name, json.dumps(dataclasses.asdict(found), ensure_ascii=False, indent=1) + "\n"
        )
    try:
        ready = Prepared.of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoclinError(
            f"expected what an earlier session measured in {path}, found {error}: delete it and "
            "run again"
        ) from error
    for part, digest in splits.hashes().items():
        if ready.splits.get(part) != digest:
            raise LoclinError(
                f"expected the {part} examples that this search began with in {record.folder}, "
                "found others: give the same data, or "
                "choose another --out"
            )
    check_same(
        ready.fingerprint,
        _own(worker),
        f"give the same model, or choose another --out than {record.folder}",
    )
    return ready


def _own(worker: Worker) -> dict[str, Any]:
    """What of a fingerprint is known before it is decided how candidates are scored."""
    return {name: value for name, value in worker.fingerprint().items() if name != "batched"}


def _measured(
    worker: Worker, splits: Splits, config: Config, group: Sequence[Candidate], told: Told
) -> Prepared:
    perturbed, exam = worker.perturbed, worker.exam
    for sigma in config.sigma:
        perturbed.check_sigma(sigma)
    if config.batched == "yes":
        why = (
            "a basis"
            if perturbed.basis is not None
            else why_not(worker.problem.model, perturbed.space, perturbed.noise)
        )
        if why is None and not agrees(perturbed, exam, group[0]):
            why = "that stacked passes give another loss than placed weights"
        if why is not None:
            raise LoclinError(
                f"expected candidates that can go through the model together, found {why}: leave "
                "out --batched yes"
            )
    losses, right = exam.answers()
    forecast = None
    if config.forecast:
        steps = FOLDS + config.probes + 3
        count = iter(range(1, steps + 2))
        forecast = foretold(
            worker.problem,
            perturbed.space,
            splits.select,
            noise=perturbed.noise,
            basis=perturbed.basis,
            probes=config.probes,
            seed=config.seed,
            told=lambda text: told(f"forecast: {text}", min(next(count, steps) / steps, 1.0)),
        )
    told("timing candidates alone and together", 1.0)
    batched = config.batched == "yes" or (
        config.batched == "auto" and len(group) > 1 and faster(perturbed, exam, group)
    )
    shown = group[0]
    realised = {
        repr(sigma): perturbed.realised(dataclasses.replace(shown, sigma=sigma, sign=1))
        for sigma in config.sigma
    }
    together = f"{len(group)} at a time" if batched else "one at a time"
    return Prepared(
        splits=splits.hashes(),
        fingerprint=_own(worker),
        batched=batched,
        loss=float(losses.sum()) / float(exam.tokens.sum()),
        score=float(right.double().mean()),
        forecast=forecast,
        realised=realised,
        sizes=dict(zip(perturbed.space.names, perturbed.space.sizes, strict=True)),
        notes=(
            f"candidates go through the model {together}",
            *(forecast.notes if forecast else ()),
        ),
    )
