"""What recording and analysing a trajectory cost, as ratios measured side by side in one run.

    python benchmarks/recording.py [--out FILE]

Two ratios, each the median over pairs measured in turn (A B A B ...), with the range of the pairs'
middle half:

1. a training step with recording on over one with recording off (aim: at most 1.05);
2. the whole capture analysis, Gramian and both curves at every k, over reading the updates once
   (aim: at most 2), with the updates in a file (warm cache) and in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from side_by_side import compare, report

from loclin import models
from loclin.geometry.gramian import future_capture, gramian, prefix_capture
from loclin.parameters import ParameterSpace
from loclin.training import make_optimiser, minibatches, record, train

PAIRS = 15


def line(
    name: str, base: str, first: Callable[[], object], second: Callable[[], object], aim: str
) -> str:
    against, found = compare(first, second, PAIRS)
    return f"| {name} | {base}, {against * 1000:.1f} ms | {found} | {aim} |"


def measure() -> list[str]:
    config, problem = Config(), models.load("sequences", seed=0)
    space, steps = ParameterSpace(problem.model), 20
    rows = []
    for optimiser in config.learning_rates():

        def run(work: Callable[..., object], name: str = optimiser) -> None:
            batches = minibatches(problem.batch("recovery", "reverse"), config.batch, seed=0)
            with space.restored():
                work(problem.model, space, batches, make_optimiser(name, space, 1e-4), steps)

        name = f"{steps} recorded {optimiser} steps, batch {config.batch}"
        rows.append(
            line(name, "the same, not recorded", lambda: run(record), lambda: run(train), "≤ 1.05")
        )

    updates = torch.randn(config.steps, space.dimension, generator=torch.Generator().manual_seed(0))

    def analyse(u: torch.Tensor) -> None:
        products = gramian(u)
        prefix_capture(products, config.all_ks)
        future_capture(products, config.all_ks)

    shape = f"T = {config.steps}, D = {space.dimension}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "updates.safetensors"
        save_file({"updates": updates}, file)
        name = f"capture analysis from a file, {shape}"

        def read() -> torch.Tensor:
            return load_file(file)["updates"]

        rows.append(
            line(
                name, "reading the file once", lambda: analyse(read()), lambda: read().sum(), "≤ 2"
            )
        )
    name = f"capture analysis in memory, {shape}"
    rows.append(line(name, "one pass over memory", lambda: analyse(updates), updates.sum, "≤ 2"))
    return rows


if __name__ == "__main__":
    report(__doc__, measure)
