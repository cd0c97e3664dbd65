"""A loaded model that scores candidates: what every process of a search has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from loclin.errors import LoclinError
from loclin.models.evaluation import EvalSet
from loclin.models.problem import Problem
from loclin.parameters import ParameterSpace
from loclin.progress import ProgressCallback, silent
from loclin.search.candidate import Candidate, Perturbed, weights_hash
from loclin.search.noise import Noise
from loclin.search.scoring import Outcome, score
from loclin.search.splits import examples_hash
from loclin.search.stacked import score_stacked, stacks
from loclin.tasks.example import Example

VERIFY_EVERY = 100  # groups between two looks at the hashes of the weights
#: What of an adapter's settings changes its passes.
ADAPTER = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")


class Scorer:
    """Scores candidates around where a model stands: a `run.workers.Worker`, and the `Job` of this
    process, which has built it.

    Args:
        problem: the model and its tokenizer.
        space: the coordinates that are searched.
        examples: what candidates are asked.
        noise: of the candidates.
        basis: orthonormal rows that candidates lie in the span of.

    Attributes:
        perturbed: the coordinates, at their base whenever nothing is scored.
        eval_set: the examples as the model is given them.
        notes: what happened, in sentences.
    """

    def __init__(
        self,
        problem: Problem,
        space: ParameterSpace,
        examples: Sequence[Example],
        *,
        noise: Noise | None = None,
        basis: Float[Tensor, "k D"] | None = None,
    ) -> None:
        self.problem, self.examples, self.notes = problem, tuple(examples), list[str]()
        self.perturbed = Perturbed(space, noise or Noise(), basis=basis)
        self.eval_set = EvalSet.of(problem, self.examples)
        self._parts, self._groups, self._apart = [self.eval_set], 0, False

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda", ..."""
        return str(self.problem.model.device.type)

    def build(self) -> Scorer:
        """Itself."""
        return self

    @cached_property
    def own(self) -> tuple[float, float]:
        """Loss and score of the model itself, as those of an `Outcome`."""
        losses, right = self.eval_set.answers()
        return float(losses.sum()) / float(self.eval_set.tokens.sum()), float(right.double().mean())

    @cached_property
    def stacks(self) -> bool:
        """Whether the candidates of a group share their forward passes."""
        return stacks(self.perturbed, self.eval_set)

    def do(self, item: Sequence[Candidate], progress: ProgressCallback = silent) -> list[Outcome]:
        """Score a group of candidates; every outcome depends on its candidate alone, up to the
        round-off of stacked passes.

        Where the device runs out of memory, candidates are no longer stacked, then fewer examples
        go through the model together; a note says so. Other batches round differently, as any do
        on an accelerator.

        Raises:
            LoclinError: there is no room for one example; or the model does not return to its base.
        """
        parts, each = self._parts, None
        while each is None:
            try:
                each = [self._scored(part, item) for part in self._parts]
            except torch.OutOfMemoryError as error:
                why = " ".join(str(error).split())[:200]
            if each is None and self._together(item):
                self._apart = True
                self.notes.append(
                    f"out of memory on {self.problem.model.device}: from here on one candidate at "
                    "a time"
                )
            elif each is None:
                self._halve(why)
        if self._parts is not parts:
            self.notes.append(
                f"out of memory on {self.problem.model.device}: from here on "
                f"{len(self._parts[0].batch)} examples at a time"
            )
        if self._groups % VERIFY_EVERY == 0:
            self.perturbed.verify()
        self._groups += 1
        return each[0] if len(each) == 1 else self._joined(each)

    def _together(self, item: Sequence[Candidate]) -> bool:
        return len(item) > 1 and not self._apart and self.stacks

    def _scored(self, part: EvalSet, item: Sequence[Candidate]) -> list[Outcome]:
        return (score_stacked if self._together(item) else score)(self.perturbed, part, item)

    def _halve(self, why: str) -> None:
        """Half as many examples at a time."""
        if self.device == "cuda":
            torch.cuda.empty_cache()
        size = len(self._parts[0].batch) // 2
        if not size:
            raise LoclinError(
                f"expected room for one candidate and one example on {self.problem.model.device}, "
                f"found too little ({why}): give a smaller --dtype, another --device, or shorter "
                "examples"
            )
        starts = range(0, len(self.examples), size)
        self._parts = [EvalSet.of(self.problem, self.examples[i : i + size]) for i in starts]

    def _joined(self, each: Sequence[Sequence[Outcome]]) -> list[Outcome]:
        """Outcomes on parts of the examples as outcomes on all."""
        tokens = np.array([part.tokens.sum() for part in self._parts])
        return [
            Outcome(
                candidate=parts[0].candidate,
                loss=float(np.dot(tokens, [o.loss for o in parts]) / tokens.sum()),
                right=np.concatenate([o.right for o in parts]),
            )
            for parts in zip(*each, strict=True)
        ]

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What decides outcomes beside the candidates: hashes of weights, configuration and
        questions, and the settings in words.

        Taken once: the weights are at their base whenever nothing is scored, and large models take
        seconds.
        """
        model, perturbed = self.problem.model, self.perturbed
        every, basis = [*model.named_parameters(), *model.named_buffers()], perturbed.basis
        stacked = {"stacked": True} if self.stacks else {}
        return {
            "searched weights": weights_hash(perturbed.tensors),
            "other weights": weights_hash({n: t for n, t in every if n not in perturbed.tensors}),
            "configuration": _configuration(self.problem),
            "coordinates": perturbed.space.dimension if basis is None else len(basis),
            "basis": None if basis is None else weights_hash({"basis": basis}),
            "noise": str(perturbed.noise),
            "dtype": str(perturbed.space.parameters[0].dtype).removeprefix("torch."),
            "device": self.device,
            "examples": len(self.examples),
            "questions": examples_hash(self.examples),
            "tokens": weights_hash(_tokens(self.eval_set)),
            **stacked,
        }

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, the model leaves its GPU to other processes and waits in the CPU's memory."""
        home = self.problem.model.device
        if home.type != "cuda":
            yield
            return
        self._move(torch.device("cpu"))
        torch.cuda.empty_cache()
        try:
            yield
        finally:
            self._move(home)

    def _move(self, device: torch.device) -> None:
        model, perturbed = self.problem.model, self.perturbed
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.to(device)
        perturbed.begin()
        perturbed.basis = None if perturbed.basis is None else perturbed.basis.to(device)


