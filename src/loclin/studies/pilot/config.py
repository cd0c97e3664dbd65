"""Settings of `loclin schedules`. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loclin.errors import LoclinError
from loclin.schedules.terms import SEQUENTIAL, SIMULTANEOUS, Optimiser, Terms
from loclin.studies.settings import BUILT_IN, check_counts, check_rates


@dataclass(frozen=True, kw_only=True)
class Config(Terms):
    """Find out how to train several tasks into one model: a short pilot of every schedule, then a
    table and a recommendation.

    From the model as it is (with a new LoRA adapter, or on its own weights) each schedule trains
    your tasks with the same batches and the same number of gradients, several times with other
    adapters, orders and splits of the data. The score that counts is that of the task that ends
    worst. Recommended is joint mixed batches or alternation, where one is shown to be less than
    0.05 worse than the best, otherwise the best; what cannot be told apart is said. A pilot is
    short: it tells what happens within its gradients, at its learning rate.

    Example: loclin schedules --model path/to/model --data A.jsonl B.jsonl
    """

    model: str
    """The model that is trained: a folder, a hub id, or a built-in model (sequences, statements).
    """
    data: tuple[str, ...]
    """What it is to learn: JSON Lines files or hub data sets, each with one task (named after the
    file) or several (named in the records). 60 % of the examples train, 20 % choose, 20 % test."""
    tasks: tuple[str, ...] = ()
    """Which of the tasks, in the order of sequential training; all by default."""

    space: str = "lora"
    """What is trained: lora; full; or a shell pattern of parameter names ("*attn*"; several
    separated by commas)."""
    rank: int = 8
    """LoRA rank."""
    alpha: int | None = None
    """LoRA alpha, the adapter's scale being alpha/rank; twice the rank by default."""
    targets: str = "all-linear"
    """LoRA targets: all-linear, or the last parts of module names, separated by commas
    ("q_proj,v_proj")."""
    optimiser: Optimiser = "adamw"
    """By which every schedule trains: adamw, or sgd (without momentum)."""
    lr: float = 1e-3
    """Its learning rate; take the one you train with (SGD takes tens of times as much as AdamW)."""
    schedules: tuple[str, ...] = (*SIMULTANEOUS, *SEQUENTIAL, "replay", "average")
    """Which, by name (with a space in quotes). A step for each task: alternating, joint mixed
    (batches of all tasks). A step for all, their gradients summed with weights: raw sum (1 each),
    norm-balanced (1/norm), PCGrad (conflicts projected out), equal decrease (all losses fall
    alike), loss-balanced (what has fallen least counts most). One task after the other: sequential,
    sequential reversed; mended: replay (old examples mixed in), consolidation (EWC), projection
    (out of the old task's gradients). Specialists merged: average, task arithmetic, TIES. "all"
    adds torchjd's: MGDA, UPGrad, IMTL-G, Aligned-MTL, CAGrad, Nash-MTL (pip install
    'loclin[schedules]')."""
    evaluations: int = 60
    """Gradients of one task's batch that every schedule may take; one that sums K tasks makes a
    K-th as many steps."""
    points: int = 4
    """Places of a learning curve."""
    seeds: int = 5
    """Repeated pilots: each has its own adapter, order and splits of the data."""
    seed: int = 0
    """The first pilot's seed; pilot r uses seed + r."""

    template: str | None = None
    """Prompt made from a record's fields: "{passage}\\nQuestion: {question}?\\nAnswer:"."""
    long: Literal["drop", "fail"] = "drop"
    """What happens to prompts longer than the model's context."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "float32"
    """Of the weights; small steps of full weights are rounded away below float32, those of LoRA
    factors are not."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: an accelerator where there is one, the CPU for the built-in models.
    """
    device_map: str | None = None
    """Spread a large model over devices by accelerate (auto, balanced) instead of --device."""
    trust_remote_code: bool = False
    """Run code that comes with a model. Read it first."""
    workers: int = 0
    """Pilots side by side on the CPU, one thread each; 0 takes every core. The record does not
    depend on it."""
    out: Path | None = None
    """Run folder; runs/schedules-MODEL by default. The same folder and settings go on where they
    stopped."""

    @property
    def entry(self) -> str:
        """Name of the pilot in a record."""
        return "schedules-pilot"

    def checked(self) -> Config:
        """This configuration, if it can be run.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        if not self.data:
            raise LoclinError(
                f"expected --data with the model {self.model!r}, found none: give a file for each "
                "task, such as --data A.jsonl B.jsonl"
            )
        if len(self.data) > 1 and any(name in BUILT_IN or name == "self" for name in self.data):
            raise LoclinError(
                "expected one built-in set of tasks or several files, found "
                f"{', '.join(self.data)}: give either"
            )
        if self.data == ("self",):
            raise LoclinError(
                "expected tasks to learn, found --data self, the model's own samples: give files"
            )
        if len({Path(name).resolve() for name in self.data}) < len(self.data):
            raise LoclinError(
                f"expected different files, found one twice in {' '.join(self.data)}: give a file "
                "for each task"
            )
        for name in self.data:
            if name.endswith((".jsonl", ".json")) and not Path(name).exists():
                raise LoclinError(
                    f"expected a file of task data, found nothing at {name}: check the path"
                )
        if len(set(self.tasks)) < len(self.tasks) or len(self.tasks) == 1:
            raise LoclinError(
                f"expected two different tasks or more, found {', '.join(self.tasks)}: change "
                "--tasks"
            )
        if self.dtype in ("bfloat16", "float16") and self.space != "lora":
            raise LoclinError(
                f"expected float32 for full weights, whose small steps {self.dtype} rounds away, "
                f"found --dtype {self.dtype}: "
                "use float32, or --space lora, whose factors stay in float32"
            )
        check_counts(self, ("seeds", "rank"))
        check_rates(self, ("lr",))
        if self.workers < 0:
            raise LoclinError(
                f"expected workers from 0 (every core), found {self.workers}: change --workers"
            )
        self.check_terms(max(len(self.tasks), 2))
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / f"schedules-{Path(self.model).name}"
