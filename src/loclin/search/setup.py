"""What a search scores candidates with: a description that any process builds the same worker from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.subspace import Subspace
from loclin.models.builtin import BUILT_IN, built_in_folder
from loclin.models.exam import Exam
from loclin.models.lora import Lora, attach
from loclin.models.pretrained import How, read_pretrained
from loclin.models.problem import Problem
from loclin.parameters import ParameterSpace
from loclin.search.adapter import read_adapter
from loclin.search.candidate import Candidate, Perturbed
from loclin.search.executors import one_thread
from loclin.search.export import weights_hash
from loclin.search.noise import Noise
from loclin.search.scoring import Outcome, score
from loclin.search.splits import examples_hash
from loclin.seeds import derived
from loclin.tasks.example import Example
from loclin.training import make_optimiser, minibatches, record

VERIFY_EVERY = 100  # groups between two looks at the hashes of the weights


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A search's model, its coordinates, and what its candidates are asked. It holds the examples
    themselves: workers need no data.

    Attributes:
        model: a built-in name, a hub id, or a folder that every worker sees.
        how: how it is loaded.
        seed: of a built-in model, of a new adapter's factors, and of the training behind
            `prefix:K`.
        space: "full"; "lora"; "prefix:K", the span of the first K AdamW updates on `lessons` from
            the model's own weights; or a shell pattern of parameter names.
        noise: of the candidates.
        lora: the new adapter of "lora".
        adapter: folder of a trained adapter in its place. A new one has B = 0: noise on A then does
            nothing by itself, and the loss moves with the noise on B.
        examples: candidates are scored on these.
        lessons: the train split of "prefix:K"; shares no group with what candidates are judged by.
        prefix_lr, prefix_batch: AdamW's learning rate and the examples of a step of "prefix:K".
        batched: whether the candidates of a group go through the model together.
        basis: of "prefix:K", where it was made already: workers then need not train, and all have
            the same.
        expected: `Worker.fingerprint` of the search's own model, which every worker has to have.
    """

    model: str
    how: How = field(default_factory=How)
    seed: int = 0
    space: str = "full"
    noise: Noise = field(default_factory=Noise)
    lora: Lora = field(default_factory=Lora)
    adapter: Path | None = None
    examples: tuple[Example, ...]
    lessons: tuple[Example, ...] = ()
    prefix_lr: float = 3e-4
    prefix_batch: int = 24
    batched: bool = False
    basis: Float[Tensor, "k D"] | None = field(default=None, compare=False)
    expected: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def device(self) -> str:
        """The kind of device: "cpu", "cuda", ..."""
        return "cuda" if self.how.device_map else self.how.device.split(":")[0]

    @property
    def prefix(self) -> int | None:
        """K of "prefix:K", None for other spaces.

        Raises:
            LoclinError: a K that is not a number from 1.
        """
        kind, colon, k = self.space.partition(":")
        if kind != "prefix":
            return None
        if not (colon and k.isascii() and k.isdigit() and int(k)):
            raise LoclinError(
                f"expected prefix:K with K of at least 1, found --space {self.space}: change it"
            )
        return int(k)

    def build(self) -> Worker:
        """Load the model, choose the coordinates, and be ready to score.

        On the CPU the basis of "prefix:K" is made with one thread, so that every worker of one kind
        of machine has the same; an accelerator may round it differently in each.

        Raises:
            LoclinError: whatever is wrong with model, adapter, space or examples.
        """
        k = self.prefix
        recipe, name = BUILT_IN.get(self.model), self.model
        if recipe is not None:
            own = 0 if recipe.shared else self.seed
            name = str(built_in_folder(self.model, seed=own, progress=lambda text, share: None))
        network, tokenizer = read_pretrained(name, self.how)
        asked: Mapping[str, Mapping[str, tuple[Example, ...]]] = {"select": {"all": self.examples}}
        problem = Problem(model=network, tokenizer=tokenizer, examples=asked)
        if self.space == "lora":
            adapted = (
                read_adapter(network, self.adapter)
                if self.adapter
                else attach(network, self.lora, seed=self.seed)
            )
            if self.how.dtype == "float64":
                adapted.double()  # peft's factors are float32 whatever the model's dtype
            problem = replace(problem, model=adapted)
            space = ParameterSpace(adapted, "*.lora_*")
        else:
            space = ParameterSpace(network, "*" if self.space == "full" or k else self.space)
        if any(p.is_meta for p in network.parameters()):
            raise LoclinError(
                f"expected room for all weights of {self.model}, found some that accelerate left "
                "on disk: give more memory, or a "
                "smaller --dtype"
            )
        basis = (
            self.basis.to(space.read())
            if self.basis is not None
            else prefix_basis(problem, space, self)
            if k
            else None
        )
        perturbed = Perturbed(space, self.noise, basis=basis)
        worker = Worker(self, problem, perturbed, Exam.of(problem, self.examples))
        if self.expected is not None:
            check_same(
                self.expected,
                worker.fingerprint(),
                "score with what the search began with; give a folder or a --revision",
            )
        return worker

    def fingerprint(self) -> dict[str, Any]:
        """Of the worker that it builds: `Worker.fingerprint`."""
        return self.build().fingerprint()


