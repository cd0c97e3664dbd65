"""Real Trainer runs of a tiny GPT-2 on the CPU, and checkpoint folders written by hand."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

STEPS = 12
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_fc"], "alpha_pattern": {"c_fc": 2}}
DATA = [
    {"input_ids": row, "labels": row}
    for row in torch.randint(0, 40, (64, 12), generator=torch.Generator().manual_seed(0))
]


def tiny() -> PreTrainedModel:
    set_seed(0)
    config = GPT2Config(
        vocab_size=40,
        n_positions=16,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)


SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def experts(vocabulary: int = 40) -> PreTrainedModel:
    """A mixture of experts: one tensor for all of a layer in memory, many on disk."""
    set_seed(0)
    shape = {**SHAPE, "vocab_size": vocabulary, "num_local_experts": 4, "num_experts_per_tok": 2}
    return MixtralForCausalLM(MixtralConfig(**shape))


def tiny_lora(**change: Any) -> Any:
    model = tiny()
    set_seed(1)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated"
        )  # peft asks for the old name
        return get_peft_model(model, LoraConfig(fan_in_fan_out=True, **{**LORA, **change}))


def trainer(model: Any, out: Path, *callbacks: TrainerCallback, **settings: Any) -> Trainer:
    arguments = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "save_strategy": "steps",
        "save_steps": 1,
        "learning_rate": 1e-3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **settings,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(out), **arguments),
        train_dataset=DATA,
        callbacks=list(callbacks),
    )


def write(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    step: int | None = None,
    name: str = "model.safetensors",
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / name)
    if step is not None:
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))


def weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "wte.weight": torch.randn(30, 8, generator=generator),
        "h.0.attn.bias": torch.randn(8, generator=generator),
    }


def hand_made(folder: Path, steps: tuple[int, ...] = (2, 10, 100)) -> Path:
    for step in steps:
        write(folder / f"checkpoint-{step}", weights(step), step=step)
    return folder
