"""Which model, asked what, and how both are loaded: written once, inherited by the settings of
every command. Imports nothing heavy, so that `--help` is quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from loclin.errors import LoclinError

Dtype = Literal["auto", "float64", "float32", "bfloat16", "float16"]
SEQUENCE_MODELS = ("sequences", "sequences-small")
BUILT_IN = (*SEQUENCE_MODELS, "statements", "statements-small")  # the recipes need torch


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """A causal language model, its data, and how they are loaded."""

    model: str
    """sequences (150k parameters) or statements (460k), both built in, as are their small twins
    sequences-small and statements-small; a folder; or a hub id such as distilgpt2."""
    data: tuple[str, ...] = ()
    """What the model is asked: JSON Lines files or hub data sets (google/boolq), one or several;
    sequences or statements; or self, the model's own samples. A built-in model brings its own."""
    template: str | None = None
    """Prompt made from a record's fields: "{passage}\\nQuestion: {question}?\\nAnswer:"."""
    long: Literal["drop", "fail"] = "drop"
    """What happens to prompts longer than the model's context."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Dtype = "float32"
    """Of the weights. Below float32 small steps of full weights are rounded away, those of LoRA
    factors are not."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: an accelerator where there is one, the CPU for built-in models."""
    device_map: str | None = None
    """Spread a large model over devices by accelerate (auto, balanced) instead of --device."""
    trust_remote_code: bool = False
    """Run code that comes with a model. Read it first."""

    def check_loading(self) -> None:
        """Whether there are data, and every file is there.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        if self.model not in BUILT_IN and not self.data:
            near = get_close_matches(self.model, BUILT_IN, n=1)
            raise LoclinError(
                f"expected --data with the model {self.model!r}, found none: give a JSON Lines "
                "file, sequences, or self"
                + (f"; or did you mean the built-in --model {near[0]}?" if near else "")
            )
        for name in self.data:
            if name.endswith((".jsonl", ".json")) and not Path(name).exists():
                raise LoclinError(
                    f"expected a file of task data, found nothing at {name}: check the path"
                )