def check_same(
    kept: Mapping[str, Any], found: Mapping[str, Any], remedy: str, *, but: Sequence[str] = ()
) -> None:
    """Whether a fingerprint is that of a search.

    Raises:
        LoclinError: another model or other data; the first difference is named.
    """
    for name, value in kept.items():
        if name not in but and found.get(name) != value:
            raise LoclinError(
                "expected the model and data of the search, found others "
                f"({name} is {value!r} in the record, {found.get(name)!r} here): {remedy}"
            )


def _configuration(problem: Problem) -> str:
    """A digest of what else the passes depend on: the architecture's settings, and how an adapter
    is scaled.
    """
    names = ("transformers_version", "_name_or_path", "dtype")
    settings = {n: v for n, v in problem.model.config.to_diff_dict().items() if n not in names}
    if isinstance(problem.model, PeftModel):
        adapter = asdict(problem.model.active_peft_config)
        settings["adapter"] = {n: adapter[n] for n in ADAPTER}
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _tokens(eval_set: EvalSet) -> dict[str, Tensor]:
    """The questions as the model is given them."""
    batches = {"answers": eval_set.batch}
    if eval_set.choices is not None:
        batches["options"] = eval_set.choices.batch
    names = ("input_ids", "attention_mask", "labels")
    return {f"{kind} {n}": getattr(batch, n) for kind, batch in batches.items() for n in names}
