"""Reads any Hugging Face causal language model: safetensors only, remote code off by default."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from loclin.errors import LoclinError
from loclin.models.network import check_causal, context_of, loaded, of_today
from loclin.options import BUILT_IN, LoadOptions
from loclin.tasks.hub import unknown_model

__all__ = ["context_of", "device_of", "read_pretrained", "resolved"]
TOKENIZERS = {
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "spiece.model",
}  # fmt: skip


def read_pretrained(
    name: str, options: LoadOptions
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[str, ...]]:
    """A hub id's or a folder's model in evaluation mode, its tokenizer with a padding token, and
    what its files hold beside the model, in sentences.

    Raises:
        LoclinError: no model, pickles only, no tokenizer, a damaged file, a hub id that is neither
            cached nor reachable, code of its own without leave, tensors that the files lack,
            weights that cannot be dequantised, a model that is not causal.
    """
    folder = Path(name)
    if folder.exists():
        _check_folder(folder)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise LoclinError(f"expected a model folder, found nothing at {name}: check the path")
    where = {
        "revision": options.revision or "main",
        "trust_remote_code": options.trust_remote_code,
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
        config = AutoConfig.from_pretrained(name, **where)
        how = {"config": config, "dtype": options.dtype, "device_map": options.device_map}
        model, notes = loaded(AutoModelForCausalLM, name, **how, **where)
        if options.device_map is None:
            model.to(device_of(options))
    except (LoclinError, MemoryError):
        raise
    except Exception as error:  # damaged files lead the libraries to any
        raise LoclinError(_why(name, folder, options, error)) from error
    of_today(model)
    check_causal(model, name)
    return model, _with_padding(tokenizer, name), notes


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise LoclinError(
            f"expected a model folder or a hub id, found the file {folder}: name the folder that "
            "holds it"
        )
    names = {p.name for p in folder.iterdir()}
    if "config.json" not in names:
        raise LoclinError(
            f"expected a model folder with a config.json, found none in {folder}: save one with "
            "model.save_pretrained"
        )
    if not any(n.endswith(".safetensors") for n in names):
        pickles = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt")))
        there = f"pickled weights only ({pickles[0]})" if pickles else "no weights"
        raise LoclinError(
            f"expected weights as *.safetensors in {folder}, found {there}: "
            "save the model again with model.save_pretrained; pickles are never loaded"
        )
    if not names & TOKENIZERS:
        raise LoclinError(
            f"expected a tokenizer in {folder}, found none: save it there with "
            "tokenizer.save_pretrained"
        )


def _why(name: str, folder: Path, options: LoadOptions, error: Exception) -> str:
    """One line for whatever the libraries raised."""
    first = " ".join(str(error).split())[:200]
    if "trust_remote_code" in first or "custom code" in first:
        return (
            f"expected a model of transformers, found that {name} brings code of its own: read it, "
            "then pass --trust-remote-code"
        )
    if "gated" in first.lower():
        return (
            f"expected access to {name}, found a gated repository: ask for access on its page, "
            "then run `hf auth login`"
        )
    if folder.exists() or not isinstance(error, OSError):
        return (
            f"expected a causal language model in {name}, found {type(error).__name__}: {first}: "
            "save or download it again"
        )
    if "safetensors" in first:
        return (
            f"expected weights as safetensors, found none for {name!r}: choose another --revision; "
            "pickles are never loaded"
        )
    return str(unknown_model(name, options.revision))


def _with_padding(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    """Where there is no padding token the end token serves: padded places are masked."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise LoclinError(
                f"expected a tokenizer with a padding or an end token, found neither in {name}: "
                "set tokenizer.pad_token and save it"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def device_of(options: LoadOptions) -> str:
    """The device that the options mean: "auto" is an accelerator where there is one, but the CPU
    for built-in models, too small to gain.

    Raises:
        LoclinError: an accelerator that is not there.
    """
    device, small = options.device, options.model in BUILT_IN
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    there = {"cuda": cuda, "mps": mps, "cpu": True}
    if device == "auto":
        return "cpu" if small else next(name for name, yes in there.items() if yes)
    if not there.get(device.split(":")[0], False):
        names = ", ".join(name for name, yes in there.items() if yes)
        raise LoclinError(f"expected a device among {names}, found {device!r}: change --device")
    return device


def resolved(options: LoadOptions) -> LoadOptions:
    """The loading options alone, of whatever settings, with the device that they mean."""
    plain = LoadOptions(**{f.name: getattr(options, f.name) for f in fields(LoadOptions)})
    return replace(plain, device=device_of(options))
