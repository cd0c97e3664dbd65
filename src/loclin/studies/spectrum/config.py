"""Settings of the spectrum study. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from loclin.errors import LoclinError
from loclin.studies.settings import (
    SEQUENCE_MODELS,
    Profile,
    Settings,
    by_lora,
    check_counts,
    check_sketch,
    named,
    quick,
    studied,
)


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Take n gradients of a task at the pretrained and at the damaged point, and ask how many
    directions they share.

    Effective ranks as n grows, centred and not, against random vectors that share nothing but the
    norms within every tensor, sketched the same way; the energy of new gradients in the space of
    old ones; how far the spaces of different tasks overlap; and which layers and kinds of weights
    hold it (measures §6, §5). One claim at each of the two points.

    The other defaults depend on --profile and --model: the built-in sequence models are measured on
    all their weights, everything else by LoRA.
    """

    study: ClassVar[str] = "spectrum"

    counts: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Numbers n of gradients at which effective ranks are measured; the claim compares the last
    two."""
    gradient_batch: int = 8
    """Examples in each gradient; 1 takes the gradient of every example."""
    k: int = 10
    """Dimensions of the spaces that are held against each other."""
    ks: tuple[int, ...] = (1, 2, 3, 5, 10, 20)
    """Dimensions at which the energy of new gradients is measured."""
    overlap_gradients: int = 16
    """Gradients behind each task's space; two independent sets are taken for every task."""

    def checked(self) -> Config:
        """This configuration, if it can be run.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        super().checked()
        check_counts(self, ("gradient_batch", "overlap_gradients", "k"))
        if (
            len(set(self.counts)) < 2
            or min(self.counts) < 4
            or list(self.counts) != sorted(self.counts)
        ):
            raise LoclinError(
                "expected at least two growing numbers of gradients, each 4 or more, found "
                f"{list(self.counts)}: change --counts"
            )
        half = max(self.counts) // 2
        if not self.ks or min(self.ks) < 1 or max(self.ks) > half:
            raise LoclinError(
                f"expected ks from 1 to {half}, half of the gradients, found {list(self.ks)}: "
                "change --ks or raise --counts"
            )
        if self.k > self.overlap_gradients:
            raise LoclinError(
                f"expected k of at most {self.overlap_gradients} gradients, found {self.k}: lower "
                "--k or raise --overlap-gradients"
            )
        check_sketch(self, max(self.counts), "n")
        return self


def preset(profile: Profile, model: str | None = None) -> Config:
    """The defaults of a profile for a model; smoke takes few gradients and three runs, paper 24
    runs.
    """
    config = Config(model=named(profile, model), profile=profile)
    sequences = config.model in SEQUENCE_MODELS
    if not sequences:
        config = replace(
            by_lora(config),
            gradient_batch=4,
            counts=(6, 12, 24, 48),
            ks=(1, 2, 3, 5, 10),
            overlap_gradients=12,
        )
    if profile == "smoke":
        sizes = {
            "k": 4,
            "ks": (1, 2, 4),
            "overlap_gradients": 6,
            "gradient_batch": 6 if sequences else 4,
        }
        return replace(quick(config), counts=(4, 8, 16, 32) if sequences else (4, 8, 16), **sizes)  # type: ignore[arg-type]
    return replace(config, seeds=24) if profile == "paper" else config


def settings(profile: Profile) -> tuple[Config, ...]:
    """What `loclin reproduce` runs: the built-in models, or with "paper" the paper's own as well."""
    return studied(preset, profile)
