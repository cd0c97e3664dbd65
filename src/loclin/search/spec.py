"""What a search is about, in words and examples: a description that any process builds the same
scorer from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.subspace import Subspace
from loclin.models.loading import load_model
from loclin.models.lora import Lora, chosen_space
from loclin.models.pretrained import device_of, resolved
from loclin.models.problem import Problem
from loclin.options import LoadOptions
from loclin.parameters import ParameterSpace
from loclin.run.workers import one_thread
from loclin.search.adapter import read_adapter
from loclin.search.noise import Noise
from loclin.search.scorer import Scorer, check_same
from loclin.seeds import derived
from loclin.tasks.example import Example
from loclin.training import make_optimiser, minibatches, record

PREFIX_LR, PREFIX_BATCH = 3e-4, 24  # AdamW's learning rate and examples of a step of "prefix:K"


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """A search's model, its coordinates, and what its candidates are asked. It holds the examples
    themselves: workers need no data.

    Attributes:
        options: which model, and how it is loaded; a folder must be one that every worker sees.
        seed: of a built-in model, of a new adapter's factors, and of the training behind
            `prefix:K`.
        space: "full"; "lora"; "prefix:K", the span of the first K AdamW updates on
            `train_examples` from the model's own weights; or a shell pattern of parameter names.
        noise: of the candidates.
        lora: the new adapter of "lora".
        adapter: folder of a trained adapter in its place. A new one has B = 0: noise on A then does
            nothing by itself, and the loss moves with the noise on B.
        examples: candidates are scored on these.
        train_examples: of "prefix:K"; share no group with what candidates are judged by.
        basis: of "prefix:K", where it was made already: workers then need not train, and all have
            the same.
        expected: `Scorer.fingerprint` of the search's own model, which every worker has to have.
    """

    options: LoadOptions
    seed: int = 0
    space: str = "full"
    noise: Noise = field(default_factory=Noise)
    lora: Lora = field(default_factory=Lora)
    adapter: Path | None = None
    examples: tuple[Example, ...]
    train_examples: tuple[Example, ...] = ()
    basis: Float[Tensor, "k D"] | None = field(default=None, compare=False)
    expected: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def device(self) -> str:
        """The kind of device: "cpu", "cuda", ..."""
        return "cuda" if self.options.device_map else device_of(self.options).split(":")[0]

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

    def build(self, loaded: Problem | None = None) -> Scorer:
        """Load the model unless it is given, choose the coordinates, and be ready to score.

        On the CPU the basis of "prefix:K" is made with one thread, so that every worker of one kind
        of machine has the same; an accelerator may round it differently in each.

        Raises:
            LoclinError: whatever is wrong with model, adapter, space or examples.
        """
        k = self.prefix
        if loaded is None:
            network, tokenizer, _ = load_model(resolved(self.options), seed=self.seed)
            loaded = Problem(model=network, tokenizer=tokenizer, examples={})
        problem, space = self._chosen(loaded)
        if any(p.is_meta for p in problem.model.parameters()):
            raise LoclinError(
                f"expected room for all weights of {self.options.model}, found some that "
                "accelerate left on disk: give more memory, or a smaller --dtype"
            )
        basis = self.basis.to(space.read()) if self.basis is not None else None
        if k and basis is None:
            basis = self._prefix_basis(problem, space, k)
        scorer = Scorer(problem, space, self.examples, noise=self.noise, basis=basis)
        if self.expected is not None:
            remedy = "score with what the search began with; give a folder or a --revision"
            check_same(self.expected, scorer.fingerprint, remedy)
        return scorer

    def _chosen(self, loaded: Problem) -> tuple[Problem, ParameterSpace]:
        if self.space == "lora" and self.adapter is not None:
            model = read_adapter(loaded.model, self.adapter)
            if self.options.dtype == "float64":
                model.double()  # peft's factors are float32 whatever the model's dtype
            return replace(loaded, model=model), ParameterSpace(model, "*.lora_*")
        pattern = "full" if self.prefix else self.space
        model, space = chosen_space(loaded.model, pattern, self.lora, seed=self.seed)
        return replace(loaded, model=model), space

    def _prefix_basis(
        self, problem: Problem, space: ParameterSpace, k: int
    ) -> Float[Tensor, "k D"]:
        """Orthonormal rows that span the first K AdamW updates of training on the train examples,
        from where the model stands and back.

        The order of the examples is drawn by the spec's seed. Fewer than K rows where the updates
        depend on each other.
        """
        self._check_prefix(space)
        with one_thread(self.device), space.restored():
            data = problem.collate(self.train_examples)
            order = derived(self.seed, "search prefix")
            batches = minibatches(data, min(PREFIX_BATCH, len(data)), seed=order)
            optimiser = make_optimiser("adamw", space, PREFIX_LR)
            updates = record(problem.model, space, batches, optimiser, k).updates
            return Subspace.spanned_by(updates).basis

    def _check_prefix(self, space: ParameterSpace) -> None:
        """Whether a prefix can be trained, on examples that candidates are not scored on."""
        if not self.train_examples:
            raise LoclinError(
                "expected examples to train a prefix on, found none: give data with a train split"
            )
        scored = {e.group or e.prompt for e in self.examples}
        groups = (e.group or e.prompt for e in self.train_examples)
        if shared := next((g for g in groups if g in scored), None):
            raise LoclinError(
                "expected a prefix trained on other groups than candidates are scored on, found "
                f"{shared[:60]!r} in both: divide the data by group"
            )
        if space.parameters[0].dtype.itemsize < 4:
            raise LoclinError(
                f"expected weights of at least float32 for {self.space}, whose updates half "
                f"precision rounds away, found {self.options.dtype}: change --dtype"
            )
