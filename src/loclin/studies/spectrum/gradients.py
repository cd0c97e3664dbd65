"""The gradients of many batches at one point, kept whole or sketched, and their random controls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.geometry.gramian import gramian
from loclin.geometry.spectrum import random_sketch
from loclin.parameters import ParameterSpace
from loclin.progress import ProgressCallback, silent
from loclin.seeds import derived
from loclin.studies.spectrum.names import ISOTROPIC, PER_TENSOR
from loclin.tasks.batch import Batch, answer_loss
from loclin.updates import UpdateStorage

Gramian = Float[np.ndarray, "n n"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Gradients:
    """n gradients.

    Attributes:
        space: where they live.
        storage: how they are kept.
        rows: one gradient each, or its sketch.
        norms: of every gradient within every tensor, exact in either case.
    """

    space: ParameterSpace
    storage: UpdateStorage
    rows: Float[Tensor, "n columns"]
    norms: Float[Tensor, "n tensors"]

    @property
    def whole(self) -> bool:
        """Whether the gradients themselves are kept, not their sketches."""
        return self.storage.store != "sketch"

    @property
    def columns(self) -> int:
        """Coordinates that inner products see: D, or those of the sketch."""
        return self.rows.shape[1]

    def first(self, n: int) -> Gradients:
        """The first n of them."""
        return replace(self, rows=self.rows[:n], norms=self.norms[:n])


def gather(
    model: torch.nn.Module,
    space: ParameterSpace,
    storage: UpdateStorage,
    batches: Sequence[Batch],
    *,
    progress: ProgressCallback = silent,
    stage: str = "gradients",
) -> Gradients:
    """The gradient of the mean answer loss of each batch, where the space stands."""
    rows = storage.allocate(space, len(batches))
    norms = torch.zeros(len(batches), len(space.names), dtype=torch.float64)
    for i, batch in enumerate(batches):
        g = space.gradient(lambda b: answer_loss(model, b), [batch])
        pieces = space.by_tensor(g)
        norms[i] = torch.stack([p.norm() for p in pieces.values()]).double().cpu()
        rows[i] = g if storage.store != "sketch" else storage.sketch.of(pieces)
        progress(stage, (i + 1) / len(batches))
    return Gradients(space=space, storage=storage, rows=rows, norms=norms)


def tensor_gramians(gradients: Gradients) -> dict[str, Gramian]:
    """Inner products within every tensor, which sum to those of the whole; not of sketches."""
    space = gradients.space
    pieces = gradients.rows.split(list(space.sizes), dim=1)
    return {name: gramian(piece) for name, piece in zip(space.names, pieces, strict=True)}


def controls(gradients: Gradients, *, seed: int) -> dict[str, Gramian]:
    """Gramians of random vectors that share nothing but norms with the gradients, sketched alike
    (measures §6).

    "isotropic" spreads each vector's norm evenly over all coordinates. "per tensor" keeps its norm
    within every tensor, which is the stricter control.
    """
    space, norms = gradients.space, gradients.norms
    lengths = norms.square().sum(1, keepdim=True).sqrt()
    if not gradients.whole:
        return _sketched_controls(gradients, lengths.squeeze(1).tolist(), seed=seed)
    sizes = {PER_TENSOR: (norms, space.sizes), ISOTROPIC: (lengths, [space.dimension])}
    return {name: random_sketch(*of, seed=derived(seed, name)) for name, of in sizes.items()}


def _sketched_controls(
    gradients: Gradients, lengths: Sequence[float], *, seed: int
) -> dict[str, Gramian]:
    space, sketch = gradients.space, gradients.storage.sketch
    drawn: dict[str, list[Tensor]] = {PER_TENSOR: [], ISOTROPIC: []}
    for i, (norms, length) in enumerate(zip(gradients.norms.tolist(), lengths, strict=True)):
        noise = space.by_tensor(space.noise(seed=derived(seed, "noise", i)))
        pairs = zip(noise.items(), norms, strict=True)
        matched = {name: z * (v / float(z.norm())) for (name, z), v in pairs}
        drawn[PER_TENSOR].append(sketch.of(matched))
        size = sum(float(z.square().sum()) for z in noise.values()) ** 0.5
        drawn[ISOTROPIC].append(sketch.of(noise) * (length / size))
    return {name: gramian(torch.stack(rows)) for name, rows in drawn.items()}


def place_of(name: str) -> tuple[int, str]:
    """Layer and kind of a tensor by its name; −1 for those outside the blocks.

    >>> place_of("transformer.h.3.attn.c_attn.weight"), place_of("lm_head.bias")
    ((3, 'attn.c_attn'), (-1, 'lm_head'))
    >>> place_of("base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight")
    (0, 'mlp.up_proj.lora_A')
    """
    plain = name.replace(".default.", ".")
    block = re.search(r"(?:^|\.)(\d+)\.(.+)$", plain)
    kind = re.sub(r"(^|\.)(weight|bias)$", "", block[2] if block else plain) or "the layer itself"
    return (int(block[1]), kind) if block else (-1, kind.rpartition(".")[2])
