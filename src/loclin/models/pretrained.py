"""Reads any Hugging Face causal language model: a hub id or a folder, safetensors only, remote code
off unless asked for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
import transformers
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from loclin.errors import LoclinError

transformers.utils.logging.disable_progress_bar()  # loclin shows its own

Dtype = Literal["auto", "float64", "float32", "bfloat16", "float16"]


@runtime_checkable
class Loading(Protocol):
    """Settings of a command that name how a model is loaded."""

    @property
    def revision(self) -> str | None: ...  # noqa: D102
    @property
    def dtype(self) -> Dtype: ...  # noqa: D102
    @property
    def device_map(self) -> str | None: ...  # noqa: D102
    @property
    def trust_remote_code(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class How:
    """How a model is loaded.

    Attributes:
        revision: branch, tag or commit of a hub id; None takes the newest.
        dtype: of the weights; "auto" takes that of the files. Small weight steps are rounded away
            below float32.
        device: where to put it.
        device_map: spread it over devices by accelerate instead ("auto", "balanced", ...).
        trust_remote_code: run code that comes with the model.
    """

    revision: str | None = None
    dtype: Dtype = "float32"
    device: str = "cpu"
    device_map: str | None = None
    trust_remote_code: bool = False

    @staticmethod
    def of(settings: Loading, device: str) -> How:
        """As a command's settings say, on a device that is there (`device_named`)."""
        return How(
            revision=settings.revision,
            dtype=settings.dtype,
            device=device,
            device_map=settings.device_map,
            trust_remote_code=settings.trust_remote_code,
        )


def read_pretrained(name: str, how: How) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in evaluation mode and its tokenizer, which has a padding token
    afterwards.

    Raises:
        LoclinError: a folder that is no model, weights as pickles only, no tokenizer, a damaged
            file, a hub id that is neither cached nor reachable, code of its own without leave.
    """
    folder = Path(name)
    if folder.exists():
        _check_folder(folder)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise LoclinError(f"expected a model folder, found nothing at {name}: check the path")
    options = {"revision": how.revision or "main", "trust_remote_code": how.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=how.dtype, use_safetensors=True, device_map=how.device_map, **options
        )
        if how.device_map is None:
            model.to(how.device)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, RuntimeError) as error:
        raise LoclinError(_why(name, folder, how, error)) from error
    return model.eval(), _with_padding(tokenizer, name)


def context_of(model: PreTrainedModel) -> int | None:
    """The most tokens that the model reads at once, or None where its configuration names no limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


def missing_from_cache(name: str, *, dataset: bool = False) -> bool:
    """Whether a hub id would have to be fetched: no local path, and no weights (or data files) in
    the local cache.
    """
    if Path(name).exists():
        return False
    kept = (
        Path(HF_HUB_CACHE)
        / f"{'datasets' if dataset else 'models'}--{name.replace('/', '--')}"
        / "snapshots"
    )
    endings = ("*.parquet", "*.json", "*.jsonl", "*.csv") if dataset else ("*.safetensors",)
    return not any(found for ending in endings for found in kept.rglob(ending))


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
        found = f"pickled weights only ({pickles[0]})" if pickles else "no weights"
        raise LoclinError(
            f"expected weights as *.safetensors in {folder}, found {found}: "
            "save the model again with model.save_pretrained; pickles are never loaded"
        )
    if not names & {
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "tokenizer.model",
        "spiece.model",
    }:
        raise LoclinError(
            f"expected a tokenizer in {folder}, found none: save it there with "
            "tokenizer.save_pretrained"
        )


def _why(name: str, folder: Path, how: How, error: Exception) -> str:
    """One line for whatever the libraries raised."""
    first = " ".join(str(error).split())[:200]
    if "trust_remote_code" in first or "custom code" in first:
        return f"expected a model of transformers, found that {name} brings code of its own: read it, then pass --trust-remote-code"
    if "gated" in first.lower():
        return f"expected access to {name}, found a gated repository: ask for access on its page, then run `hf auth login`"
    if folder.exists() or not isinstance(error, OSError):
        return f"expected a causal language model in {name}, found {type(error).__name__}: {first}: save or download it again"
    if "safetensors" in first:
        return f"expected weights as safetensors, found none for {name!r}: choose another --revision; pickles are never loaded"
    revision = f" --revision {how.revision}" if how.revision else ""
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return (
        "expected a built-in model, a folder, or a hub id that is cached or can be reached, found "
        f"that {name!r} is none of "
        f"these{offline}: where there is a network run `hf download {name}{revision}`, or give a "
        "folder"
    )


def _with_padding(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    """Many models have no padding token; the end token serves, since padded places are masked and
    never answers.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise LoclinError(
                f"expected a tokenizer with a padding or an end token, found neither in {name}: "
                "set tokenizer.pad_token and save it"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def device_named(asked: str, *, small: bool = False) -> str:
    """The device that is asked for; "auto" takes an accelerator where there is one, unless the
    model is too small to gain.

    Raises:
        LoclinError: an accelerator that is not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if asked == "auto":
        return "cpu" if small else next(name for name, yes in there.items() if yes)
    if not there.get(asked.split(":")[0], False):
        found = ", ".join(name for name, yes in there.items() if yes)
        raise LoclinError(f"expected a device among {found}, found {asked!r}: change --device")
    return asked
