from dataclasses import replace

import numpy as np
import torch
from scipy import stats

from loclin.models import Problem
from loclin.run.rows import Part, Row
from loclin.stats import permutation_p
from loclin.steering.averages import class_contrast
from loclin.studies.steering import names
from loclin.studies.steering.claims_context import ClaimsContext, cosine
from loclin.studies.steering.claims_found import Found
from loclin.studies.steering.claims_nulls import (
    caa_relabelled,
    caa_weights,
    other_tokens,
    random_weights,
    relabelled,
    unrelated_tokens,
)
from loclin.studies.steering.claims_vectors import Vectors
from loclin.tasks.example import Example
from tests.conftest import random_model
from tests.studies.steering.conftest import TINY
from tests.tasks.test_tokens import like_llama


def test_permuted_labels_of_caa_weigh_prompts_as_caa_does(
    ctx: ClaimsContext, vectors: Vectors
) -> None:
    labels = ctx.parts["labels"].labels
    assert labels is not None
    rng = np.random.default_rng(0)
    weights = caa_weights(labels, len(labels), 5, rng)
    for row in weights:
        by_hand = class_contrast(vectors.read, row > 0)
        dense = torch.stack([torch.from_numpy(row) @ h.double() for h in vectors.read])
        assert torch.allclose(by_hand.double(), dense, atol=1e-5)
    assert (weights > 0).sum(1).tolist() == [labels.sum()] * 5
    turned = caa_weights(None, 8, 100, rng)
    assert set(np.unique(turned)) == {-1 / 8, 1 / 8}


def test_labels_that_say_nothing_have_a_uniform_p(ctx: ClaimsContext, vectors: Vectors) -> None:
    """A planted null: activations that know nothing of the labels. Kolmogorov and Smirnov, at 1 in
    1000.
    """
    labels = ctx.parts["labels"].labels
    assert labels is not None
    found = []
    for world in range(120):
        generator = torch.Generator().manual_seed(world)
        read = torch.randn(vectors.read.shape, generator=generator)
        aim = {"E1": torch.randn(vectors.caa.shape, generator=generator)}
        caa = class_contrast(read, labels)
        planted = replace(vectors, read=read, caa=caa, shifts=aim)
        draws = caa_relabelled(replace(ctx, seed=world), planted)["E1"]
        found.append(permutation_p(float(cosine(caa, aim["E1"])[0]), draws[:, 0]))
    assert stats.kstest(found, "uniform").pvalue > 1e-3


def test_directions_and_tokens_are_those_of_the_model_and_permutations_are_not(
    ctx: ClaimsContext, vectors: Vectors
) -> None:
    other, elsewhere = replace(ctx, run=1, seed=99), replace(ctx, model_seed=7)
    for loss, of, nulls in (
        (None, {"E1", "E2", "E3"}, {names.WHOLE}),
        ("fixed", {"E1"}, {names.BY_TENSOR, names.BEYOND, names.IN_WHITENED}),
        ("gold", {"E2", "E3"}, {names.BY_TENSOR, names.BEYOND, names.IN_WHITENED}),
    ):
        one, two, apart = (
            random_weights(c, vectors, loss)  # type: ignore[arg-type]
            for c in (ctx, other, elsewhere)
        )
        assert one.keys() == {(each, null) for each in of for null in nulls}
        for key, draws in one.items():
            assert np.array_equal(draws, two[key])
            assert not np.allclose(draws, apart[key])
            assert draws.shape == (2 * TINY.directions, len(ctx.layers))
            assert np.array_equal(draws[TINY.directions :], -draws[: TINY.directions])
    assert other_tokens(ctx) == other_tokens(other)
    assert other_tokens(ctx) != other_tokens(elsewhere)
    assert not np.array_equal(relabelled(ctx, vectors)["E2"], relabelled(other, vectors)["E2"])


def test_unrelated_tokens_are_no_answers(ctx: ClaimsContext, vectors: Vectors) -> None:
    tokenizer = ctx.problem.tokenizer
    every = other_tokens(replace(ctx, settings=replace(TINY, tokens=10_000)))
    said = {tokenizer.decode([t]).strip() for t in every}
    assert len(every) == len(tokenizer) - 3
    assert not said & {"yes", "no", tokenizer.pad_token}
    assert unrelated_tokens(ctx, vectors).shape == (2 * TINY.tokens, len(ctx.layers))


def test_an_answer_is_what_the_tokenizer_makes_of_the_whole_text(ctx: ClaimsContext) -> None:
    """Sentencepiece begins a text with a space, and an answer after a line break has none."""
    tokenizer = like_llama()
    e = Example(prompt="do cats purr?\n", answer="yes", options=("yes", "no"))
    problem = Problem(
        model=random_model("llama", len(tokenizer) - 1),  # an embedding without the last token
        tokenizer=tokenizer,
        examples={"test": {"cats": (e,)}},
    )
    settings = replace(TINY, tokens=10_000)
    every = other_tokens(replace(ctx, problem=problem, settings=settings))
    left = {*tokenizer.get_vocab()} - {*tokenizer.convert_ids_to_tokens(every)}
    last = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)
    assert left == {*tokenizer.all_special_tokens, "yes", "no", last}


def test_rows_keep_one_way_of_draws_that_go_both_and_the_other_is_put_back(
    ctx: ClaimsContext, rows: list[Row], part: Part
) -> None:
    found = Found.of(rows, 1)
    middle = int(found.values("layer", at=names.MIDDLE)[0])
    for null, count in ((names.BY_TENSOR, TINY.directions), (names.TOKENS, TINY.tokens)):
        here = {"of": "E1", "null": null}
        kept = found.draws("null_draw", **here, at=names.MIDDLE)[0]
        every = part.arrays[f"draws/E1/{null}/0"][:, middle]
        assert np.allclose(np.concatenate([kept, -kept]), every, atol=1e-6)
        assert len(kept) == count
        largest = np.array([np.sort(np.abs(every))[-3]])  # beside the largest, one draw is above
        p = found.drawn("", largest + 1e-6, "E1", null, names.MIDDLE).value
        assert p == 2 / (2 * count + 1)
    highest = found.draws("null_draw", of="E1", null=names.BY_TENSOR, at=names.HIGHEST)
    assert highest.shape == (1, 2 * TINY.directions)