class Worker:
    """A model that scores candidates.

    Attributes:
        setup: what it was built from.
        problem: the model and its tokenizer.
        perturbed: the coordinates that are searched, at their base whenever nothing is scored.
        exam: the examples that candidates are asked.
        notes: what happened, in sentences.
    """

    def __init__(self, setup: Setup, problem: Problem, perturbed: Perturbed, exam: Exam) -> None:
        self.setup, self.problem, self.perturbed, self.exam = setup, problem, perturbed, exam
        self.notes: list[str] = []
        self._fingerprint: dict[str, Any] | None = None
        self._parts, self._at_once, self._scored_groups = [exam], 0, 0

    def score(self, group: Sequence[Candidate]) -> list[Outcome]:
        """The outcome of every candidate of a group, which depends on the group alone.

        Where the device runs out of memory, fewer candidates go through the model together, then
        fewer examples; a note says so. Other batches round differently, as any do on an
        accelerator.

        Raises:
            LoclinError: there is no room for one candidate and one example; or the model does not
                return to its base.
        """
        tight = False
        while True:
            try:
                outcomes = self._scored(group)
                break
            except torch.OutOfMemoryError as error:
                why = " ".join(str(error).split())[:200]
            self._tighten(len(group), why)
            tight = True
        if tight:
            self.notes.append(
                f"out of memory on {self.setup.how.device}: from here on {self._at_once} "
                "candidates and "
                f"{len(self._parts[0].batch)} examples at a time"
            )
        if self._scored_groups % VERIFY_EVERY == 0:
            self.perturbed.verify()
        self._scored_groups += 1
        return outcomes

    def fingerprint(self) -> dict[str, Any]:
        """What decides outcomes beside the candidates: hashes of weights, configuration and
        questions, and the settings in words.

        Taken once: the weights are at their base whenever nothing is scored, and large models take
        seconds.
        """
        if self._fingerprint is None:
            self._fingerprint = self._taken()
        return self._fingerprint

    def _taken(self) -> dict[str, Any]:
        model, space = self.problem.model, self.perturbed.space
        chosen = dict(zip(space.names, space.parameters, strict=True))
        others = {
            n: t for n, t in [*model.named_parameters(), *model.named_buffers()] if n not in chosen
        }
        basis = self.perturbed.basis
        return {
            "searched weights": weights_hash(chosen),
            "other weights": weights_hash(others),
            "configuration": _configuration(self.problem),
            "space": self.setup.space,
            "coordinates": space.dimension if basis is None else len(basis),
            "basis": None if basis is None else weights_hash({"basis": basis}),
            "noise": str(self.setup.noise),
            "dtype": str(space.parameters[0].dtype).removeprefix("torch."),
            "device": self.setup.device,
            "batched": self.setup.batched,
            "examples": len(self.setup.examples),
            "questions": examples_hash(self.setup.examples),
            "tokens": weights_hash(_tokens(self.exam)),
        }

    def _scored(self, group: Sequence[Candidate]) -> list[Outcome]:
        size = self._at_once or len(group)
        outcomes: list[Outcome] = []
        for start in range(0, len(group), size):
            some = group[start : start + size]
            parts = [
                score(self.perturbed, part, some, batched=self.setup.batched)
                for part in self._parts
            ]
            outcomes += parts[0] if len(parts) == 1 else self._joined(parts)
        return outcomes

    def _joined(self, parts: Sequence[Sequence[Outcome]]) -> list[Outcome]:
        """Outcomes on parts of the examples as outcomes on all."""
        tokens = np.array([part.tokens.sum() for part in self._parts])
        return [
            Outcome(
                candidate=some[0].candidate,
                loss=float(np.dot(tokens, [o.loss for o in some]) / tokens.sum()),
                right=np.concatenate([o.right for o in some]),
            )
            for some in zip(*parts, strict=True)
        ]

    def _tighten(self, candidates: int, why: str) -> None:
        """Half the candidates in a pass; where that is one, half the examples."""
        if self.setup.device == "cuda":
            torch.cuda.empty_cache()
        at_once = self._at_once or (candidates if self.setup.batched else 1)
        examples = self.setup.examples
        if at_once > 1:
            self._at_once = at_once // 2
            return
        self._at_once = 1
        size = len(self._parts[0].batch) // 2
        if not size:
            raise LoclinError(
                f"expected room for one candidate and one example on {self.setup.how.device}, "
                f"found too little ({why}): give "
                "a smaller --dtype, another --device, or shorter examples"
            )
        self._parts = [
            Exam.of(self.problem, examples[start : start + size])
            for start in range(0, len(examples), size)
        ]


