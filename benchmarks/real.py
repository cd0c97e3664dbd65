"""What search, schedules and radius cost on a real model, beyond the passes that they need.

    python benchmarks/real.py [--model FOLDER] [--device cuda] [--only search|schedules|radius]
    [--out FILE]

By default on a Qwen2.5-0.5B configuration with random weights, in float32. Each ratio is the median
over pairs measured in turn, with the range of the pairs' middle half:

1. a candidate on all weights over a forward pass: Gaussian noise at 256 and 4,096 tokens (aims: 1.3
   and 1.03), Rademacher noise at 256 (1.08); the memory of a search over that of the weights (2.2);
2. a step by raw sum, equal decrease and PCGrad over two backward passes and a step (1.05);
3. `radius` of a vector that moves the queries and values of every block: the whole command over its
   gradients, products and losses (1.2), and its memory over that of the weights (4).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import lora
import search as searches
import torch
from curvature import grown
from safetensors.torch import save_file
from schedules import rows as schedule_rows
from side_by_side import report, seconds

from loclin.curvature import CurvatureOperator
from loclin.models import Problem, load, twice_differentiable
from loclin.models.evaluation import EvalSet
from loclin.options import LoadOptions
from loclin.parameters import ParameterSpace
from loclin.run.runner import Session
from loclin.studies.linearity.radius_measure import examples_drawn, measure, moved
from loclin.studies.linearity.radius_settings import RadiusSettings

FOLDER = tempfile.TemporaryDirectory()


def options(asked: argparse.Namespace) -> LoadOptions:
    """Which model, with questions beside it."""
    folder, model, device = Path(FOLDER.name), asked.model, asked.device
    if model is None:
        lora.make(folder, "float32")
    questions = lora.questions(folder)
    return LoadOptions(
        model=str(model or folder / "model"), data=(str(questions),), device=device, dtype="float32"
    )


def worded(asked: LoadOptions) -> tuple[Problem, str, float]:
    """The model with a token for each word, its name, and the megabytes of its weights."""
    problem = replace(load(asked), tokenizer=searches.word_tokenizer())
    parameters = list(problem.model.parameters())
    size = sum(p.numel() * p.element_size() for p in parameters) / 1e6
    return problem, Path(asked.model).name, size


def search(chosen: argparse.Namespace) -> list[str]:
    problem, name, weights = worded(options(chosen))
    few = searches.eval_set(problem, 256)
    kinds = (
        (few, "gaussian", 4, 5, "≤ 1.3"),
        (searches.eval_set(problem, 4096), "gaussian", 1, 3, "≤ 1.03"),
        (few, "rademacher", 4, 5, "≤ 1.08"),
    )
    lines = [
        searches.searched(name, of, noise, each=each, pairs=pairs, aim=aim)
        for of, noise, each, pairs, aim in kinds
    ]
    more = grown(partial(searches.searched, name, few, "gaussian", each=2, pairs=1))
    return [*lines, memory(f"{name}: candidates at 256 tokens", more, weights, 2.2)]


def memory(what: str, more: float, weights: float, aim: float) -> str:
    """A line on memory: `more` megabytes beside the weights."""
    ratio = (weights + more) / weights
    return f"| {what}: memory | the weights, {weights:.0f} MB | {ratio:.2f} | ≤ {aim} |"


def schedules(chosen: argparse.Namespace) -> list[str]:
    problem, name, _ = worded(options(chosen))
    first, second = searches.eval_set(problem, 512).batch.chunks(4)
    taken = ("raw sum", "equal decrease", "PCGrad")
    return schedule_rows(name, problem.model, ([first], [second]), 1, taken, pairs=3, aim=1.05)


def radius(chosen: argparse.Namespace) -> list[str]:
    asked = options(chosen)
    """The command, then the same number of the same passes."""
    problem, name, weights = worded(asked)
    generator = torch.Generator().manual_seed(0)
    change = {
        n: 1e-3 * torch.randn(p.shape, generator=generator)
        for n, p in problem.model.named_parameters()
        if n.endswith(("q_proj.weight", "v_proj.weight"))
    }
    save_file(change, Path(FOLDER.name) / "change.safetensors")
    del problem
    settings = RadiusSettings(
        model=asked.model,
        data=asked.data,
        device=asked.device,
        dtype=asked.dtype,
        direction=str(Path(FOLDER.name) / "change.safetensors"),
        examples=20,
        folds=5,
        batch=4,
    ).checked()
    calls, took = 0, list[float]()
    tallies = EvalSet.tallies

    def counted(of: EvalSet):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        return tallies(of)

    def command() -> None:
        with patch.object(EvalSet, "tallies", counted):
            took.append(seconds(lambda: measure(settings, 0, Session())))

    more = grown(command)
    needed = seconds(lambda: load(settings)) + passes(settings, calls)
    what = f"{name}: radius of a vector that moves {len(change)} tensors"
    base = f"loading, {settings.folds} gradients and products, {calls} losses, {needed:.1f} s"
    return [
        f"| {what}, the whole command | {base} | {took[0] / needed:.2f} | ≤ 1.2 |",
        memory(what, more - weights, weights, 4),
    ]


def passes(settings: RadiusSettings, losses: int) -> float:
    """Seconds of the gradients, products and losses alone."""
    problem = load(settings)
    examples, _ = examples_drawn(settings, problem)
    of = EvalSet.of(problem, examples, folds=settings.folds, at_once=settings.batch)
    space, vector, _ = moved(settings, problem, ParameterSpace(problem.model))
    parts = [list(of.fold(i)) for i in range(of.count)]

    def gradients() -> None:
        for part in parts:
            space.gradient(of.loss, part)

    def products() -> None:
        with twice_differentiable(problem.model):
            for part in parts:
                CurvatureOperator(space, of.loss, part) @ vector

    def measured() -> None:
        for _ in range(losses):
            of.tallies()

    of.tallies()
    return sum(map(seconds, (gradients, products, measured)))


if __name__ == "__main__":
    parts: Sequence = (search, schedules, radius)
    report(__doc__ or "", *parts)
