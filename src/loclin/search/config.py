"""Settings of `loclin search` and `loclin search replay`. Imports nothing heavy, so that `--help`
is quick.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from loclin.errors import LoclinError

#: Settings that say where and how fast, not what: two searches that differ in these alone give the
#: same record.
NOT_WHAT = ("out", "workers", "ray")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Search around a model's weights at random, and know what the best candidate is worth.

    Every candidate is the model's weights plus noise of size σ, a function of a seed alone. All are
    scored on the select split; the best are scored again on validate, which chooses one candidate
    and one ensemble; these alone are scored on test, once. Before it begins, a forecast from
    gradient and curvature says what gain this N and σ will give, and which σ is best. Every score
    goes into ledger.jsonl as it comes: stopped or killed, the same command goes on.

    Example: loclin search --model sequences-small --task swap --n 200 --sigma 1e-3 2e-3 --space
    full
    """

    model: str
    """The model that is searched around: a folder, a hub id, or a built-in model (sequences,
    statements)."""
    data: str | None = None
    """What it is asked: a JSON Lines file, a hub data set (google/boolq), sequences, statements, or
    self. A built-in model brings its own."""
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
    """gaussian; lowrank:R, rank R on every matrix, cheaper; or tied, which repeats one stream on
    every tensor as some public code does (to compare, not to use)."""
    antithetic: bool = False
    """Candidates in pairs of opposite signs that share a seed."""
    k: tuple[int, ...] = (1, 5, 10)
    """Sizes of the ensembles that validate chooses from; they answer by majority vote."""
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
    wish: float | None = None
    """A gain in nats per answer token: the forecast says how many candidates it takes."""

    seed: int = 0
    """Of the splits and of the first search."""
    seeds: int = 1
    """Searches with other candidates on the same splits; search s uses seed + s."""
    workers: int = 0
    """Candidates are scored by so many processes on the CPU, one thread each; 0 takes every core.
    The ledger does not depend on it."""
    ray: str | None = None
    """local, auto, or the address of a Ray cluster: one model per Ray worker. pip install
    'loclin[ray]'."""
    group: int = 8
    """Consecutive candidates that a worker is given at a time, and that go through the model
    together where that is faster."""
    batched: Literal["auto", "yes", "no"] = "auto"
    """Whether candidates of a group go through the model together; auto times both."""
    out: Path | None = None
    """Run folder; runs/search-MODEL by default. The same folder and settings go on where they
    stopped."""

    rank: int = 8
    """LoRA rank, with --space lora."""
    alpha: int | None = None
    """LoRA alpha, the adapter's scale being alpha/rank; twice the rank by default."""
    targets: str = "all-linear"
    """LoRA targets: all-linear, or the last parts of module names, separated by commas
    ("q_proj,v_proj")."""
    adapter: Path | None = None
    """Folder of a trained LoRA adapter to search around; a new one by default, whose B is zero."""
    template: str | None = None
    """Prompt made from a record's fields: "{passage}\\nQuestion: {question}?\\nAnswer:"."""
    long: Literal["drop", "fail"] = "drop"
    """What happens to prompts longer than the model's context."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "float32"
    """Of the weights; half precision rounds small noise away, and the page says how much is left of
    it."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: an accelerator where there is one."""
    device_map: str | None = None
    """Spread a large model over devices by accelerate (auto, balanced) instead of --device."""
    trust_remote_code: bool = False
    """Run code that comes with a model. Read it first."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        name = re.sub(r"[^A-Za-z0-9.]+", "-", Path(self.model).name).strip("-.")
        return self.out or Path("runs") / f"search-{name}"

    def checked(self) -> Config:
        """This configuration, if it can be searched with.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        least = {"probes": 2}  # or their spread would not be known
        for name in ("n", "select", "validate", "test", "seeds", "group", "probes", "rank"):
            if getattr(self, name) < least.get(name, 1):
                raise LoclinError(
                    f"expected {name} of at least {least.get(name, 1)}, found "
                    f"{getattr(self, name)}: change --{name}"
                )
        self._check_noise()
        if not self.k or min(self.k) < 1 or max(self.k) > self.n:
            raise LoclinError(
                f"expected ensembles of 1 to N = {self.n} candidates, found k = {list(self.k)}: "
                "change --k or raise --n"
            )
        if self.workers < 0:
            raise LoclinError(
                f"expected workers from 0 (every core), found {self.workers}: change --workers"
            )
        if not 0 < self.temperature < math.inf:
            raise LoclinError(
                f"expected a temperature above 0, found {self.temperature}: change --temperature"
            )
        if self.wish is not None and not 0 < self.wish < math.inf:
            raise LoclinError(f"expected a wished gain above 0, found {self.wish}: change --wish")
        if self.adapter is not None and self.space != "lora":
            raise LoclinError(
                f"expected --space lora with an adapter, found --space {self.space}: give --space "
                "lora, or merge the adapter"
            )
        if self.ray and self.device_map:
            raise LoclinError(
                f"expected one GPU for each Ray worker, found --device-map {self.device_map}: "
                "leave it out, or search without --ray"
            )
        if self.data and self.data.endswith((".jsonl", ".json")) and not Path(self.data).exists():
            raise LoclinError(
                f"expected a file of task data, found nothing at {self.data}: check the path"
            )
        return self

    def _check_noise(self) -> None:
        for sigma in self.sigma:
            if not 0 < sigma < math.inf:
                raise LoclinError(f"expected σ above 0, found {sigma}: change --sigma")
        if not self.sigma or len(set(self.sigma)) < len(self.sigma):
            raise LoclinError(
                f"expected different σ, at least one, found {list(self.sigma)}: change --sigma"
            )
        if self.antithetic and self.n % 2:
            raise LoclinError(
                f"expected an even number of candidates for pairs, found {self.n}: change --n"
            )
        if self.antithetic and self.group % 2:
            raise LoclinError(
                f"expected groups that hold whole pairs, found --group {self.group}: give an even "
                "one"
            )


@dataclass(frozen=True, kw_only=True)
class Replay:
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
