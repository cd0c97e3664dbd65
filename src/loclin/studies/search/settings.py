"""Settings of `loclin search` and `loclin search replay`. Imports nothing heavy, so that `--help`
is quick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from loclin.errors import LoclinError
from loclin.studies.checks import check_counts
from loclin.studies.settings import ModelSettings, Sizes, Work

ENSEMBLES = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class SearchSettings(ModelSettings):
    """Search around a model's weights at random, and know what the best candidate is worth.

    Every candidate is the model's weights plus noise of size σ, a function of a seed alone. All are
    scored on the select split; the best are scored again on validate, which chooses one candidate
    and one ensemble; these alone are scored on test, once. Before it begins, a forecast from
    gradient and curvature says what gain this N and σ will give, and which σ is best. Every score
    goes into ledger.jsonl as it comes: stopped or killed, the same command goes on.

    Example: loclin search --model sequences-small --task swap --n 200 --sigma 1e-3 2e-3
    """

    study: ClassVar[str] = "search"
    kind: ClassVar[str] = "search"
    in_process: ClassVar[bool] = True
    spread: ClassVar[bool] = True

    lowered: ClassVar[Mapping[str, int]] = {"n": 10, "select": 32, "validate": 32, "test": 64}
    scored: ClassVar[tuple[str, ...]] = ("test",)

    task: str | None = None
    """What is searched for; all tasks together by default."""
    n: int = 1000
    """N, candidates at each σ."""
    sigma: tuple[float, ...]
    """σ, the size of the noise on every coordinate (its root mean square); several are searched
    side by side, with the same seeds."""
    space: str = "full"
    """Weights that move: full; lora (the factors of an adapter); a shell pattern of parameter names
    ("*attn*"; several separated by commas); or prefix:K, the span of the first K AdamW updates on
    the train split."""
    noise: str = "gaussian"
    """gaussian; rademacher, +σ or −σ on every coordinate by one random bit, many times as quick to
    draw; lowrank:R, rank R on every matrix; or tied, which repeats one stream on every tensor as
    some public code does (to compare, not to use)."""
    antithetic: bool = False
    """Candidates in pairs of opposite signs that share a seed."""
    k: tuple[int, ...] = ENSEMBLES
    """Sizes of the ensembles that validate chooses from; they answer by majority vote. Of the
    default, those up to N."""
    temperature: float = 0.7
    """At which the model itself is sampled, as often as the ensemble is asked: the control of a
    vote."""

    select: int = 128
    """Examples that candidates are selected by."""
    validate: int = 128
    """Examples that choose among the selected."""
    test: int = 256
    """Examples that are asked once, in the end."""
    forecast: bool = True
    """Gradient and curvature before the search."""
    probes: int = 16
    """Random probes behind trace and norm of the Hessian, one Hessian-vector product each."""
    target_gain: float | None = None
    """A gain in nats per answer token: the forecast says how many candidates it takes."""

    seeds: int = 1
    """Searches with other candidates on the same splits; search s uses seed + s."""
    candidate_group: int = 8
    """Candidates that a worker is handed at a time. The record does not depend on it, but in the
    last digits with LoRA and at most 1,024 tokens: a group's candidates then share passes."""

    rank: int = 8
    """LoRA rank, with --space lora."""
    alpha: int | None = None
    """LoRA alpha, the adapter's scale being alpha/rank; twice the rank by default."""
    targets: str = "all-linear"
    """LoRA targets: all-linear, or the last parts of module names, separated by commas
    ("q_proj,v_proj")."""
    adapter: Path | None = None
    """Folder of a trained LoRA adapter to search around; a new one by default, whose B is zero."""

    @property
    def timed(self) -> bool:
        """For a budget alone: the first candidates tell the time, and the model is loaded once."""
        return bool(self.budget)

    def work(self, sizes: Sizes) -> list[Work]:
        """A candidate is scored on select; the best on validate; the chosen, and samples, once."""
        every, votes = self.seeds * self.n * len(self.sigma), sum(self.k) + max(self.k)
        probes = (self.probes + 1) * self.select if self.forecast else 0
        last = self.seeds * (votes * self.test + (max(self.k) + 1) * self.validate)
        return [
            Work(what="forecast", product=probes),
            Work(what=f"scoring {every} candidates", forward=1.3 * every * self.select),
            Work(what="choosing and testing", forward=last),
        ]

    def fingerprint(self) -> dict[str, Any]:
        """What decides the record."""
        return {k: v for k, v in super().fingerprint().items() if k != "candidate_group"}

    def checked(self) -> SearchSettings:
        """These settings, if they can be searched with; raises as `RunSettings.checked` does."""
        super().checked()
        if self.k == ENSEMBLES and self.n < max(self.k):
            return replace(self, k=tuple(k for k in self.k if k <= self.n)).checked()
        for expected, holds in self._rules().items():
            if not holds:
                raise LoclinError(f"expected {expected}")
        return self

    def _check(self) -> None:
        super()._check()
        check_counts(self, ("n", "select", "validate", "test", "seeds", "candidate_group", "rank"))
        check_counts(self, ("probes",), least=2)  # or their spread would not be known

    def _rules(self) -> dict[str, bool]:
        sigmas, ks, gain = list(self.sigma), list(self.k), self.target_gain
        off = next((sigma for sigma in sigmas if not 0 < sigma < math.inf), None)
        return {
            f"σ above 0, found {off}: change --sigma": off is None,
            f"different σ, at least one, found {sigmas}: change --sigma": (
                0 < len(set(sigmas)) == len(sigmas)
            ),
            f"an even number of candidates for pairs, found {self.n}: change --n": (
                not self.antithetic or self.n % 2 == 0
            ),
            f"ensembles of 1 to N = {self.n} candidates, found k = {ks}: change --k or raise --n": (
                len(ks) > 0 and min(ks) >= 1 and max(ks) <= self.n
            ),
            f"a temperature above 0, found {self.temperature}: change --temperature": (
                0 < self.temperature < math.inf
            ),
            f"a gain above 0, found {gain}: change --target-gain": (
                gain is None or 0 < gain < math.inf
            ),
            f"--space lora with an adapter, found --space {self.space}: give --space lora, or "
            "merge the adapter": self.adapter is None or self.space == "lora",
        }


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """Rebuild the candidates of a finished search from their seeds, bit for bit, and check them
    against the record.

    The weights of each member of the ensemble (and of the best candidate) are built again, held
    against the hash that was kept, and asked the select examples, whose outcomes are held against
    the ledger.

    Example: loclin search replay runs/search-sequences-small --out members
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """The run folder of the search."""
    out: Path | None = None
    """Folder for what is rebuilt: a safetensors delta for each candidate, or a peft adapter."""
    index: int | None = None
    """Rebuild this candidate of the ledger alone, whichever it is."""
    search: int = 0
    """Of which search, where there were several --seeds."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: an accelerator where there is one."""
