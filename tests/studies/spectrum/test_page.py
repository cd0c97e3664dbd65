"""The page of the spectrum study holds its figures and the numbers of the rows."""

import dataclasses

from loclin.report.section import Section
from loclin.report.words import number
from loclin.run.rows import Part, by_run, summaries
from loclin.studies.spectrum.page import sections
from loclin.studies.spectrum.settings import SpectrumSettings


def made(part: Part, settings: SpectrumSettings, *, without: str = "") -> list[Section]:
    rows = [
        dataclasses.replace(r, low=None, high=None)  # of one run, as a record writes them
        for r in summaries(part.rows)
        if not (without and r.quantity.startswith(without))
    ]
    return sections(rows, dataclasses.asdict(settings))


def test_every_figure_is_drawn_at_both_points(part: Part, tiny: SpectrumSettings) -> None:
    names = {figure.name for section in made(part, tiny) for figure in section.figures}
    kinds = ("rank", "spectrum", "crossfit", "task-overlap", "layer-rank", "layer-energy")
    assert names == {f"{kind}-{point}" for kind in kinds for point in ("pretrained", "damaged")}


def test_the_sentences_hold_the_numbers_of_the_rows(part: Part, tiny: SpectrumSettings) -> None:
    ranks, energy, tasks, places = (section.sees for section in made(part, tiny))
    here = {"point": "damaged", "vectors": "measured"}
    of = {**here, "mean": "centred", "gradients": 8, "norms": "unit"}
    rank = by_run(part.rows, "participation_rank", **of)[0]
    unit = "θ_D, n = 8 centred gradients scaled to unit length: participation ratio"
    assert f"{unit} {number(rank)} " in ranks[2]
    at = {"point": "damaged", "norms": "unit"}
    ratio = by_run(part.rows, "rank_ratio", **at, control="isotropic")[0]
    assert f"over that of isotropic vectors {number(ratio)} " in ranks[2]
    growth = by_run(part.rows, "rank_growth", **at, vectors="measured")[0]
    assert f"as n doubles it grows {number(growth)} " in ranks[2]
    share = by_run(part.rows, "crossfit_energy", **here, k=2)[0]
    assert f"the top 2 directions of half of the gradients hold {number(share)} " in energy[1]
    within = by_run(part.rows, "overlap_within", point="damaged")[0]
    assert f"agree to {number(within)} " in tasks[1]
    assert len(places) == 2


def test_sketches_have_no_places(part: Part, tiny: SpectrumSettings) -> None:
    assert len(made(part, tiny, without="layer_")) == 3


def test_a_single_task_has_no_other_to_agree_with(part: Part, tiny: SpectrumSettings) -> None:
    tasks = made(part, tiny, without="overlap_between")[2]
    assert all("there is only one task" in line for line in tasks.sees)
