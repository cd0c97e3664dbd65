"""LoRA adapters by peft: attach one, and read the steps of its factors as steps of the weights they
adapt.

h = Wx + s·BAx with A r×in and B out×r (Hu et al. 2021, arXiv 2106.09685). What a user's model does
depends on ΔW = s·BA alone, so captures are measured there too (`geometry.lora`), not only in the
factors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import peft
import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loclin.errors import LoclinError
from loclin.geometry.gramian import to_float64
from loclin.geometry.lora import LowRank, secants, tangents
from loclin.parameters import ParameterSpace
from loclin.seeds import derived, seeded

Init = Literal["default", "gaussian", "orthogonal", "pissa"]
_MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
_ADAPTER = "default"  # peft's own name for an adapter that is given none


@dataclass(frozen=True, kw_only=True)
class Lora:
    """What adapter to attach.

    Attributes:
        rank: r.
        alpha: s = alpha/r; None takes twice the rank, s = 2.
        targets: "all-linear" (every linear map but the output layer), or the last parts of module
            names, separated by commas.
        dropout: on the adapter's input while it is trained.
        init: "default" (A uniform, B zero) and "gaussian" start at ΔW = 0; "orthogonal" does up to
            round-off; "pissa" moves the largest singular directions of W into the factors, which
            changes no output.
    """

    rank: int = 8
    alpha: int | None = None
    targets: str = "all-linear"
    dropout: float = 0.0
    init: Init = "default"


def attach(model: PreTrainedModel, lora: Lora, *, seed: int) -> peft.PeftModel:
    """The model with a new adapter, in place: everything but the factors is frozen.

    The factors are drawn by `seed` alone, and the global random state is left as it was.

    Raises:
        LoclinError: a rank below 1, or targets that match no linear map (those that exist are
            listed).
    """
    if lora.rank < 1:
        raise LoclinError(f"expected a LoRA rank of at least 1, found {lora.rank}: change --ranks")
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    targets: str | list[str] = lora.targets
    if targets != "all-linear":
        targets = [t.strip() for t in lora.targets.split(",")]
        unknown = [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in linear)]
        if unknown:
            there = ", ".join(sorted({n.rpartition(".")[2] for n in linear}))
            raise LoclinError(
                f"expected LoRA targets among {there}, found {unknown[0]!r}: change --targets"
            )
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=2 * lora.rank if lora.alpha is None else lora.alpha,
        target_modules=targets,
        lora_dropout=lora.dropout,
        init_lora_weights=True if lora.init == "default" else lora.init,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in linear.values()),
    )
    if model.config.model_type in _MAMBA and targets == "all-linear":
        settings.exclude_modules = ["out_proj", "conv1d"]  # peft refuses them in these families
    with seeded(derived(seed, "adapter")), warnings.catch_warnings():
        # peft's, over names that transformers is about to retire
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return peft.get_peft_model(model, settings).eval()
        except (ValueError, NotImplementedError) as error:
            first = " ".join(str(error).split())[:200]
            raise LoclinError(
                f"expected linear maps that peft adapts, found that it does not: {first}: change "
                "--targets"
            ) from error


def chosen_space(
    model: PreTrainedModel, space: str, lora: Lora, *, seed: int
) -> tuple[PreTrainedModel | peft.PeftModel, ParameterSpace]:
    """The model as it is trained, and its trained coordinates.

    Args:
        model: a new adapter is attached to it in place, where one is trained.
        space: "full", "lora", or shell patterns of parameter names.
        lora: the adapter of "lora".
        seed: of its factors.

    Raises:
        LoclinError: as `attach` and `ParameterSpace` do.
    """
    if space != "lora":
        return model, ParameterSpace(model, "*" if space == "full" else space)
    adapted = attach(model, lora, seed=seed)
    if model.dtype == torch.float64:
        adapted.double()  # peft's factors are float32 whatever the model's dtype
    return adapted, ParameterSpace(adapted)


@dataclass(frozen=True, eq=False, kw_only=True)
class Factors:
    """Where in a parameter space the factors of every adapted weight are.

    Attributes:
        space: the adapter's factors.
        pairs: name of A, name of B and the scale s of every adapted weight.
    """

    space: ParameterSpace
    pairs: tuple[tuple[str, str, float], ...]

    @staticmethod
    def of(model: nn.Module, space: ParameterSpace) -> Factors | None:
        """The factors in a space of this model, or None where the space holds anything but whole
        pairs of factors.
        """
        pairs = []
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer) and _ADAPTER in module.lora_A:
                a, b = (f"{name}.lora_{x}.{_ADAPTER}.weight" for x in "AB")
                pairs.append((a, b, float(module.scaling[_ADAPTER])))
        whole = pairs and {n for a, b, _ in pairs for n in (a, b)} == set(space.names)
        return Factors(space=space, pairs=tuple(pairs)) if whole else None

    @property
    def dimension(self) -> int:
        """Dimensions of the set of all ΔW: r(in + out) − r² for every adapted weight, the gauge R
        taken off.
        """
        tensors = dict(zip(self.space.names, self.space.parameters, strict=True))
        return self.space.dimension - sum(len(tensors[a]) ** 2 for a, _, _ in self.pairs)

    def steps(self, start: Float[Tensor, " D"], updates: Float[Tensor, "T D"]) -> Iterator[LowRank]:
        """The T steps of ΔW along a path from `start`, one adapted weight after the other."""
        for a, b, da, db, s in self._split(start, updates):
            yield secants(_path(a, da), _path(b, db), scale=s)

    def chords(
        self, start: Float[Tensor, " D"], displacements: Float[Tensor, "n D"]
    ) -> Iterator[LowRank]:
        """The n displacements of ΔW, each from `start`, one adapted weight after the other."""
        for a, b, da, db, s in self._split(start, displacements):
            each = [
                secants(torch.stack([a, a + x]), torch.stack([b, b + y]), scale=s)
                for x, y in zip(da, db, strict=True)
            ]
            yield LowRank(
                left=torch.cat([w.left for w in each]), right=torch.cat([w.right for w in each])
            )

    def directions(
        self, point: Float[Tensor, " D"], rows: Float[Tensor, "n D"]
    ) -> Iterator[LowRank]:
        """What n directions of the factors do to ΔW at a point, to first order, one adapted weight
        after the other.
        """
        for a, b, da, db, s in self._split(point, rows):
            yield tangents(a, b, da, db, scale=s)

    def _split(
        self, point: Float[Tensor, " D"], rows: Float[Tensor, "n D"]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, float]]:
        """A and B of each adapted weight in turn: those of the point, those of the rows; and s."""
        here = self.space.by_tensor(point)
        pieces = dict(zip(self.space.names, rows.split(list(self.space.sizes), dim=1), strict=True))
        for a, b, s in self.pairs:
            da, db = (pieces[n].reshape(len(rows), *here[n].shape) for n in (a, b))
            yield here[a], here[b], da, db, s


def _path(start: Tensor, updates: Tensor) -> Tensor:
    """The T+1 points of a path, in float64: late points are sums of hundreds of small steps."""
    first, moved = to_float64(start), to_float64(updates.to(start.device))
    return torch.cat([first[None], first + moved.cumsum(0)])
