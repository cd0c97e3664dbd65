"""`loclin steer`, start to record: divide, make the vectors, choose the layer, test once, write the
vector.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from loclin.activations.blocks import blocks, chosen_layers
from loclin.errors import LoclinError
from loclin.models import BUILT_IN, load
from loclin.models.pretrained import How, context_of, device_named
from loclin.record import Record, Row
from loclin.report.steering import ENTRY, KIND
from loclin.seeds import derived
from loclin.steering.apply import Generation, generations
from loclin.steering.config import NOT_WHAT, PARTS, Config, Form
from loclin.steering.gguf import write_gguf
from loclin.steering.making import Told, Work, made
from loclin.steering.neutral import neutral_text
from loclin.steering.parts import parted
from loclin.steering.routes import (
    described,
    labels_norm,
    made_of,
)
from loclin.steering.rows import (
    equal_damage_rows,
    generation_rows,
    harm_rows,
    layer_rows,
    response_rows,
)
from loclin.steering.tested import (
    LINEAR,
    at_equal_damage,
    harms,
    layer_slopes,
    random_vectors,
    responses,
)
from loclin.steering.vector import SteeringVector
from loclin.tasks.choices import JOINT

SHOWN = 3  # test prompts whose steered texts stand on the page
NEUTRAL_TOKENS = 32  # of a passage of neutral text, at most


def steer(config: Config, *, out: Path) -> None:
    """Make the vector, showing the progress, and write it and the record. What is finished already
    stays as it is.

    Args:
        config: what to do.
        out: the run folder.

    Raises:
        LoclinError: bad settings, a model or data that cannot be read or used, a folder of another
            run.
    """
    config = config.checked()
    if config.data is None and config.model not in BUILT_IN:
        raise LoclinError(
            f"expected --data with the model {config.model!r}, found none: give a JSON Lines file, "
            "google/boolq or statements"
        )
    if config.gguf and find_spec("gguf") is None:
        raise LoclinError(
            "expected the gguf package for --gguf, found none: pip install 'loclin[gguf]'"
        )
    began, record = time.perf_counter(), Record(out, option="--folder")
    device = device_named(config.device, small=config.model in BUILT_IN)
    where, kept = config.device_map or device, out / "vector.safetensors"
    record.open_study(ENTRY, _settings(config), device=where, kind=KIND)
    if (out / ENTRY / "results.json").exists() and _readable(kept):
        print(
            f"the vector in {out} was made before, by the same settings: model and data are not "
            "read again"
        )
        notes = record.run()["notes"].get(ENTRY, [])
    else:
        try:
            with _shown() as told:
                told("reading model and data", 0.0)
                rows, arrays, vector, notes = _steered(_begun(config, device, told))
        except torch.OutOfMemoryError as error:
            raise LoclinError(
                f"expected room for the model and its gradients on {where}, found too little "
                f"({' '.join(str(error).split())[:120]}): give fewer examples, a pattern with "
                "--space, or another --device"
            ) from error
        vector.save(kept)
        record.write_results(ENTRY, rows, arrays)
    record.close_study(ENTRY, time.perf_counter() - began, notes)
    _copied(kept, config)


def _settings(config: Config) -> dict[str, object]:
    """What decides the vector: the settings, and the files that were read, by their bytes."""
    told = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_WHAT}
    files = {"data": Path(config.data or ""), "neutral": config.neutral}
    read = {
        f"{n}_hash": _file_hash(path)
        for n, path in files.items()
        if path is not None and path.is_file()
    }
    return {**told, **read, "without_block_0": config.without_first}


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _readable(path: Path) -> bool:
    """Whether a whole vector is there; one that is damaged is made again."""
    try:
        SteeringVector.load(path)
    except LoclinError:
        return False
    return True


def _copied(kept: Path, config: Config) -> None:
    """The vector where the user wants it, beside the run folder."""
    vector = SteeringVector.load(kept)
    if config.file.resolve() != kept.resolve():
        vector.save(config.file)
    if config.gguf:
        write_gguf(vector, config.gguf)


def _begun(config: Config, device: str, told: Told) -> Work:
    """Model and data, divided."""
    how = How.of(config, device)
    problem = load(
        config.model,
        data=config.data,
        seed=config.seed,
        how=how,
        template=config.template,
        long=config.long,
    )
    layers = tuple(range(len(blocks(problem.model, config.layers_path))))
    _check_layers(config, len(layers))
    return Work(
        config=config, problem=problem, parts=parted(problem, config), layers=layers, told=told
    )


def _check_layers(config: Config, count: int) -> None:
    """Before any work: layers that are not there, or that the GGUF file cannot hold.

    Raises:
        LoclinError: either.
    """
    numbers = chosen_layers(count, config.given_layers)
    if config.without_first and count == 1:
        raise LoclinError(
            "expected a model of two blocks or more for --gguf, found one block: leave --gguf out"
        )
    if config.gguf is not None and not config.without_first and 0 in numbers:
        raise LoclinError(
            "expected blocks from 1 with --gguf, found 0, which llama.cpp refuses: change --layer"
        )


def _steered(work: Work) -> tuple[list[Row], dict[str, np.ndarray], SteeringVector, list[str]]:
    """Rows, arrays and notes of the record, and the vector."""
    config, parts = work.config, work.parts
    found = made(work)
    own = dict(zip(work.layers, found.scaled[config.route], strict=True))
    chosen, slopes = _chosen(work, own)
    vectors = {r: {n: found.scaled[r][n] for n in chosen} for r in config.routes}
    lengths = {n: found.lengths[n] for n in chosen}
    rows: list[Row] = [
        *found.rows,
        *layer_rows(slopes, found.lengths, chosen, groups=parts.choose.groups, seed=config.seed),
    ]
    vector = _vector(work, vectors[config.route])
    measured, notes = _measured(work, vectors, lengths)
    rows += [*measured, *generation_rows(_texts(work, vector))]
    arrays = {f"direction/{route}": raw.float().numpy() for route, raw in found.raw.items()}
    sizes = ", ".join(f"{config.sizes[name]} {name}" for name in PARTS)
    said = f"the examples are divided into {sizes}; no group in two of them"
    plus = (
        "the right answer of each example"
        if parts.test.positive is None
        else f"{parts.test.positive!r}"
    )
    towards = f"+ is towards {plus}, at the token in which the two options differ"
    return rows, arrays, vector, [*_true_here(work.problem.notes), said, towards, *notes]


def _true_here(notes: Sequence[str]) -> list[str]:
    """What was said of the data, without how options are scored elsewhere: here one token of each
    is compared.
    """
    return [note for note in notes if not note.endswith(JOINT)]


def _chosen(
    work: Work, vectors: Mapping[int, Float[Tensor, " d"]]
) -> tuple[tuple[int, ...], dict[int, Float[np.ndarray, " n"]]]:
    """The layers asked for, or the one where the vector steers most on the choose part, and the
    slopes that say so.
    """
    given = work.config.given_layers
    if given is not None:
        return tuple(dict.fromkeys(chosen_layers(len(work.layers), given))), {}
    told = work.share("choosing the layer")
    tried = {n: v for n, v in vectors.items() if n or not work.config.without_first}
    slopes = layer_slopes(
        work.model, work.parts.choose, tried, path=work.config.layers_path, told=told
    )
    return (max(slopes, key=lambda layer: float(slopes[layer].mean())),), slopes


def _vector(work: Work, directions: Mapping[int, Float[Tensor, " d"]]) -> SteeringVector:
    config, parts = work.config, work.parts
    names: dict[str, tuple[str, ...]] = {
        "labels": (),
        "gradient": ("estimand", "eta", "space"),
        "search": ("n", "k", "size", "space"),
    }
    paired = parts.labels.labels is None
    told = {n: f"{getattr(config, n)}" for n in names[config.route]}
    form: Form = config.form if config.route == "labels" else "auto"
    return described(
        work.model,
        directions,
        route=f"gradient step, {config.estimand}" if config.route == "gradient" else config.route,
        norm=f"as long as {labels_norm(parts.labels, class_form=not paired)}",
        data=parts.hash(),
        path=config.layers_path,
        position="answer"
        if config.route == "labels" and (paired or config.form == "paired")
        else "last",
        name=config.model if config.model in BUILT_IN or not Path(config.model).exists() else None,
        revision=config.revision,
        about={
            "layer": " ".join(config.layer),
            **told,
            **made_of(parts.labels, form=form, seed=config.seed),
        },
    )


def _measured(
    work: Work,
    vectors: Mapping[str, Mapping[int, Float[Tensor, " d"]]],
    lengths: Mapping[int, float],
) -> tuple[list[Row], list[str]]:
    """What the vectors do on the test part and on neutral text, once."""
    config, test, model, path = work.config, work.parts.test, work.model, work.config.layers_path
    width = next(iter(next(iter(vectors.values())).values())).numel()
    found = responses(
        model,
        test,
        vectors,
        config.strengths,
        path=path,
        told=work.share("steering the test prompts"),
    )
    drawn = random_vectors(lengths, width, count=config.band, seed=config.seed)
    near = [s for s in config.strengths if abs(s) <= LINEAR]
    told = work.share("steering at random")
    band = responses(
        model, test, {str(i): v for i, v in enumerate(drawn)}, near, path=path, told=told
    )
    work.told("reading neutral text", 0.0)
    neutral = neutral_text(
        model,
        work.problem.tokenizer,
        file=config.neutral,
        count=config.texts,
        tokens=NEUTRAL_TOKENS,
        seed=derived(config.seed, "steering neutral"),
        answers=test.tokens,
    )
    told = work.share("measuring the damage")
    harmed, equal = {}, {}
    for i, (route, by_layer) in enumerate(vectors.items()):
        strengths = config.strengths if route == config.route else (1.0,)
        harmed[route] = harms(model, neutral, by_layer, strengths, path=path)
        equal[route] = at_equal_damage(model, test, neutral, by_layer, config.kl, path=path)
        told((i + 1) / len(vectors))
    rows = [
        *response_rows(found, list(band.values()), groups=test.groups, seed=config.seed),
        *harm_rows(harmed, seed=config.seed),
        *equal_damage_rows(equal, target=config.kl, groups=test.groups, seed=config.seed),
    ]
    return rows, [
        f"damage is measured on {len(neutral.batch)} passages: {neutral.source}",
        *neutral.notes,
    ]


def _texts(work: Work, vector: SteeringVector) -> list[Generation]:
    """What the model says after the first test prompts that leave room for it, at the outermost
    strengths and at 0.
    """
    config, tokenizer, context = work.config, work.problem.tokenizer, context_of(work.model)
    strengths = sorted({min(config.strengths), 0.0, max(config.strengths)})
    work.told("writing examples", 0.0)
    said: list[Generation] = []
    for e in work.parts.test.examples if config.tokens else ():
        room = (
            config.tokens
            if context is None
            else min(config.tokens, context - len(tokenizer(e.prompt)["input_ids"]))
        )
        if room >= 1 and len(said) < SHOWN * len(strengths):
            said += generations(work.model, tokenizer, vector, [e.prompt], strengths, tokens=room)
    return said


@contextmanager
def _shown() -> Iterator[Told]:
    """A progress bar."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), transient=True
    ) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda text, share: bar.update(task, description=text, completed=share)
