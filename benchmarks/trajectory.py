"""What watching a Trainer run costs, and what `loclin trajectory` needs for a model of half a
billion weights.

    python benchmarks/trajectory.py [--out FILE]

1. A Trainer run with the callback over the same without it, whole points and sketches: median over
   pairs measured in turn, with the range of the pairs' middle half (no aim is set; the numbers are
   to be stated).
2. Peak memory of `loclin trajectory` on four checkpoints of a Qwen2.5-0.5B configuration with
   random weights, in a process of its own, over the size of one checkpoint (aim: below 2.5), and
   the seconds it takes. Needs 8 GB of disk, and Linux.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from side_by_side import compare, report
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Trainer,
    TrainingArguments,
)

from loclin.integrations import TrajectoryCallback

PAIRS, STEPS, SIZE = 7, 10, 1 << 14
QWEN = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
}


def training(folder: Path) -> Callable[..., None]:
    """Ten steps of a GPT-2 of seven million weights on 256 tokens each, from the same start every
    time.
    """
    config = GPT2Config(
        vocab_size=8192,
        n_positions=32,
        n_embd=256,
        n_layer=6,
        n_head=4,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config)
    start = {name: values.clone() for name, values in model.state_dict().items()}
    rows = torch.randint(0, 8192, (64, 32), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in rows]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )

    def run(*callbacks: TrajectoryCallback) -> None:
        model.load_state_dict(start)
        Trainer(model=model, args=arguments, train_dataset=data, callbacks=list(callbacks)).train()

    return run


def overhead() -> list[str]:
    """Rows of the table: training with the callback over training without it."""
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        run = training(Path(folder))
        for name, settings in (
            ("whole points", {}),
            (f"sketches of {SIZE} numbers", {"budget": 0, "size": SIZE}),
        ):
            against, found = compare(lambda s=settings: run(TrajectoryCallback(**s)), run, PAIRS)
            base = f"the same without, {against / STEPS * 1000:.0f} ms a step"
            rows.append(f"| Trainer with the callback, {name} | {base} | {found} | |")
    return rows


def make_checkpoints(folder: Path, dtype: torch.dtype) -> int:
    """Four checkpoints a small step apart; the bytes of one of them."""
    model = AutoModelForCausalLM.from_config(Qwen2Config(**QWEN), dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for step in (100, 200, 300, 400):
        for p in model.parameters():
            p.data.add_(
                torch.randn(p.shape, generator=generator).to(dtype),
                alpha=1e-2 if dtype == torch.bfloat16 else 1e-4,
            )
        model.save_pretrained(folder / f"checkpoint-{step}")
    os.sync()  # else the record's own flush waits for these gigabytes
    return sum(f.stat().st_size for f in (folder / "checkpoint-100").glob("*.safetensors"))


#: Runs a command of loclin, then says its own peak: a child's ru_maxrss would count what its parent
#: held when it forked.
MEASURED = """
import sys
from loclin.cli import main
main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_memory(arguments: list[str], where: Path) -> tuple[int, float]:
    """Peak resident bytes of a command and the seconds it took (Linux)."""
    start = time.perf_counter()
    command = [sys.executable, "-c", MEASURED, *arguments]
    answer = subprocess.run(command, cwd=where, capture_output=True, text=True, check=True)
    return 1024 * int(answer.stdout.split()[-1]), time.perf_counter() - start


def reading() -> list[str]:
    """Rows of the table: peak memory over the size of a checkpoint."""
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        with tempfile.TemporaryDirectory() as folder:
            size = make_checkpoints(Path(folder) / "run", dtype)
            peak, took = peak_memory(["trajectory", "run"], Path(folder))
            kind = str(dtype).removeprefix("torch.")
            name = f"`loclin trajectory`, 4 checkpoints of Qwen2.5-0.5B in {kind}"
            rows.append(
                f"| {name}: peak {peak / 1e9:.2f} GB, {took:.0f} s | one checkpoint, "
                f"{size / 1e9:.2f} GB | {peak / size:.2f} | < 2.5 |"
            )
    return rows


def measure() -> list[str]:
    transformers.utils.logging.disable_progress_bar()
    return [*overhead(), *reading()]


if __name__ == "__main__":
    report(__doc__, measure)
