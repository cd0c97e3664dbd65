"""The vectors of one run, from labels, from the logits and from one gradient step, and the angles
between them by layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from loclin.activations.capture import activations
from loclin.parameters import ParameterSpace
from loclin.record import Row
from loclin.steering.asked import Asked
from loclin.steering.compare import disattenuated, reliability, without, without_outliers
from loclin.steering.contrast import class_contrast, paired_differences
from loclin.steering.gradient import (
    centred_shift,
    class_shift,
    mean_shift,
    shift,
    shift_per_size,
    step_direction,
)
from loclin.steering.readout import answer_gradient, logit_gradient
from loclin.studies.steering.material import Layered, Material, angle, halves

#: The loss whose gradient is stepped along, by estimand (measures §13).
LOSSES = {"E1": "fixed", "E2": "gold", "E3": "gold"}


@dataclass(frozen=True, eq=False, kw_only=True)
class Vectors:
    """What is compared.

    Attributes:
        caa: from labels, in the class form where there are classes, else in the paired form.
        paired: from labels in the paired form.
        logits: g, the mean gradient of the logit difference.
        answers: mean gradients of log p(toward) and of log p(away); how the rest of the network
            reads either answer. g is their difference.
        read: activations of the labels part (class form) or differences of the answers there
            (paired form): their contrast is CAA.
        origin: activations of the shift part before any step.
        steps: weight directions by loss.
        shifts: by estimand, at the η that decides.
    """

    caa: Layered
    paired: Layered
    logits: Layered
    answers: tuple[Layered, ...]
    read: Float[Tensor, "L n d"]
    origin: Float[Tensor, "L m d"]
    steps: Mapping[str, Float[Tensor, " D"]]
    shifts: Mapping[str, Layered]

    def direction(self, estimand: str) -> Float[Tensor, " D"]:
        """Of the weights."""
        return self.steps[LOSSES[estimand]]


def from_labels(
    material: Material, asked: Asked
) -> tuple[Layered, Layered, Float[Tensor, "L n d"]]:
    """CAA in the form of the data, CAA in the paired form, and what the first is a contrast or mean
    of.
    """
    model, layers, path = material.model, material.layers, material.config.layers_path
    each = paired_differences(model, asked, layers=layers, path=path)
    if asked.labels is None:
        return each.mean(1), each.mean(1), each
    h = activations(model, asked.batch, layers=layers, path=path)
    return class_contrast(h, asked.labels), each.mean(1), h


def made(material: Material) -> Vectors:
    """All of them, none longer or shorter than it is found."""
    model, parts, path = material.model, material.parts, material.config.layers_path
    labelled = parts["labels"]
    caa, paired, read = from_labels(material, labelled)
    origin = activations(model, parts["shift"].batch, layers=material.layers, path=path)
    losses = ("fixed", "gold") if material.class_form else ("fixed",)
    steps = {
        loss: step_direction(model, material.space, parts["gradient"], loss=loss) for loss in losses
    }  # type: ignore[arg-type]
    return Vectors(
        caa=caa,
        paired=paired,
        logits=logit_gradient(model, labelled, layers=material.layers, path=path),
        read=read,
        origin=origin,
        answers=tuple(
            answer_gradient(model, labelled, tokens=tokens, layers=material.layers, path=path)
            for tokens in (labelled.toward, labelled.away)
        ),
        steps=steps,
        shifts=centred(material, material.space, steps, parts["shift"]),
    )


def shifted(
    material: Material,
    space: ParameterSpace,
    steps: Mapping[str, Float[Tensor, " D"]],
    asked: Asked,
    size: float,
    origin: Float[Tensor, "L n d"] | None = None,
) -> dict[str, Layered]:
    """Every estimand's shift by a step of some size; of size 0, the limit of shift over size."""
    found = {}
    for loss, step in steps.items():
        at: dict[str, object] = {"layers": material.layers, "path": material.config.layers_path}
        if size == 0:
            found[loss] = shift_per_size(material.model, space, step, asked.batch, **at)  # type: ignore[arg-type]
        else:
            found[loss] = shift(
                material.model, space, step, asked.batch, size=size, origin=origin, **at
            )  # type: ignore[arg-type]
    return estimands(found, asked.labels)


def centred(
    material: Material,
    space: ParameterSpace,
    steps: Mapping[str, Float[Tensor, " D"]],
    asked: Asked,
) -> dict[str, Layered]:
    """Every estimand's shift at the η that decides, by a step forward and back."""
    at: dict[str, Any] = {
        "size": material.config.eta,
        "layers": material.layers,
        "path": material.config.layers_path,
    }
    found = {
        loss: centred_shift(material.model, space, step, asked.batch, **at)
        for loss, step in steps.items()
    }
    return estimands(found, asked.labels)


def estimands(
    shifts: Mapping[str, Float[Tensor, "L n d"]], labels: Bool[np.ndarray, " n"] | None
) -> dict[str, Layered]:
    """E1, E2 and E3 of the shifts by loss; without classes E1, which E2 is there."""
    found = {"E1": mean_shift(shifts["fixed"])} if "fixed" in shifts else {}
    if labels is not None and "gold" in shifts:
        found |= {"E2": mean_shift(shifts["gold"]), "E3": class_shift(shifts["gold"], labels)}
    return found


