"""The steering study: its parts against dense twins, real runs in both forms, and their page.
Rules: test_steering_claims.py.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.activations.capture import activations
from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.record import Row
from loclin.report import steered as page
from loclin.report.section import Section
from loclin.stats import permutation_p
from loclin.steering.contrast import class_contrast
from loclin.steering.effect import logit_differences
from loclin.steering.tested import response
from loclin.studies.steering import claims, experiment
from loclin.studies.steering.arms import (
    choose_layer,
    size_of_step,
    stepping,
    vectors_at,
)
from loclin.studies.steering.config import Config, preset, settings
from loclin.studies.steering.material import PARTS, Material, angle, around, divided, halves, places
from loclin.studies.steering.nulls import (
    caa_relabelled,
    caa_weights,
    other_tokens,
    random_weights,
    relabelled,
    unrelated_tokens,
)
from loclin.studies.steering.vectors import Vectors, estimands, made, shifted, without_embeddings
from loclin.studies.table import by_run, summaries
from loclin.tasks.example import Example

SMALL: dict[str, Any] = {
    "seeds": 2,
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


def silent(stage: str, share: float) -> None:
    pass


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.fixture(scope="module")
def material(speaking: Problem) -> Material:
    return around(speaking, TINY, 0, silent)


@pytest.fixture(scope="module")
def vectors(material: Material) -> Vectors:
    return made(material)


@pytest.fixture(scope="module")
def rows(material: Material) -> Iterator[list[Row]]:
    """Of run 0; the model is afterwards what it was, bit for bit."""
    before = bits(material.model)
    yield experiment.measured(material)
    after = bits(material.model)
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.fixture(scope="module")
def paired_rows(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> list[Row]:
    """Of contrast pairs, on a model of another family with random weights."""
    pool = tuple(
        Example(
            prompt=f"do cats {i} purr?",
            answer=(" (A)", " (B)")[i % 2],
            options=(" (A)", " (B)"),
            group=str(i),
        )
        for i in range(60)
    )
    problem = Problem(
        model=families["llama"], tokenizer=tokenizers["llama"], examples={"test": {"pairs": pool}}
    )
    return experiment.measured(around(problem, replace(PAIRED, seeds=1), 0, silent))


PAIRED = replace(TINY, data="pairs.jsonl", labels=16, gradient=10, shift=10, choose=8, test=10)


# What a run works with.


def test_runs_share_no_example_and_none_the_model_learned_from(
    speaking: Problem, material: Material
) -> None:
    second = around(speaking, TINY, 1, silent)
    held = [e for m in (material, second) for part in PARTS for e in m.parts[part].examples]
    assert len({e.prompt for e in held}) == len(held) == 2 * sum(TINY.sizes.values())
    home = {
        (e.group, part, m.run)
        for m in (material, second)
        for part in PARTS
        for e in m.parts[part].examples
    }
    assert len({group for group, *_ in home}) == len(home)
    learned = {
        e.group
        for split in ("train", "validate")
        for t in speaking.tasks
        for e in speaking.examples[split][t]
    }
    assert not learned & {group for group, *_ in home}
    again = around(speaking, TINY, 0, silent)
    assert [again.parts[p].examples for p in PARTS] == [material.parts[p].examples for p in PARTS]
    assert not torch.equal(material.neutral.batch.input_ids, second.neutral.batch.input_ids)


@pytest.mark.parametrize(("count", "size"), [(100, 1), (140, 5)])
def test_too_few_examples_say_how_many_are_needed_for_so_many_runs(count: int, size: int) -> None:
    """Too few; or enough, but in groups that do not fit."""
    pool = [
        Example(prompt=str(i), answer=" yes", options=(" yes", " no"), group=str(i // size))
        for i in range(count)
    ]
    with pytest.raises(
        LoclinError,
        match=rf"expected 136 examples for 2 runs of 68 each \(labels 24, .*found {count} in",
    ):
        divided(pool, TINY)


def test_a_part_of_one_class_is_refused_by_name(speaking: Problem) -> None:
    one = {
        s: {t: tuple(e for e in found if e.answer == " yes") for t, found in p.items()}
        for s, p in speaking.examples.items()
    }
    with pytest.raises(LoclinError, match="both classes"):
        around(replace(speaking, examples=one), TINY, 0, silent)


def test_halves_divide_groups_and_share_out_classes(material: Material) -> None:
    one, other = halves(material.parts["labels"])
    assert len(one) + len(other) == TINY.labels
    assert not set(one.groups) & set(other.groups)
    assert one.labels is not None
    assert 0 < one.labels.sum() < len(one)
    with pytest.raises(LoclinError, match="two groups or more"):
        halves(replace(one, groups=("a",) * len(one)))


def test_angles_and_places() -> None:
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    assert angle(a, torch.tensor([[6.0, 8.0], [1.0, 0.0], [-2.0, 0.0]])).tolist()[
        ::2
    ] == pytest.approx([1.0, -1.0])
    assert angle(a, a)[1].isnan()
    found = places(np.array([[0.1, 0.5, 0.2, 0.4], [0.9, 0.0, 0.0, 0.2]]), 2)
    assert {k: v.tolist() for k, v in found.items()} == {
        "chosen": [0.2, 0.0],
        "late": pytest.approx([0.3, 0.1]),
        "highest": [0.5, 0.9],
    }


# Vectors.


def test_the_estimands_are_those_of_the_brief(material: Material, vectors: Vectors) -> None:
    """Against states before and after a step that is taken here by hand."""
    config, space, read = material.config, material.space, material.parts["shift"]
    after = {}
    for loss, direction in vectors.steps.items():
        with space.restored():
            point = space.read()
            ends = []
            for sign in (1, -1):
                space.write(point + sign * config.eta * point.norm() * direction / direction.norm())
                ends.append(activations(material.model, read.batch, layers=material.layers))
            after[loss] = (ends[0] - ends[1]) / 2
    assert read.labels is not None
    yes = torch.from_numpy(read.labels)
    expected = {
        "E1": after["fixed"].mean(1),
        "E2": after["gold"].mean(1),
        "E3": after["gold"][:, yes].mean(1) - after["gold"][:, ~yes].mean(1),
    }
    for of, vector in expected.items():
        assert angle(vectors.shifts[of], vector).min() > 0.999
        assert torch.allclose(vectors.shifts[of].norm(dim=-1), vector.norm(dim=-1), rtol=1e-2)
    assert estimands({"fixed": after["fixed"]}, None).keys() == {"E1"}


def test_frozen_embeddings_stay_where_they_are(
    material: Material, families: dict[str, PreTrainedModel]
) -> None:
    left = without_embeddings(material.model, material.space.names).split(",")
    assert {n for n in material.space.names if n not in left} == {
        "transformer.wte.weight",
        "transformer.wpe.weight",
    }
    llama = families["llama"]
    names = [n for n, _ in llama.named_parameters()]
    gone = set(names) - set(without_embeddings(llama, names).split(","))
    assert gone == {"model.embed_tokens.weight", "lm_head.weight"} & set(names)
    assert without_embeddings(material.model, ["transformer.wte.weight"]) == ""


# Nulls.


def test_permuted_labels_of_caa_weigh_prompts_as_caa_does(
    material: Material, vectors: Vectors
) -> None:
    labels = material.parts["labels"].labels
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


def test_labels_that_say_nothing_have_a_uniform_p(material: Material, vectors: Vectors) -> None:
    """A planted null: activations that know nothing of the labels. Kolmogorov and Smirnov, at 1 in
    1000.
    """
    labels = material.parts["labels"].labels
    assert labels is not None
    found = []
    for world in range(120):
        generator = torch.Generator().manual_seed(world)
        read = torch.randn(vectors.read.shape, generator=generator)
        aim = {"E1": torch.randn(vectors.caa.shape, generator=generator)}
        draws = caa_relabelled(
            replace(material, seed=world),
            replace(vectors, read=read, caa=class_contrast(read, labels), shifts=aim),
        )["E1"]
        observed = angle(class_contrast(read, labels), aim["E1"])
        found.append(permutation_p(float(observed[0]), draws[:, 0]))
    assert stats.kstest(found, "uniform").pvalue > 1e-3


def test_directions_and_tokens_are_those_of_every_run_and_permutations_are_not(
    material: Material, vectors: Vectors
) -> None:
    other = replace(material, run=1, seed=99)
    for matched in ("all", "tensor"):
        one, two = (random_weights(m, vectors, matched, "gold") for m in (material, other))  # type: ignore[arg-type]
        assert {of for of, _ in one} == {"E1", "E2", "E3"}
        assert {null for _, null in one} == {claims.BY_TENSOR, claims.LEFT}
        assert all(np.array_equal(one[of], two[of]) for of in one)
        assert one["E3", claims.LEFT].shape == (2 * TINY.directions, len(material.layers))
        along = one["E1", claims.BY_TENSOR]
        assert np.array_equal(along[TINY.directions :], -along[: TINY.directions])
    assert other_tokens(material) == other_tokens(other)
    assert not np.array_equal(relabelled(material, vectors)["E2"], relabelled(other, vectors)["E2"])


def test_unrelated_tokens_are_no_answers(material: Material, vectors: Vectors) -> None:
    tokenizer = material.problem.tokenizer
    every = other_tokens(replace(material, config=replace(TINY, tokens=10_000)))
    said = {tokenizer.decode([t]).strip() for t in every}
    assert len(every) == len(tokenizer) - 3
    assert not said & {"yes", "no", tokenizer.pad_token}
    assert unrelated_tokens(material, vectors).shape == (2 * TINY.tokens, len(material.layers))


# Effects.


def test_vectors_are_as_long_as_caa_and_the_parts_of_e1_add_up(
    material: Material, vectors: Vectors
) -> None:
    found = vectors_at(material, vectors, 1, {"search": vectors.caa * 3})
    length = float(vectors.caa[1].norm())
    parts = ("E1 along CAA", "E1 across CAA")
    assert all(
        float(x.norm()) == pytest.approx(length, rel=1e-5)
        for n, x in found.items()
        if n not in parts
    )
    assert torch.allclose(found[parts[0]] + found[parts[1]], found["E1"], atol=1e-5)
    assert abs(float(found[parts[1]] @ found["CAA"])) < 1e-4 * length**2
    assert torch.allclose(found["search"], found["CAA"], atol=1e-5)
    assert sum(n.startswith("random") for n in found) == TINY.random_vectors


def test_the_weight_step_shifts_as_much_as_caa_is_long_and_is_undone(
    material: Material, vectors: Vectors
) -> None:
    size = size_of_step(material, vectors, 1)
    assert size is not None
    moved = shifted(
        material, material.space, {"fixed": vectors.steps["fixed"]}, material.parts["shift"], size
    )["E1"]
    assert float(moved[1].norm()) == pytest.approx(float(vectors.caa[1].norm()), rel=5e-3)
    before, asked = bits(material.model), material.parts["test"]
    change = stepping(material, vectors.steps["fixed"], size)
    plain = logit_differences(material.model, asked)
    found = response(material.model, asked, change, material.config.strengths, before=plain)
    with material.space.restored():
        point, direction = material.space.read(), vectors.steps["fixed"]
        material.space.write(point + 0.5 * size * point.norm() * direction / direction.norm())
        half = logit_differences(material.model, asked)
    place = TINY.strengths.index(0.5)
    assert np.allclose(found.differences[place], half, atol=1e-3)
    assert np.array_equal(found.differences[TINY.strengths.index(0.0)], plain)
    near = np.array([s for s in TINY.strengths if abs(s) <= 1])
    fitted = np.polyfit(near, found.differences[[TINY.strengths.index(s) for s in near]], 1)[0]
    assert np.allclose(found.slopes, fitted, atol=1e-6)
    assert all(torch.equal(before[n], p) for n, p in material.model.named_parameters())


def test_the_layer_is_chosen_among_the_later_ones(material: Material, vectors: Vectors) -> None:
    chosen, told = choose_layer(material, vectors.caa)
    slope = [r.value for r in told]
    assert chosen == max(material.late, key=lambda layer: slope[layer] or 0.0)
    # turned round at the last layer, CAA moves answers the other way there, and is still not chosen
    # at an early one
    turned = vectors.caa.clone()
    turned[-1] *= -1
    assert choose_layer(material, turned)[0] in material.late


# Whole runs.


def value(rows: list[Row], quantity: str, **context: Any) -> float | None:
    (row,) = [
        r
        for r in rows
        if r.quantity == quantity and all(r.context.get(k) == v for k, v in context.items())
    ]
    return row.value


def test_a_run_decides_all_claims(rows: list[Row]) -> None:
    decided = claims.decide(TINY, rows)
    assert [c.id for c in decided] == ["gradient-step-steers"] * 3 + [
        "two-routes-agree",
        "search-steers",
    ]
    assert all(
        c.verdict == "inconclusive" and c.p == 1.0 and c.value is not None for c in decided
    )  # of one run
    for of, (_, second) in claims.ESTIMANDS.items():
        for null in (claims.BY_TENSOR, second):
            assert len(claims._draws(rows, "null_draw", of=of, null=null, at="chosen")) >= 4
    assert len(claims._draws(rows, "chance_ratio")) == TINY.chance


def test_a_run_says_what_it_measured(rows: list[Row], material: Material, vectors: Vectors) -> None:
    chosen = int(value(rows, "layer") or 0)
    cosine = value(rows, "cosine", of="E1", removed="nothing", layer=chosen)
    assert cosine == pytest.approx(
        float(angle(vectors.shifts["E1"], vectors.caa)[chosen]), abs=1e-5
    )
    assert value(rows, "cosine_at", of="E1", removed="nothing", at="chosen") == cosine
    assert value(rows, "slope_ratio", arm="CAA") == 1.0
    assert {
        value(rows, "response", arm=a, strength=0.0) for a in ("CAA", "E1", "random, 97.5 %")
    } == {0.0}
    assert (value(rows, "response", arm="CAA", strength=1.0) or 0.0) > 0
    assert abs(value(rows, "kl_ratio", arm="CAA") or 0.0) == 1.0
    assert (value(rows, "mirror_cosine", of="E1", at="late", eta=1e-3) or 0.0) > 0.9
    for of in claims.ESTIMANDS:
        small, large = (
            value(rows, "limit_error", of=of, at="late", eta=eta) or 0.0 for eta in TINY.etas
        )
        assert small < large
    assert len({(r.quantity, tuple(sorted(r.context.items(), key=str))) for r in rows}) == len(rows)


def test_the_same_run_again_gives_the_same_rows(rows: list[Row], speaking: Problem) -> None:
    assert experiment.measured(around(speaking, TINY, 0, silent)) == rows


def test_contrast_pairs_have_one_estimand_and_no_classes(paired_rows: list[Row]) -> None:
    assert np.isnan(by_run(paired_rows, "cosine_at", of="E3", removed="nothing", at="chosen")).all()
    assert {r.context["of"] for r in paired_rows if r.quantity == "limit_error"} == {"E1"}
    assert not [r for r in paired_rows if r.context.get("null") == claims.RELABELLED]
    decided = claims.decide(PAIRED, paired_rows)
    assert [c.verdict for c in decided[1:3]] == ["not run", "not run"]
    assert [c.p_holm for c in decided] == [1.0, None, None, 1.0, 1.0]
    assert "paired form" in decided[0].measured


@pytest.mark.parametrize("kind", ["rows", "paired_rows"])
def test_the_page(kind: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(kind)
    shown = page.sections([*found, *summaries(found)], vars(TINY))
    assert all(isinstance(s, Section) and s.figures and s.sees for s in shown)
    text = " ".join(line for s in shown for line in s.sees)
    assert "nan" not in text
    cells = [c for s in shown for t in s.tables for row in t.rows for c in row]
    assert "nan" not in cells
    assert all(len(row) == len(t.header) for s in shown for t in s.tables for row in t.rows)
    assert ("E2, mean shift" in text) == (kind == "rows")
    assert ("E3 is not defined" in text) == (kind == "paired_rows")


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.3, 0.5, "share something that is not along the mean gradients"),
        (-0.1, 0.1, "adds nothing to the readout"),
        (0.1, 0.4, "cannot be said from these"),
    ],
)
def test_what_is_left_without_the_readout_is_told_in_plain_words(
    low: float, high: float, told: str
) -> None:
    def summary(quantity: str, value: float, **context: Any) -> Row:
        return Row(
            quantity=quantity,
            value=value,
            low=low,
            high=high,
            n=6,
            context={"at": "late", **context},
        )

    made_up = [
        summary("cosine_at", 0.6, of="E1", removed="nothing"),
        summary("cosine_at", 0.5, of="E1", removed="logit gradient"),
        summary("cosine_at", (low + high) / 2, of="E1", removed="readout"),
        summary("null_at", 0.2, of="E1", null=claims.LEFT),
        summary("cosine_with_logits_at", 0.5, of="E1"),
        summary("cosine_at", 0.8, of="logit gradient", removed="nothing"),
    ]
    first, second = page._in_plain_words(made_up, "E1")
    assert "97.5 % of random weight directions stay below 0.2" in first
    assert told in second


# Settings.


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
def test_every_profile_can_be_run(profile: Any) -> None:
    for config in settings(profile):
        assert config.checked().profile == profile
    assert (
        len({c.entry for c in settings(profile)})
        == len(settings(profile))
        == (2 if profile == "paper" else 1)
    )


def test_the_nulls_of_a_study_are_large_enough_for_holm() -> None:
    standard = preset("standard")
    assert (
        5 / (min(2 * standard.directions, standard.relabelings, standard.chance, 2 * 97) + 1) < 0.05
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": "lora"}, "found --space lora: use full or a pattern"),
        ({"dtype": "bfloat16"}, "float32 or float64 for steps this small, found --dtype bfloat16"),
        ({"eta": 0.5}, "--eta 0.5 among --etas"),
        ({"etas": (1e-2, 1e-3)}, "growing step sizes above 0"),
        ({"winners": 200}, "fewer winners than the 200 candidates, found 200"),
        ({"strengths": (-1.0, 1.0)}, "growing strengths with −1, 0 and 1"),
        ({"test": 4}, "at least 8 examples for test, found 4: raise --test"),
        ({"directions": 0}, "directions of at least 1, found 0"),
        ({"kl": 0.0}, "kl above 0, found 0.0: change --kl"),
        ({"search_size": 2.0}, "between 0 and 1, found 2.0"),
        ({"neutral": Path("nowhere.txt")}, "a file of plain text, found none at nowhere.txt"),
        ({"neutral_tokens": 1}, "2 tokens or more, found 1"),
        ({"outliers": -1}, "found -1: change --outliers"),
        ({"model": "gpt2", "data": None}, "expected --data with the model 'gpt2'"),
        ({"seeds": 0}, "at least one seed, found 0"),
    ],
)
def test_bad_settings_are_named_with_their_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        replace(Config(), **change).checked()


def test_answers_that_are_due_are_no_damage_in_the_study(material: Material) -> None:
    tokenizer = material.problem.tokenizer
    said = {tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" yes", " no")}
    assert set(material.neutral.answers) == said
