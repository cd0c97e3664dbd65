"""What curvature costs in gradients: Hessian-vector products, a Krylov basis, the Gramian of many
gradients.

    python benchmarks/curvature.py [--only sequences|statements|qwen] [--out FILE]

On the built-in models and on a Qwen2.5-0.5B configuration with random weights and LoRA (which needs
6 GB of memory and 2 GB of disk), three ratios, each the median over pairs measured in turn, with
the range of the pairs' middle half:

1. one Hessian-vector product over one gradient of the same batch, the product with eager attention,
   the gradient with the model's own (aim: at most 2.5); once as it stands alone, and once as one of
   many at the same point;
2. a Krylov basis of k steps over k products (aim: at most 1.1);
3. n gradients with their Gramian over n plain backward passes (aim: at most 1.15).

Beside each stands how far the process grew at most while it worked (Linux alone).
"""

from __future__ import annotations

import ctypes
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from lora import make
from side_by_side import compare, report

from loclin import models
from loclin.curvature import CurvatureOperator
from loclin.geometry.gramian import gramian
from loclin.geometry.krylov import lanczos
from loclin.models import Problem, twice_differentiable
from loclin.models.lora import Lora, attach
from loclin.parameters import ParameterSpace
from loclin.studies.spectrum.gradients import gather
from loclin.tasks.batch import answer_loss
from loclin.updates import UpdateStorage


def grown(work: Callable[[], object]) -> float:
    """Most memory that the process took beyond what it held before, in MB, a GPU's where one is in
    use; NaN where it is not known.
    """
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    try:
        # what was freed before is not to be had for nothing
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        before = _status("VmRSS")
        work()
        return (_status("VmHWM") - before) / 1e3
    except OSError:
        return math.nan


def growth(work: Callable[[], object]) -> str:
    """The same in words."""
    size = grown(work)
    return "not known" if math.isnan(size) else f"{size:.0f} MB"


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name))


def ratios(
    name: str, problem: Problem, *, examples: int, k: int, gradients: int, batch: int, pairs: int
) -> list[str]:
    """The rows of one model."""
    model, space = problem.model, ParameterSpace(problem.model)
    shown = problem.batch("recovery", problem.tasks[0])
    data, few = (
        [shown.rows(slice(0, examples))],
        list(shown.rows(slice(0, gradients * batch)).chunks(batch)),
    )
    v, of = space.noise(seed=0), f"{name}, D = {space.dimension}"

    def loss(b):
        return answer_loss(model, b)

    def line(
        what: str, first: Callable[[], object], base: str, second: Callable[[], object], aim: str
    ) -> str:
        against, found = compare(first, second, pairs)
        return (
            f"| {of}: {what}, grows by {growth(first)} | {base}, {against * 1000:.0f} ms, grows by "
            f"{growth(second)} | "
            f"{found} | {aim} |"
        )

    def gradient() -> object:
        return space.gradient(loss, data)

    def curved(work: Callable[[], object]) -> Callable[[], object]:
        def eager() -> object:
            with twice_differentiable(model):
                return work()

        return eager

    with twice_differentiable(model):
        product = CurvatureOperator(space, loss, data)
        product(v)
    g = space.gradient(loss, data)

    def every_gradient() -> object:
        return gramian(gather(model, space, UpdateStorage(), few).rows)

    def every_backward() -> None:
        for b in few:
            model.zero_grad()
            loss(b)[0].backward()

    def every_product() -> None:
        for _ in range(k):
            product(v)

    one, alone = (
        f"one gradient of {examples} examples",
        curved(lambda: CurvatureOperator(space, loss, data)(v)),
    )
    many, passes = (
        f"{gradients} gradients of {batch} examples and their Gramian",
        f"{gradients} backward passes",
    )
    return [
        line("one Hessian-vector product", alone, one, gradient, "≤ 2.5"),
        line("one of many at a point", lambda: product(v), one, gradient, "≤ 2.5"),
        line(
            f"a Krylov basis of {k}",
            lambda: lanczos(product, g, k),
            f"{k} products",
            every_product,
            "≤ 1.1",
        ),
        line(many, every_gradient, passes, every_backward, "≤ 1.15"),
    ]


def adapted(problem: Problem, rank: int) -> Problem:
    return Problem(
        model=attach(problem.model, Lora(rank=rank), seed=0),
        tokenizer=problem.tokenizer,
        examples=problem.examples,
    )


def sequences() -> list[str]:
    return ratios(
        "sequences", models.load("sequences"), examples=64, k=20, gradients=64, batch=8, pairs=9
    )


def statements() -> list[str]:
    problem = adapted(models.load("statements"), 8)
    return ratios("statements, LoRA", problem, examples=64, k=20, gradients=48, batch=4, pairs=9)


def qwen() -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, "float32")
        problem = adapted(
            models.load(str(folder / "model"), data=str(folder / "questions.jsonl")), 8
        )
        return ratios("Qwen2.5-0.5B, LoRA", problem, examples=8, k=5, gradients=8, batch=4, pairs=3)


if __name__ == "__main__":
    report(__doc__, sequences, statements, qwen)
