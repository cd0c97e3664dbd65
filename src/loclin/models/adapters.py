"""What an adapter in a folder does to the weights of a model, as peft loads and merges it."""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import peft
from peft.config import PromptLearningConfig
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loclin.errors import LoclinError
from loclin.models.folder import ADAPTER, ADAPTER_CONFIG, adapter_settings, unwrapped
from loclin.seeds import seeded

_LOST = "Found missing adapter keys"  # peft's warning, where factors stay as they were drawn


def merged_change(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """ΔW = peft's merged weights less the model's, of every tensor that moves, by all its names.

    For LoRA that is s·BA; adapters that begin with a part of the base (PiSSA, OLoRA), scale the
    result (DoRA), move biases, embeddings or experts, or hold whole modules are what peft makes of
    them. The adapter is loaded in float32 and merged in float64, so that a small change is not
    rounded away on a large weight.

    Raises:
        LoclinError: an adapter that moves no weights, that peft cannot load into this model or
            merge, with tensors that the model has no place for, or on one of two tied weights.
    """
    settings = adapter_settings(folder)
    _check_moves_weights(settings, folder)
    network = copy.deepcopy(model).float()
    every = network.named_parameters(remove_duplicate=False)
    before = {n: p.detach().clone() for n, p in every}
    tied = _tied(network)
    try:
        with tempfile.TemporaryDirectory() as clean:
            _unwrap(folder, settings, Path(clean))
            made = _loaded(network, clean)
        _check_alone(made, tied, settings, folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # peft's, over weights that move together
            merged = made.double().merge_and_unload()
        after = merged.named_parameters(remove_duplicate=False)
        changes = {n: (p.detach() - before[n].double()).float() for n, p in after}
    except (LoclinError, MemoryError):
        raise
    except Exception as error:  # damaged files lead peft to any
        raise LoclinError(
            f"expected an adapter of this model that peft can merge in {folder}, found "
            f"{settings.get('peft_type')} ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}): give BASE..TUNED, two folders of full weights"
        ) from error
    return {n: change for n, change in changes.items() if change.any()}


def _check_moves_weights(settings: dict[str, object], folder: Path) -> None:
    kind: Any = settings.get("peft_type")
    known, why = peft.PEFT_TYPE_TO_CONFIG_MAPPING.get(kind, object), ""
    if issubclass(known, PromptLearningConfig):
        why = "adds tokens or states to the input"
    elif settings.get("alora_invocation_tokens"):
        kind, why = "aLoRA", "is at work only after its invocation tokens"
    if why:
        raise LoclinError(
            f"expected an adapter that changes weights, found {kind} in {folder}, which {why} and "
            "moves no weights: it has no direction; give another adapter"
        )
    if str(settings.get("init_lora_weights")).startswith("pissa_niter"):
        raise LoclinError(
            f"expected an adapter whose start can be made again, found "
            f"{settings['init_lora_weights']} in {folder}, which is drawn at random and not kept: "
            "save it with path_initial_model_for_weight_conversion"
        )


def _unwrap(folder: Path, settings: dict[str, object], clean: Path) -> None:
    """A copy of the adapter, its tensors and patterns without names of wrappers."""
    (clean / ADAPTER_CONFIG).write_text(json.dumps(settings), encoding="utf-8")
    tensors = load_file(folder / ADAPTER)
    save_file({unwrapped(n): t for n, t in tensors.items()}, clean / ADAPTER)


def _loaded(network: nn.Module, folder: str) -> peft.PeftModel:
    """The network with the adapter; a ValueError where some of either has no place in the other."""
    with seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", _LOST)
        try:
            made = peft.PeftModel.from_pretrained(network, folder, torch_device="cpu")
        except UserWarning as lost:
            raise ValueError(str(lost)) from lost
        there = set(peft.get_peft_model_state_dict(made, save_embedding_layers=True))
    beside = sorted(set(load_file(Path(folder) / ADAPTER)) - there)
    if beside:
        raise ValueError(f"no place in the model for {beside[0]}")
    return made


def _tied(network: nn.Module) -> set[int]:
    """Those parameters of a network that have several names."""
    every = [id(p) for _, p in network.named_parameters(remove_duplicate=False)]
    return {i for i in every if every.count(i) > 1}


def _check_alone(
    made: nn.Module, tied: set[int], settings: dict[str, object], folder: Path
) -> None:
    """Merged into a tied weight, an adapter of the one would move the other too."""
    if settings.get("ensure_weight_tying"):
        return
    for name, module in made.named_modules():
        if not isinstance(module, BaseTunerLayer) or isinstance(module, TrainableTokensLayer):
            continue
        if any(id(p) in tied for p in module.get_base_layer().parameters()):
            raise LoclinError(
                "expected adapted weights that move alone, found "
                f"{name.removeprefix('base_model.model.')} in {folder.name}, which the model ties "
                "to another one: untie and merge it, and give BASE..TUNED"
            )
