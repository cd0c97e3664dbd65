"""One independent run of the steering study: labels, one gradient step and random search, compared
and tried (measures §13).
"""

from __future__ import annotations

import time

from loclin.record import Part, Row
from loclin.studies.bench import device
from loclin.studies.steering.arms import arm_rows, choose_layer
from loclin.studies.steering.config import Config
from loclin.studies.steering.material import Material, Progress, gathered
from loclin.studies.steering.nulls import null_rows
from loclin.studies.steering.route import route_rows, searched
from loclin.studies.steering.vectors import (
    angle_rows,
    both,
    frozen_rows,
    made,
    reliability_rows,
    size_rows,
)

__all__ = ["device", "run_one"]


def run_one(config: Config, run: int, progress: Progress) -> Part:
    """Everything that run number `run` contributes.

    Raises:
        LoclinError: whatever is wrong with model or data, too few examples, options that are not
            told apart by one token, a step or a vector that is zero or not finite.
    """
    began = time.perf_counter()
    material = gathered(config, run, progress)
    rows = measured(material)
    notes = (
        *material.problem.notes,
        f"damage is seen on {material.neutral.source}",
        *material.neutral.notes,
    )
    return Part(rows=rows, arrays={}, seconds=time.perf_counter() - began, notes=notes)


def measured(material: Material) -> list[Row]:
    """All rows; the model is afterwards what it was."""
    material.progress("making vectors", 0.0)
    v = made(material)
    chosen, rows = choose_layer(material, v.caa)
    rows.append(material.row("layer", float(chosen)))
    rows.append(material.row("class_form", float(material.class_form)))
    rows += both(
        material,
        "caa_length",
        v.caa.double().norm(dim=-1) / v.origin.double().norm(dim=-1).mean(1),
        chosen,
    )
    rows += angle_rows(material, v, chosen)
    rows += reliability_rows(material, v, chosen)
    rows += size_rows(material, v, chosen)
    rows += frozen_rows(material, v, chosen)
    rows += null_rows(material, v, chosen)
    route = searched(material)
    rows += route_rows(material, v, route, chosen)
    rows += arm_rows(
        material, v, chosen, {"search": route.vector}, {"search": route.chance[:, chosen]}
    )
    if not material.class_form:  # E2 is E1 there, and E3 is not defined
        rows += [
            material.row("cosine_at", None, of=of, removed="nothing", at="chosen")
            for of in ("E2", "E3")
        ]
    return rows
