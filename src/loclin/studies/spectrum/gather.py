"""The gradients of many batches at one point, kept whole or sketched, and the random vectors they
are held against.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.geometry.gramian import gramian
from loclin.geometry.spectrum import random_sketch
from loclin.parameters import ParameterSpace
from loclin.seeds import derived
from loclin.tasks.batch import Batch, answer_loss
from loclin.updates import Keeping

Gramian = Float[np.ndarray, "n n"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Gathered:
    """n gradients.

    Attributes:
        space: where they live.
        keeping: how they are kept.
        rows: one gradient each; their sketches where so kept.
        norms: of every gradient within every tensor, exact in either case.
    """

    space: ParameterSpace
    keeping: Keeping
    rows: Float[Tensor, "n columns"]
    norms: Float[Tensor, "n tensors"]

    @property
    def whole(self) -> bool:
        """Whether the gradients themselves are kept, not their sketches."""
        return self.keeping.store != "sketch"

    @property
    def columns(self) -> int:
        """Coordinates that inner products see: D, or those of the sketch."""
        return self.rows.shape[1]


def gather(
    model: torch.nn.Module,
    space: ParameterSpace,
    keeping: Keeping,
    batches: Sequence[Batch],
    *,
    after_each: Callable[[int], None] | None = None,
) -> Gathered:
    """The gradient of the mean answer loss of each batch, at the point where the space stands.

    Args:
        model: whose loss.
        space: the coordinates.
        keeping: whole in memory or in a file, or sketched.
        batches: one gradient each.
        after_each: called with the number of gradients done.
    """
    rows = keeping.rows(space, len(batches))
    norms = torch.zeros(len(batches), len(space.names), dtype=torch.float64)
    for i, batch in enumerate(batches):
        g = space.gradient(lambda b: answer_loss(model, b), [batch])
        pieces = space.by_tensor(g)
        norms[i] = torch.stack([p.norm() for p in pieces.values()]).double().cpu()
        rows[i] = g if keeping.store != "sketch" else keeping.sketch.of(pieces)
        if after_each:
            after_each(i + 1)
    return Gathered(space=space, keeping=keeping, rows=rows, norms=norms)


def tensor_gramians(found: Gathered) -> dict[str, Gramian]:
    """Inner products of the gradients within every tensor; they sum to the Gramian of the whole.
    Not for sketches.
    """
    pieces = found.rows.split(list(found.space.sizes), dim=1)
    return {name: gramian(piece) for name, piece in zip(found.space.names, pieces, strict=True)}


def controls(found: Gathered, *, seed: int) -> dict[str, Gramian]:
    """Gramians of random vectors that share nothing but norms with the gradients, sketched the same
    way (measures §6).

    "isotropic" spreads each vector's norm evenly over all coordinates; "per tensor" keeps its norm
    within every tensor, which is the stricter control.
    """
    whole = found.norms.square().sum(1, keepdim=True).sqrt()
    if found.whole:
        return {
            "per tensor": random_sketch(
                found.norms, found.space.sizes, seed=derived(seed, "per tensor")
            ),
            "isotropic": random_sketch(
                whole, [found.space.dimension], seed=derived(seed, "isotropic")
            ),
        }
    drawn: dict[str, list[Tensor]] = {"per tensor": [], "isotropic": []}
    for i, (norms, norm) in enumerate(
        zip(found.norms.tolist(), whole.squeeze(1).tolist(), strict=True)
    ):
        noise = found.space.by_tensor(found.space.noise(seed=derived(seed, "noise", i)))
        matched = {
            n: z * (v / float(z.norm())) for (n, z), v in zip(noise.items(), norms, strict=True)
        }
        drawn["per tensor"].append(found.keeping.sketch.of(matched))
        size = sum(float(z.square().sum()) for z in noise.values()) ** 0.5
        drawn["isotropic"].append(found.keeping.sketch.of(noise) * (norm / size))
    return {name: gramian(torch.stack(rows)) for name, rows in drawn.items()}


def place_of(name: str) -> tuple[int, str]:
    """Layer and kind of a tensor by its name; −1 for those outside the blocks.

    >>> place_of("transformer.h.3.attn.c_attn.weight"), place_of("lm_head.bias")
    ((3, 'attn.c_attn'), (-1, 'lm_head'))
    >>> place_of("base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight")
    (0, 'mlp.up_proj.lora_A')
    """
    plain = name.replace(".default.", ".")
    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", plain)
    kind = re.sub(r"(^|\.)(weight|bias)$", "", found[2] if found else plain) or "the layer itself"
    return (int(found[1]), kind) if found else (-1, kind.rpartition(".")[2])
