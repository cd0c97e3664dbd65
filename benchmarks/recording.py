"""What recording and analysing a trajectory cost, as ratios measured side by side in one run.

    python benchmarks/recording.py [--out FILE]

Two ratios, each the median over pairs measured in turn (A B A B ...), with the range of the pairs' middle half:

1. a training step with recording on over one with recording off (aim: at most 1.05);
2. the whole capture analysis, Gramian and both curves at every k, over reading the updates once (aim: at most 2), with the
   updates in a file (warm cache) and in memory.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from loclin import models
from loclin.geometry.gramian import future_capture, gramian, prefix_capture
from loclin.parameters import ParameterSpace
from loclin.studies.recovery.config import Config
from loclin.training import make_optimiser, minibatches, record, train

PAIRS = 15


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float, float, float]:
    """Median seconds of `second`, then median and middle half of first/second over pairs taken in turn."""
    first(), second()
    pairs = np.array([(seconds(first), seconds(second)) for _ in range(PAIRS)])
    low, middle, high = np.quantile(pairs[:, 0] / pairs[:, 1], [0.25, 0.5, 0.75])
    return float(np.median(pairs[:, 1])), float(middle), float(low), float(high)


def line(name: str, base: str, found: tuple[float, float, float, float], aim: str) -> str:
    against, middle, low, high = found
    return f"| {name} | {base}, {against * 1000:.1f} ms | {middle:.2f} [{low:.2f}, {high:.2f}] | {aim} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    torch.set_num_threads(1)
    out = parser.parse_args().out
    config, problem = Config(), models.load("sequences", seed=0)
    space, steps = ParameterSpace(problem.model), 20
    rows = []
    for optimiser in config.learning_rates:

        def run(work: Callable[..., object], name: str = optimiser) -> None:
            batches = minibatches(problem.batch("recovery", "reverse"), config.batch, seed=0)
            with space.restored():
                work(problem.model, space, batches, make_optimiser(name, space, 1e-4), steps)

        found = ratio(lambda run=run: run(record), lambda run=run: run(train))
        rows.append(
            line(f"{steps} recorded {optimiser} steps, batch {config.batch}", "the same, not recorded", found, "≤ 1.05")
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
        found = ratio(lambda: analyse(load_file(file)["updates"]), lambda: load_file(file)["updates"].sum())
        rows.append(line(f"capture analysis from a file, {shape}", "reading the file once", found, "≤ 2"))
    found = ratio(lambda: analyse(updates), lambda: updates.sum())
    rows.append(line(f"capture analysis in memory, {shape}", "one pass over memory", found, "≤ 2"))

    table = [
        f"{date.today()}, {platform.machine()} CPU, one thread, torch {torch.__version__}",
        "",
        "| what | over | ratio, median [middle half] | aim |",
        "| --- | --- | --- | --- |",
        *rows,
    ]
    print("\n".join(table))
    if out:
        out.write_text("\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
