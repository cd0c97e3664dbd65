"""A search, start to record: divide, forecast, score every candidate into the ledger, choose, test
once, export. The model is loaded once and handed on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from loclin.errors import LoclinError
from loclin.models import Problem, load
from loclin.models.lora import Lora
from loclin.models.pretrained import resolved
from loclin.run.dispatch import Place
from loclin.run.record import Record
from loclin.run.rows import Part, Row
from loclin.run.runner import Session
from loclin.run.workers import one_thread
from loclin.search.candidate import weights_hash
from loclin.search.ensemble import compare
from loclin.search.export import Ensemble, member, write_candidate
from loclin.search.noise import Noise
from loclin.search.random_search import SearchResult, random_search
from loclin.search.scorer import Scorer
from loclin.search.spec import SearchSpec
from loclin.search.splits import PARTS, askable, learned
from loclin.studies.known import known
from loclin.studies.search.page import forecast_lines
from loclin.studies.search.prepared import Prepared, Splits, kept, prepared
from loclin.studies.search.rows import (
    compared_rows,
    forecast_rows,
    histogram_rows,
    observed_rows,
    over_searches,
    winner_rows,
)
from loclin.studies.search.settings import SearchSettings
from loclin.studies.search.trial import Choice, locked_choice, trial_of
from loclin.tasks.example import dealt

BASIS = "basis.safetensors"


def measure(settings: SearchSettings, run: int, session: Session) -> Part:
    """The whole search. Everything that is finished is kept in the record's folder, from where the
    same call goes on.

    Raises:
        LoclinError: a model or data that cannot be read, splits that are too small or overlap,
            files of another search.
    """
    assert session.record is not None
    noise = Noise.parse(settings.noise)
    session.progress("reading model and data", 0.0)
    problem = session.problem or load(settings, seed=settings.seed, progress=session.progress)
    spec, splits, notes = described(settings, noise, problem)
    with one_thread(spec.device):
        before = known(problem, settings, progress=session.progress)
        for note in before.notes:
            session.note(note)
        spec = replace(spec, basis=kept_basis(session.record, settings.entry))
        search = _Search(
            settings=settings,
            session=session,
            record=session.record,
            spec=spec,
            scorer=spec.build(problem),
            splits=splits,
        )
        alike = search.scorer.problem.one_answer(splits["select"])
        rows, more = search.rows()
    notes = list(filter(None, dict.fromkeys([*before.notes, *notes, alike, *more])))
    return Part(rows=[*before.rows, *rows], arrays={}, notes=notes)


def described(
    settings: SearchSettings, noise: Noise, problem: Problem
) -> tuple[SearchSpec, Splits, list[str]]:
    """What candidates are scored with, the three parts of the data, and notes on them."""
    prefix, task = settings.space.startswith("prefix:"), settings.task
    without = learned(settings.model, settings.data) or (("train",) if prefix else ())
    every = askable(problem.examples, task=task, without=without)
    sizes = {part: getattr(settings, part) for part in PARTS}
    splits = dealt(every, sizes, seed=settings.seed, purpose="search split")
    train = problem.examples["train"] if prefix else {}
    spec = SearchSpec(
        options=resolved(settings),
        seed=settings.seed,
        space=settings.space,
        noise=noise,
        lora=Lora(rank=settings.rank, alpha=settings.alpha, targets=settings.targets),
        adapter=settings.adapter,
        examples=splits["select"],
        train_examples=tuple(e for t, part in train.items() if task in (None, t) for e in part),
    )
    note = (
        f"{settings.select} examples select, {settings.validate} choose, {settings.test} test, of "
        f"{len(every)}; no group in two of them"
    )
    return spec, splits, [*problem.notes, note]


def named(name: str, search: int) -> str:
    """A file of one of several searches: the first has the plain name.

    >>> named("ledger.jsonl", 0), named("ledger.jsonl", 2), named("best", 1)
    ('ledger.jsonl', 'ledger-2.jsonl', 'best-1')
    """
    stem, dot, ending = name.partition(".")
    return f"{stem}-{search}{dot}{ending}" if search else name


def kept_basis(record: Record, entry: str) -> Tensor | None:
    """The basis of "prefix:K" of an earlier session: an accelerator may not make the very same
    again.

    Raises:
        LoclinError: a file that cannot be read.
    """
    path = record.folder / entry / BASIS
    if not path.exists():
        return None
    try:
        return load_file(path)["basis"]
    except (OSError, SafetensorError, KeyError) as error:
        raise LoclinError(
            f"expected a basis in {path}, found {error}: restore it, or search into another --out"
        ) from error


def _keep_basis(path: Path, basis: Tensor | None) -> None:
    if basis is not None and not path.exists():
        scratch = path.with_name(f".{path.name}")
        save_file({"basis": basis.detach().cpu().contiguous()}, scratch)
        scratch.replace(path)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Search:
    """The stages of one command, with the one model that all of them use."""

    settings: SearchSettings
    session: Session
    record: Record
    spec: SearchSpec
    scorer: Scorer
    splits: Splits

    def rows(self) -> tuple[list[Row], list[str]]:
        """Every row of the record, and what happened on the way, in sentences."""
        settings, session = self.settings, self.session
        path = f"{settings.entry}/prepared.json"
        ready = prepared(self.record, path, self.scorer, self.splits, settings, session.progress)
        basis_file = self.record.folder / settings.entry / BASIS
        _keep_basis(basis_file, self.scorer.perturbed.basis)
        rows, law = list[Row](), ready.forecast
        if law is not None:
            k, gain = self.spec.prefix, settings.target_gain
            rows = forecast_rows(law, n=settings.n, sigmas=settings.sigma, k=k, target_gain=gain)
        for line in forecast_lines(rows, asdict(settings)):
            session.note(line)
        with self.scorer.perturbed:
            found = [self._scored(s) for s in range(settings.seeds)]
            session.progress("choosing and testing", 1.0)
            each = [row for s, result in enumerate(found) for row in self._ended(s, result, ready)]
        every = [outcome for result in found for outcome in result.outcomes]
        rows += ready.rows()
        rows += histogram_rows(every, loss=ready.loss, sigmas=settings.sigma, forecast=law)
        notes = [*(law.notes if law else ()), *(note for result in found for note in result.notes)]
        return [*rows, *each, *over_searches(each)], notes

    def _scored(self, search: int) -> SearchResult:
        """All candidates of one search; those that are in its ledger are not scored again."""
        settings = self.settings
        of = f" of search {search + 1} of {settings.seeds}" if settings.seeds > 1 else ""
        return random_search(
            self.scorer,
            spec=self.spec,
            n=settings.n,
            sigmas=settings.sigma,
            seed=settings.seed + search,
            antithetic=settings.antithetic,
            place=Place(workers=settings.workers, ray=settings.ray),
            group=settings.candidate_group,
            ledger=self.record.folder / named("ledger.jsonl", search),
            progress=lambda stage, share: self.session.progress(f"{stage}{of}", share),
            note=self.session.note,
        )

    def _ended(self, search: int, result: SearchResult, ready: Prepared) -> list[Row]:
        """Choose, test, export; the rows of one search."""
        settings, outcomes, seed = self.settings, result.outcomes, self.settings.seed + search
        files = (f"{settings.entry}/{named(n, search)}" for n in ("locked.json", "test.json"))
        locked, tested = (partial(kept, self.record, name) for name in files)
        choice, lock = locked_choice(
            locked, self.scorer, self.splits, outcomes, settings.k, seed=seed
        )
        selected = next(o.score for o in outcomes if o.candidate == choice.best)
        (base, *others), winner = trial_of(
            tested,
            self.scorer,
            self.splits,
            choice,
            lock,
            selected=(selected, ready.score),
            temperature=settings.temperature,
            seed=seed,
        )
        self._export(choice, search)
        groups = [e.group or e.prompt for e in self.splits["test"]]
        compared = compare(others, base, groups=groups, seed=settings.seed)
        law, sigmas = ready.forecast, settings.sigma
        return [
            *observed_rows(outcomes, loss=ready.loss, sigmas=sigmas, forecast=law, search=search),
            *compared_rows(compared, search=search),
            *winner_rows(winner, search=search),
        ]

    def _export(self, choice: Choice, search: int) -> None:
        """The best candidate as weights, the ensemble as seeds."""
        scorer, perturbed, folder = self.scorer, self.scorer.perturbed, self.record.folder
        write_candidate(scorer.problem, perturbed, choice.best, folder / named("best", search))
        ensemble = Ensemble(
            noise=str(perturbed.noise),
            base=weights_hash(perturbed.base),
            fingerprint=scorer.fingerprint,
            best=member(perturbed, choice.best),
            members=tuple(member(perturbed, c) for c in choice.members),
        )
        self.record.write_text(named("ensemble.json", search), ensemble.text())
