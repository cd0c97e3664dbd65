"""A trained LoRA adapter to search around, from the folder that peft or the Trainer wrote."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from loclin.errors import LoclinError
from loclin.seeds import seeded

#: What peft raises over files that are not those of an adapter of this model.
_REFUSALS = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, UserWarning,
    SafetensorError,
)  # fmt: skip


def read_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with a trained adapter, in place: everything but the adapter is frozen. The global
    random state is left as it was.

    Raises:
        LoclinError: no adapter there, one that is no LoRA, pickled factors, or factors that are not
            this model's.
    """
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for needed in (config, weights):
        if not needed.is_file():
            raise LoclinError(
                f"expected a trained adapter with {needed.name} in {folder}, found none: give a "
                "folder saved by peft's save_pretrained; pickles are never loaded"
            )
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("peft_type")
        if kind != "LORA":
            raise LoclinError(
                f"expected a LoRA adapter in {folder}, found {kind}: give another --adapter"
            )
        with seeded(0), warnings.catch_warnings():  # peft draws factors before it reads them
            warnings.simplefilter("ignore", FutureWarning)  # peft's, over transformers' names
            warnings.filterwarnings("error", "Found missing adapter keys")
            return PeftModel.from_pretrained(model, str(folder), is_trainable=True).eval()
    except LoclinError:
        raise
    except _REFUSALS as error:
        raise LoclinError(
            f"expected an adapter of this model in {folder}, found "
            f"{' '.join(str(error).split())[:200]}: give the model that it was trained on"
        ) from error
