"""Settings of the spectrum study. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from loclin.errors import LoclinError
from loclin.options import SEQUENCE_MODELS
from loclin.studies import presets
from loclin.studies.checks import check_counts, check_sketch
from loclin.studies.settings import DamageSettings, Profile, Sizes, Work


@dataclass(frozen=True, kw_only=True)
class SpectrumSettings(DamageSettings):
    """Take n gradients of a task at the pretrained and at the damaged point, and ask how many
    directions they share.

    Effective ranks as n grows, scaled to unit length and not, centred and not, against random
    vectors that share nothing but the norms, sketched the same way; the energy of new gradients in
    the space of old ones; how far the spaces of different tasks overlap; and which layers and kinds
    of weights hold it (measures §6, §5). One claim at each of the two points.

    The other defaults depend on --profile and --model: the built-in sequence models are measured on
    all their weights, everything else by LoRA.
    """

    study: ClassVar[str] = "spectrum"
    kind: ClassVar[str] = "spectrum"
    scales: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("stable_rank", "participation_rank", "entropy_rank"), "log"),
        **dict.fromkeys(("rank_ratio", "rank_growth", "layer_rank", "layer_rank_ratio"), "log"),
        **dict.fromkeys(("energy_share", "crossfit_energy", "layer_energy"), "logit"),
        **dict.fromkeys(("task_overlap", "overlap_within", "overlap_between"), "logit"),
    }

    untouched: bool = False
    """Measure the model as it is: nothing is taught or destroyed, and θ₀ is the only point."""
    counts: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Numbers n of gradients at which effective ranks are measured; the claim compares the last
    two."""
    gradient_batch: int = 8
    """Examples in each gradient; 1 takes the gradient of every example."""
    k: int = 10
    """Dimensions of the spaces that are held against each other."""
    ks: tuple[int, ...] = (1, 2, 3, 5, 10, 20)
    """Dimensions at which the energy of new gradients is measured."""
    overlap_gradients: int = 12
    """Gradients behind each task's space; two independent sets are taken for every task."""

    def work(self, sizes: Sizes) -> list[Work]:
        """Gradients of every task at two points."""
        two = 2 * self.overlap_gradients
        count = max(*self.counts, two) + (sizes.tasks - 1) * two
        return [
            self.destroying(sizes),
            Work(what="gradients", backward=(2 - self.untouched) * count * self.gradient_batch),
        ]

    def _check(self) -> None:
        super()._check()
        check_counts(self, ("gradient_batch", "overlap_gradients", "k"))
        counts, ks, half = list(self.counts), list(self.ks), max(self.counts, default=0) // 2
        if len(set(counts)) < 2 or min(counts) < 4 or counts != sorted(counts):
            raise LoclinError(
                "expected at least two growing numbers of gradients, each 4 or more, found "
                f"{counts}: change --counts"
            )
        if not ks or min(ks) < 1 or max(ks) > half:
            raise LoclinError(
                f"expected ks from 1 to {half}, half of the gradients, found {ks}: change --ks or "
                "raise --counts"
            )
        if self.k > self.overlap_gradients:
            raise LoclinError(
                f"expected k of at most {self.overlap_gradients} gradients, found {self.k}: lower "
                "--k or raise --overlap-gradients"
            )
        check_sketch(self, max(counts), "n")


def preset(profile: Profile, model: str | None = None) -> SpectrumSettings:
    """The defaults of a profile for a model: smoke takes few gradients."""
    settings = SpectrumSettings(model=presets.named(profile, model), profile=profile)
    sequences = settings.model in SEQUENCE_MODELS
    if not sequences:
        settings = replace(presets.by_lora(settings), gradient_batch=4, counts=(6, 12, 24, 48))
        settings = replace(settings, ks=(1, 2, 3, 5, 10))
    if presets.costly(settings):  # gradients of single examples, of which data have few
        settings = replace(settings, gradient_batch=1)
        if profile == "smoke":
            settings = replace(presets.quick(settings), counts=(4, 8, 16), k=4, ks=(1, 2, 4))
            return replace(settings, overlap_gradients=6)
    elif profile == "smoke":
        batch, counts = (6, (4, 8, 16, 32)) if sequences else (4, (4, 8, 16))
        settings = replace(presets.quick(settings), gradient_batch=batch, counts=counts)
        return replace(settings, k=4, ks=(1, 2, 4), overlap_gradients=6)
    return presets.exhaustive(settings) if profile == "paper" else settings


#: What `loclin reproduce` runs: the built-in models, and a pretrained one as it is; with "paper"
#: the paper's own as well.
reproduced = partial(
    presets.studied,
    preset,
    pretrained={"counts": (6, 12, 24, 48), "overlap_gradients": 12, "k": 10},
)
