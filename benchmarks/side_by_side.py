"""Timing two pieces of work in turn, and the table of what was found."""

from __future__ import annotations

import argparse
import inspect
import platform
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch


def compare(
    first: Callable[[], object], second: Callable[[], object], pairs: int
) -> tuple[float, str]:
    """Median seconds of `second`, then median and middle half of first/second over pairs taken in
    turn, in words.
    """
    first(), second()
    found = np.array([(seconds(first), seconds(second)) for _ in range(pairs)])
    low, middle, high = np.quantile(found[:, 0] / found[:, 1], [0.25, 0.5, 0.75])
    return float(np.median(found[:, 1])), f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def report(description: str, *parts: Callable[..., Sequence[str]]) -> None:
    """Parse the command line, measure the rows on one thread, print the table and write it where
    `--out` says.

    Args:
        description: of the benchmark.
        parts: each gives rows of the table; `--only` takes one of several by its function's name.
            One that takes an argument is handed the options: `--model`, a folder, and `--device`.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    if len(parts) > 1:
        parser.add_argument(
            "--only", choices=[p.__name__ for p in parts], help="measure this part alone"
        )
    takes = [p for p in parts if inspect.signature(p).parameters]
    if takes:
        parser.add_argument("--model", help="a model folder")
        parser.add_argument("--device", default="cpu", help="cpu or cuda")
    asked = parser.parse_args()
    out, only = asked.out, getattr(asked, "only", None)
    torch.set_num_threads(1)
    cuda = getattr(asked, "device", "cpu") == "cuda"
    device = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, one thread"
    table = [
        f"{date.today()}, {device}, torch {torch.__version__}",
        "",
        "| what | over | ratio, median [middle half] | aim |",
        "| --- | --- | --- | --- |",
        *(
            row
            for part in parts
            if only in (None, part.__name__)
            for row in (part(asked) if part in takes else part())
        ),
    ]
    print("\n".join(table))
    if out:
        out.write_text("\n".join(table) + "\n", encoding="utf-8")
