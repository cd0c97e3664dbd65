"""`loclin steer`: divide the examples, make the vectors, choose the layer, test once, write the
vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.activations.blocks import chosen_layers
from loclin.activations.suffix import resumable
from loclin.errors import LoclinError
from loclin.models import load
from loclin.models.pretrained import context_of
from loclin.options import BUILT_IN
from loclin.run.rows import Part, Row
from loclin.run.runner import Session
from loclin.seeds import derived
from loclin.stats import over_examples
from loclin.steering.compare import random_vectors
from loclin.steering.effect import LINEAR, ByLayer, adding, layer_slopes, responses
from loclin.steering.generation import Generation, generations
from loclin.steering.gguf import write_gguf
from loclin.steering.neutral import at_equal_damage, damages
from loclin.steering.prompts import PromptSet
from loclin.steering.routes import described, labels_norm, made_of
from loclin.steering.vector import SteeringVector
from loclin.studies.known import known
from loclin.studies.steering import rows as make_rows
from loclin.studies.steering.context import (
    SteeringContext,
    digest,
    every_layer,
    neutral_of,
    split_examples,
)
from loclin.studies.steering.directions import Context, make_directions, opened
from loclin.studies.steering.settings import SteerSettings
from loclin.tasks.choices import JOINT
from loclin.tasks.tokens import text_tokens

VECTOR = "vector.safetensors"  # in the run folder
WHOLE = (
    "every effect took whole passes: begun at the block that is added to, this model's are not the "
    "same to the last bit"
)
SHOWN = 3  # test prompts whose steered texts stand on the page
NEUTRAL_TOKENS = 32  # of a passage of neutral text, at most


def measure(settings: SteerSettings, run: int, session: Session) -> Part:
    """Make the vector, write it into the run folder, and measure what it does.

    Raises:
        LoclinError: a model or data that cannot be read or used.
    """
    part, vector = steer(settings, session)
    vector.save(_kept(session))
    return part


def deliver(settings: SteerSettings, session: Session) -> None:
    """Write the vector of a finished run where the user wants it; one that is missing or damaged is
    made again first.
    """
    kept = _kept(session)
    try:
        vector = SteeringVector.load(kept)
    except LoclinError:
        measure(settings, 0, session)
        vector = SteeringVector.load(kept)
    if settings.vector and settings.vector.resolve() != kept.resolve():
        vector.save(settings.vector)
    if settings.gguf:
        write_gguf(vector, settings.gguf)


def _kept(session: Session) -> Path:
    assert session.record is not None
    return session.record.folder / VECTOR


def steer(settings: SteerSettings, session: Session) -> tuple[Part, SteeringVector]:
    """What the record holds, and the vector; every stage is kept until all are done."""
    ctx, pieces = _context(settings, session), session.pieces
    made, test = pieces("directions", partial(make_directions, ctx)), ctx.parts["test"]
    raw, scaled, lengths = opened(made, ctx)
    chosen, slopes = _choose(ctx, scaled[settings.route], session)
    over = partial(over_examples, groups=ctx.parts["choose"].groups, seed=settings.seed)
    rows = [*made.rows, *make_rows.layer_rows(slopes, lengths, chosen, over)]
    vectors = {route: {n: each[n] for n in chosen} for route, each in scaled.items()}
    lengths, vector = {n: lengths[n] for n in chosen}, _vector(ctx, vectors[settings.route])
    rows += pieces("effects", lambda: _of_rows(_effects(ctx, vectors, lengths))).rows
    damaged = pieces("damage", lambda: _of_rows(*_damage(ctx, vectors)))
    said = pieces("texts", lambda: _of_rows(make_rows.generation_rows(_texts(ctx, vector))))
    before = known(ctx.problem, settings, progress=session.progress)
    notes = [*_notes(ctx, test), *before.notes, *damaged.notes]
    arrays = {f"direction/{route}": each.float().numpy() for route, each in raw.items()}
    rows = [*before.rows, *rows, *damaged.rows, *said.rows]
    return Part(rows=rows, arrays=arrays, notes=notes), vector


def _of_rows(rows: Iterable[Row], notes: Sequence[str] = ()) -> Part:
    return Part(rows=list(rows), arrays={}, notes=notes)


def _context(settings: SteerSettings, session: Session) -> Context:
    """Model and data, divided."""
    progress = session.progress
    progress("reading model and data", 0.0)
    problem = session.problem or load(settings, seed=settings.seed, progress=progress)
    layers = every_layer(problem, settings)
    check_layers(settings, len(layers))
    return SteeringContext(
        settings=settings,
        problem=problem,
        parts=split_examples(problem, settings),
        layers=layers,
        progress=progress,
    )


def check_layers(settings: SteerSettings, count: int) -> None:
    """Whether the layers asked for are there, and the GGUF file can hold them.

    Raises:
        LoclinError: one of them is not, or cannot.
    """
    numbers = chosen_layers(count, settings.given_layers)
    if settings.without_first and count == 1:
        raise LoclinError(
            "expected a model of two blocks or more for --gguf, found one block: leave --gguf out"
        )
    if settings.gguf is not None and not settings.without_first and 0 in numbers:
        raise LoclinError(
            "expected blocks from 1 with --gguf, found 0, which llama.cpp refuses: change --layer"
        )


def _notes(ctx: Context, test: PromptSet) -> list[str]:
    """What was read, and how it was divided and asked."""
    sizes = ", ".join(f"{size} {name}" for name, size in ctx.settings.sizes.items())
    positive = test.positive
    plus = "the right answer of each example" if positive is None else repr(positive)
    alike = ctx.problem.one_answer(test.examples)
    return [
        *([alike] if alike else []),
        *read_notes(ctx.problem.notes),
        f"the examples are divided into {sizes}; no group in two of them",
        f"+ is towards {plus}, at the token in which the two options differ",
        *([] if resumable(ctx.model, ctx.settings.layers_path) else [WHOLE]),
    ]


def read_notes(notes: Sequence[str]) -> list[str]:
    """Notes of the data, without how options are scored elsewhere: here one token of each is
    compared.
    """
    return [note for note in notes if not note.endswith(JOINT)]


def _choose(
    ctx: Context, vectors: ByLayer, session: Session
) -> tuple[tuple[int, ...], dict[int, Float[np.ndarray, " n"]]]:
    """The layers asked for, or the one where the vector steers most on the choose part, and the
    slopes that say so.
    """
    settings, choose = ctx.settings, ctx.parts["choose"]
    if settings.given_layers is not None:
        return tuple(dict.fromkeys(chosen_layers(len(ctx.layers), settings.given_layers))), {}
    tried = {n: v for n, v in vectors.items() if n or not settings.without_first}
    progress, path = ctx.stage("choosing the layer"), settings.layers_path

    def made() -> dict[str, Any]:
        by_layer = layer_slopes(ctx.model, choose, tried, path=path, progress=progress)
        return {str(n): slopes for n, slopes in by_layer.items()}

    held = session.kept("slopes", made)
    slopes = {n: held[str(n)] for n in tried}
    return (max(slopes, key=lambda layer: float(slopes[layer].mean())),), slopes


def _vector(ctx: Context, directions: ByLayer) -> SteeringVector:
    settings, labels = ctx.settings, ctx.parts["labels"]
    names: dict[str, tuple[str, ...]] = {
        "labels": (),
        "gradient": ("estimand", "eta", "space"),
        "search": ("n", "k", "size", "space"),
    }
    form, route, position = settings.form, settings.route, "last"
    if route != "labels":
        form = "auto"
    elif labels.labels is None or form == "paired":
        position = "answer"
    local = settings.model not in BUILT_IN and Path(settings.model).exists()
    return described(
        ctx.model,
        directions,
        route=f"gradient step, {settings.estimand}" if route == "gradient" else route,
        norm=f"as long as {labels_norm(labels)}",
        data=digest(ctx.parts),
        path=settings.layers_path,
        position=position,
        name=None if local else settings.model,
        revision=settings.revision,
        about={
            "layer": " ".join(settings.layer),
            **{n: f"{getattr(settings, n)}" for n in names[route]},
            **made_of(labels, form=form, seed=settings.seed),
        },
    )


def _effects(
    ctx: Context, vectors: Mapping[str, ByLayer], lengths: Mapping[int, float]
) -> list[Row]:
    """What the vectors do on the test part, once, beside random directions."""
    settings, test = ctx.settings, ctx.parts["test"]
    many = partial(responses, ctx.model, test)
    put = partial(adding, ctx.model, path=settings.layers_path)
    progress = ctx.stage("steering the test prompts")
    changes = {route: put(by_layer) for route, by_layer in vectors.items()}
    found = many(changes, settings.strengths, progress=progress)
    width = next(iter(vectors[settings.route].values())).numel()
    drawn = random_vectors(lengths, width, count=settings.band, seed=settings.seed)
    near = [s for s in settings.strengths if abs(s) <= LINEAR]
    progress = ctx.stage("steering at random")
    band = many({str(i): put(v) for i, v in enumerate(drawn)}, near, progress=progress)
    over = partial(over_examples, groups=test.groups, seed=settings.seed)
    return list(make_rows.response_rows(found, list(band.values()), over))


def _damage(ctx: Context, vectors: Mapping[str, ByLayer]) -> tuple[list[Row], list[str]]:
    """What they damage on neutral text, and what the text is."""
    settings, test, model = ctx.settings, ctx.parts["test"], ctx.model
    ctx.stage("reading neutral text")
    seed = derived(settings.seed, "steering neutral")
    size = {"count": settings.texts, "tokens": NEUTRAL_TOKENS}
    neutral = neutral_of(ctx.problem, settings, ctx.parts, seed=seed, **size)
    progress, over = ctx.stage("measuring the damage"), partial(over_examples, seed=settings.seed)
    rows: list[Row] = []
    equal = {}
    for i, (route, by_layer) in enumerate(vectors.items()):
        change = adding(model, by_layer, path=settings.layers_path)
        strengths = sorted(settings.strengths) if route == settings.route else [1.0]
        done = damages(model, neutral, [(change, strength) for strength in strengths])
        rows += make_rows.damage_rows(route, dict(zip(strengths, done, strict=True)), over)
        equal[route] = at_equal_damage(model, test, neutral, change, settings.kl)
        progress((i + 1) / len(vectors))
    over = partial(over, groups=test.groups)
    rows += make_rows.equal_damage_rows(equal, settings.kl, over)
    source = f"damage is measured on {len(neutral.batch)} passages: {neutral.source}"
    return rows, [source, *neutral.notes]


def _texts(ctx: Context, vector: SteeringVector) -> list[Generation]:
    """What the model says after the first test prompts that leave room for it, at the outermost
    strengths and at 0.
    """
    tokens, tokenizer, context = ctx.settings.tokens, ctx.problem.tokenizer, context_of(ctx.model)
    strengths = sorted({min(ctx.settings.strengths), 0.0, max(ctx.settings.strengths)})
    ctx.stage("writing examples")
    made: list[Generation] = []
    for e in ctx.parts["test"].examples if tokens else ():
        left = tokens if context is None else context - len(text_tokens([e.prompt], tokenizer)[0])
        if (room := min(tokens, left)) >= 1 and len(made) < SHOWN * len(strengths):
            made += generations(ctx.model, tokenizer, vector, [e.prompt], strengths, tokens=room)
    return made