def check_same(
    kept: Mapping[str, Any], found: Mapping[str, Any], remedy: str, *, but: Sequence[str] = ()
) -> None:
    """Raise for a model or data other than those of the search, naming the first difference."""
    for name, value in kept.items():
        if name not in but and found.get(name) != value:
            raise LoclinError(
                f"expected the model and data of the search, found others ({name} is {value!r} in "
                f"the record, {found.get(name)!r} "
                f"here): {remedy}"
            )


def prefix_basis(problem: Problem, space: ParameterSpace, setup: Setup) -> Float[Tensor, "k D"]:
    """Orthonormal rows that span the first K AdamW updates of training on the lessons, from where
    the model stands and back.

    The order of the examples is drawn by the setup's seed. Fewer than K rows where the updates
    depend on each other.

    Raises:
        LoclinError: no lessons, lessons that share a group with the examples that candidates are
            scored on, weights in half precision, or a loss that is not finite.
    """
    k = setup.prefix
    assert k is not None
    if not setup.lessons:
        raise LoclinError(
            "expected examples to train a prefix on, found none: give data with a train split"
        )
    asked = {e.group or e.prompt for e in setup.examples}
    shared = next(
        (e.group or e.prompt for e in setup.lessons if (e.group or e.prompt) in asked), None
    )
    if shared is not None:
        raise LoclinError(
            "expected a prefix trained on other groups than candidates are scored on, found "
            f"{shared[:60]!r} in both: divide "
            "the data by group"
        )
    if space.parameters[0].dtype.itemsize < 4:
        raise LoclinError(
            f"expected weights of at least float32 for {setup.space}, whose updates half precision "
            "rounds away, found "
            f"{setup.how.dtype}: change --dtype"
        )
    with one_thread(setup.device), space.restored():
        data = problem.collate(setup.lessons)
        order = derived(setup.seed, "search prefix")
        batches = minibatches(data, min(setup.prefix_batch, len(data)), seed=order)
        optimiser = make_optimiser("adamw", space, setup.prefix_lr)
        updates = record(problem.model, space, batches, optimiser, k).updates
        return Subspace.spanned_by(updates).basis


def _configuration(problem: Problem) -> str:
    """A digest of what else the passes depend on: the architecture's settings, and how an adapter
    is scaled.
    """
    config = problem.model.config.to_diff_dict()
    told = {
        n: v
        for n, v in config.items()
        if n not in ("transformers_version", "_name_or_path", "dtype")
    }
    if isinstance(problem.model, PeftModel):
        adapter = asdict(problem.model.active_peft_config)
        told["adapter"] = {
            n: adapter[n]
            for n in ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
        }
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _tokens(exam: Exam) -> dict[str, Tensor]:
    """The questions as the model is given them."""
    batches = (
        {"answers": exam.batch}
        if exam.choices is None
        else {"answers": exam.batch, "options": exam.choices.batch}
    )
    names = ("input_ids", "attention_mask", "labels")
    return {
        f"{kind} {name}": getattr(batch, name) for kind, batch in batches.items() for name in names
    }
