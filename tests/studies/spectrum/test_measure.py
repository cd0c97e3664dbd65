"""One small run of the spectrum study."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.geometry.spectrum import effective_ranks
from loclin.models import Problem
from loclin.run.rows import Part, by_run, summaries
from loclin.run.runner import Session
from loclin.studies.spectrum import claims
from loclin.studies.spectrum.measure import measure
from loclin.studies.spectrum.page import sections
from loclin.studies.spectrum.settings import SpectrumSettings


@pytest.mark.parametrize("point", ["pretrained", "damaged"])
def test_one_real_run(part: Part, point: str) -> None:
    here: dict[str, Any] = {"point": point}

    def values(quantity: str) -> list[float | None]:
        at_point = [r for r in part.rows if r.context.get("point") == point]
        return [r.value for r in at_point if r.quantity == quantity]

    gram = part.arrays[f"gradient_gramian/{point}/0"]
    assert gram.shape == (8, 8)
    assert part.arrays[f"control_gramian/isotropic/{point}/0"].shape == (8, 8)
    of = {"vectors": "measured", "norms": "own", "mean": "uncentred", "gradients": 8}
    rank = by_run(part.rows, "participation_rank", **here, **of)
    assert rank[0] == pytest.approx(effective_ranks(gram).participation)
    assert len(values("energy_share")) == 3 * 7  # centred
    assert len(values("task_overlap")) == 36
    within, between = (by_run(part.rows, f"overlap_{w}", **here)[0] for w in ("within", "between"))
    assert within > between > 2 / by_run(part.rows, "dimension")[0]
    assert sum(map(float, values("layer_energy"))) == pytest.approx(1)  # type: ignore[arg-type]


def test_too_few_examples_are_named_before_anything_is_taught(
    trained: Problem, tiny: SpectrumSettings
) -> None:
    wanted = replace(tiny, counts=(400, 800), gradient_batch=8)
    with pytest.raises(
        LoclinError,
        match=r"expected at least 6400 examples of swap in the gradients split, found .*--counts",
    ):
        measure(wanted, 0, Session())


def test_a_model_measured_as_it_is_has_one_point_and_nothing_is_trained(
    trained: Problem, tiny: SpectrumSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loclin.studies.context.train", lambda *_, **__: pytest.fail("trained"))
    settings = replace(tiny, untouched=True)
    part = measure(settings, 0, Session())
    assert {r.context["point"] for r in part.rows if "point" in r.context} == {"pretrained"}
    assert [c.setting for c in claims.decide(settings, part.rows)] == ["sequences-small, θ₀"]
    written = [line for s in sections(summaries(part.rows), asdict(settings)) for line in s.sees]
    assert not any("θ_D" in line for line in written)
