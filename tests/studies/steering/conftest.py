"""One small run of the steering claims in each form, for all their tests."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.models import Problem
from loclin.progress import silent
from loclin.run.rows import Part, Row
from loclin.studies.steering.claims_context import ClaimsContext, make_context
from loclin.studies.steering.claims_measure import measured
from loclin.studies.steering.claims_settings import preset
from loclin.studies.steering.claims_vectors import Vectors, make_vectors
from loclin.tasks.example import Example

SMALL: dict[str, Any] = {
    "seeds": 2,
    "models_per_claim": 1,
    "labels": 24,
    "gradient": 12,
    "shift": 12,
    "choose": 8,
    "test": 12,
    "etas": (1e-3, 1e-2),
    "directions": 4,
    "relabelings": 4,
    "permutations": 19,
    "tokens": 4,
    "candidates": 6,
    "winners": 2,
    "chance": 4,
    "random_vectors": 3,
    "neutral_rows": 6,
    "neutral_tokens": 8,
}
TINY = replace(preset("smoke"), **SMALL).checked()
PAIRED = replace(TINY, labels=16, gradient=10, shift=10, choose=8, test=10, seeds=1)


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.fixture(scope="session")
def ctx(speaking: Problem) -> ClaimsContext:
    return make_context(speaking, TINY, 0, silent)


@pytest.fixture(scope="session")
def vectors(ctx: ClaimsContext) -> Vectors:
    return make_vectors(ctx)


@pytest.fixture(scope="session")
def part(ctx: ClaimsContext) -> Iterator[Part]:
    """Of run 0; the model is afterwards what it was, bit for bit."""
    before = bits(ctx.model)
    yield measured(ctx)
    after = bits(ctx.model)
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.fixture(scope="session")
def rows(part: Part) -> list[Row]:
    return list(part.rows)


@pytest.fixture(scope="session")
def paired_rows(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> list[Row]:
    """Of contrast pairs, on a model of another family with random weights."""
    options = (" (A)", " (B)")
    pool = tuple(
        Example(prompt=f"do cats {i} purr?", answer=options[i % 2], options=options, group=str(i))
        for i in range(60)
    )
    examples = {"test": {"pairs": pool}}
    problem = Problem(model=families["llama"], tokenizer=tokenizers["llama"], examples=examples)
    return list(measured(make_context(problem, PAIRED, 0, silent)).rows)