def angle_rows(material: Material, v: Vectors, chosen: int) -> Iterator[Row]:
    """Cosines with CAA at every layer, as they are and without what could make them; with the logit
    gradient; reliability.
    """
    common = v.origin.double().mean(1).to(v.caa)
    others = {**v.shifts, "paired CAA": v.paired, "logit gradient": v.logits}
    if not material.class_form:
        del others["paired CAA"]  # it is CAA
    for of, vector in others.items():
        plain = {
            "nothing": angle(vector, v.caa),
            "common mean": angle(without(vector, common), without(v.caa, common)),
        }
        count = min(material.config.outliers, v.caa.shape[-1] - 1)
        kept = [without_outliers(x, v.origin, count) for x in (vector, v.caa)]
        plain["outliers"] = angle(*kept)
        if of != "logit gradient":
            plain["logit gradient"] = angle(without(vector, v.logits), without(v.caa, v.logits))
            plain["readout"] = angle(without(vector, *v.answers), without(v.caa, *v.answers))
            yield from both(material, "cosine_with_logits", angle(vector, v.logits), chosen, of=of)
        for removed, values in plain.items():
            yield from both(material, "cosine", values, chosen, of=of, removed=removed)


def both(
    material: Material, quantity: str, values: Tensor | np.ndarray, chosen: int, **context: object
) -> list[Row]:
    """Rows by layer, and at the places that claims are decided at."""
    return [
        *material.by_layer(quantity, values, **context),
        *material.at(f"{quantity}_at", values, chosen, **context),
    ]


def reliability_rows(material: Material, v: Vectors, chosen: int) -> Iterator[Row]:
    """How well each vector agrees with itself from other examples: halves of the labels, of the
    gradient AND the shift part.
    """
    one, other = (from_labels(material, half)[0] for half in halves(material.parts["labels"]))
    labels = reliability(one, other)
    yield from both(material, "reliability", labels, chosen, of="CAA")
    found = []
    for step, read in zip(
        halves(material.parts["gradient"]), halves(material.parts["shift"]), strict=True
    ):
        steps = {
            loss: step_direction(material.model, material.space, step, loss=loss)
            for loss in v.steps
        }  # type: ignore[arg-type]
        found.append(centred(material, material.space, steps, read))
    for of in v.shifts:
        own = reliability(found[0][of], found[1][of])
        yield from both(material, "reliability", own, chosen, of=of)
        yield from both(material, "ceiling", (own * labels).sqrt(), chosen, of=of)
        corrected = disattenuated(angle(v.shifts[of], v.caa).to(own), own, labels)
        yield from both(material, "disattenuated", corrected, chosen, of=of)


def size_rows(material: Material, v: Vectors, chosen: int) -> Iterator[Row]:
    """One step over η: cosine with CAA, mirror image by a step back, distance of the step and of
    the two together from the limit.
    """
    config, read = material.config, material.parts["shift"]
    limit = shifted(material, material.space, v.steps, read, 0.0)
    for of, vector in limit.items():
        yield from material.at("eta_cosine", angle(vector, v.caa), chosen, of=of, eta=0.0)
    for eta in config.etas:
        up, down = (
            shifted(material, material.space, v.steps, read, s * eta, v.origin) for s in (1, -1)
        )
        for of in limit:
            yield from material.at("eta_cosine", angle(up[of], v.caa), chosen, of=of, eta=eta)
            yield from material.at(
                "mirror_cosine", angle(up[of], -down[of]), chosen, of=of, eta=eta
            )
            for quantity, moved in (
                ("limit_error", up[of]),
                ("centred_error", (up[of] - down[of]) / 2),
            ):
                error = (moved / eta - limit[of]).double().norm(dim=-1) / limit[of].double().norm(
                    dim=-1
                )
                yield from material.at(quantity, error, chosen, of=of, eta=eta)


def frozen_rows(material: Material, v: Vectors, chosen: int) -> Iterator[Row]:
    """The same step with embeddings frozen: input, output and position embeddings stay as they are."""
    pattern = without_embeddings(material.model, material.space.names)
    if not pattern:
        return
    space = ParameterSpace(material.model, pattern)
    gradient = material.parts["gradient"]
    steps = {loss: step_direction(material.model, space, gradient, loss=loss) for loss in v.steps}  # type: ignore[arg-type]
    moved = centred(material, space, steps, material.parts["shift"])
    for of, vector in moved.items():
        yield from both(
            material,
            "cosine",
            angle(vector, v.caa),
            chosen,
            of=f"{of}, embeddings frozen",
            removed="nothing",
        )
    yield material.row("frozen_share", 1 - space.dimension / material.space.dimension)


def without_embeddings(model: nn.Module, names: Sequence[str]) -> str:
    """Those of some parameters that embed nothing, as a pattern; "" where none is left.

    Embeddings are the weights of `nn.Embedding` modules and those of the output layer, whatever
    they are called.
    """
    held = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel | PeftModel) else None
    held |= {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()
    own = dict(model.named_parameters())
    return ",".join(n for n in names if id(own[n]) not in held)
