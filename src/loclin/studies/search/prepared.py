"""What is measured before the first candidate, and kept: the splits, the model's own score, the
forecast, what σ really does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from loclin.errors import LoclinError
from loclin.progress import ProgressCallback
from loclin.run.record import Record
from loclin.run.rows import Row
from loclin.search.candidate import candidates
from loclin.search.forecast import Forecast, forecast
from loclin.search.scorer import Scorer, check_same
from loclin.search.splits import examples_hash
from loclin.stats import Estimate
from loclin.studies.search.settings import SearchSettings
from loclin.tasks.example import Example

Splits = Mapping[str, Sequence[Example]]
#: A file of the record (`kept`), from what makes its content.
Kept = Callable[[Callable[[], Mapping[str, Any]]], tuple[dict[str, Any], Path]]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a search knows before it begins.

    Attributes:
        splits: hash of every part of the data.
        fingerprint: of model and questions.
        loss, score: of the model itself on select.
        forecast: None where none was wanted.
        realised: for every σ, by tensor, the root mean square of what a candidate really moves it,
            as a share of σ.
        sizes: numbers in every tensor: the fewer, the further that share is from 1 by chance.
    """

    splits: Mapping[str, str]
    fingerprint: Mapping[str, Any]
    loss: float
    score: float
    forecast: Forecast | None
    realised: Mapping[str, Mapping[str, float]]
    sizes: Mapping[str, int]

    def rows(self) -> Iterator[Row]:
        """The realised noise, and the model's own score."""
        yield Row(quantity="own_score", value=self.score, context={"split": "select"})
        for sigma, shares in self.realised.items():
            for tensor, share in shares.items():
                where = {"sigma": float(sigma), "tensor": tensor, "size": self.sizes[tensor]}
                yield Row(quantity="realised_sigma", value=share, context=where)


def prepared(
    record: Record,
    name: str,
    scorer: Scorer,
    splits: Splits,
    settings: SearchSettings,
    progress: ProgressCallback,
) -> Prepared:
    """Measure what is needed before the first candidate, or read it from the file of this name,
    where an earlier session did.

    Raises:
        LoclinError: other data or another model than those of the session before, a σ with which
            nothing moves, a loss that is not finite.
    """
    held, path = kept(record, name, lambda: asdict(_measured(scorer, splits, settings, progress)))
    try:
        law = held["forecast"]
        if law is not None:
            known = {k: law[k] and Estimate(**law[k]) for k in ("loss", "trace", "frobenius")}
            law = Forecast(**{**law, **known, "notes": tuple(law["notes"])})
        ready = Prepared(**{**held, "forecast": law})
    except (KeyError, TypeError) as error:
        raise LoclinError(
            f"expected what an earlier session measured in {path}, found {error}: delete it and "
            "run again"
        ) from error
    for part, digest in _hashes(splits).items():
        if ready.splits.get(part) != digest:
            raise LoclinError(
                f"expected the {part} examples that this search began with in {record.folder}, "
                "found others: give the same data, or choose another --out"
            )
    remedy = f"give the same model, or choose another --out than {record.folder}"
    check_same(ready.fingerprint, scorer.fingerprint, remedy)
    return ready


def kept(
    record: Record, name: str, make: Callable[[], Mapping[str, Any]]
) -> tuple[dict[str, Any], Path]:
    """What a JSON file of the record holds, and where it is; made and written where it is not there
    yet.
    """
    path = record.folder / name
    if not path.exists():
        record.write_text(name, json.dumps(make(), ensure_ascii=False, indent=1) + "\n")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))), path
    except (OSError, ValueError, TypeError) as error:
        raise LoclinError(
            f"expected JSON in {path}, found {error}: restore it, or search into another --out"
        ) from error


def _measured(
    scorer: Scorer, splits: Splits, settings: SearchSettings, progress: ProgressCallback
) -> Prepared:
    perturbed, law = scorer.perturbed, None
    (shown,) = candidates(1, settings.sigma[:1], seed=settings.seed)
    realised = {repr(s): perturbed.realised(replace(shown, sigma=s)) for s in settings.sigma}
    if settings.forecast:
        law = forecast(
            scorer.problem,
            perturbed.space,
            splits["select"],
            noise=perturbed.noise,
            basis=perturbed.basis,
            probes=settings.probes,
            seed=settings.seed,
            progress=lambda stage, share: progress(f"forecast: {stage}", share),
        )
    loss, score = scorer.own
    return Prepared(
        splits=_hashes(splits),
        fingerprint=scorer.fingerprint,
        loss=loss,
        score=score,
        forecast=law,
        realised=realised,
        sizes=dict(zip(perturbed.space.names, perturbed.space.sizes, strict=True)),
    )


def _hashes(splits: Splits) -> dict[str, str]:
    return {part: examples_hash(examples) for part, examples in splits.items()}
