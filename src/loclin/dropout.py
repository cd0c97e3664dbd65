"""An adapter's dropout: at work while a loss is differentiated, off whenever anything is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import nn


@contextmanager
def adapter_dropout(model: nn.Module, *, seed: int) -> Iterator[None]:
    """The adapter's dropout at work inside, drawn by `seed`; nothing where there is none."""
    layers = (m for m in model.modules() if isinstance(m, LoraLayer))
    dropouts = [d for m in layers for d in m.lora_dropout.values() if isinstance(d, nn.Dropout)]
    if not dropouts:
        yield
        return
    with seeded(seed):
        try:
            for d in dropouts:
                d.train()
            yield
        finally:
            for d in dropouts:
                d.eval()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """peft and dropout draw from torch's global generator: it is seeded inside and put back
    afterwards.
    """
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        for i in range(torch.cuda.device_count()):
            torch.cuda.default_generators[i].manual_seed(seed)
        yield
