"""What LoRA recovery needs for a model of half a billion weights: peak memory and seconds of the
command a user types.

    python benchmarks/lora.py [--dtype float32|bfloat16] [--out FILE]

A Qwen2.5-0.5B configuration with random weights and a small tokenizer is saved as a folder, with
questions that any model can learn; then `loclin recovery --profile smoke` runs on it in a
process of its own, with few steps. Peak memory (Linux's VmHWM of the worker, imports included) over
the size of the weights; the aim is below 2.5 plus the stated buffers: the recorded updates, and one
batch's logits over the whole vocabulary with their gradient. Needs 4 GB of disk, and Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

WORDS = ("cat", "dog", "mat", "man")
ANSWERS = ("purr", "ran", "sat", "no")
OPTIONS = [
    "--profile",
    "smoke",
    "--seeds",
    "1",
    "--workers",
    "1",
    "--ranks",
    "4",
    "--batch",
    "4",
    "--teach-steps",
    "20",
    "--teach-lr",
    "3e-3",
    "--damage-steps",
    "10",
    "--damage-lr",
    "1e-2",
    "--steps",
    "10",
    "--k",
    "2",
    "--ks",
    "1",
    "2",
    "3",
    "--times",
    "1",
    "10",
    "--gradients",
    "3",
    "--gradient-batch",
    "4",
    "--hessian-batch",
    "4",
    "--project-steps",
    "2",
    "--project-ks",
    "2",
    "--task-vector-steps",
    "1",
    "--shuffles",
    "9",
]


def make(folder: Path, dtype: str) -> None:
    """The model and its questions."""
    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(
        folder / "model"
    )
    core = Tokenizer(models.BPE())  # byte-level pairs, as Qwen's own
    core.pre_tokenizer, core.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([f"the {w} is {a}" for w in WORDS for a in ANSWERS], trainer)
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>").save_pretrained(
        folder / "model"
    )
    questions(folder)


def questions(folder: Path) -> Path:
    """The questions alone."""
    records = (
        {"prompt": f"{i} the {WORDS[i % 4]} is", "options": list(ANSWERS), "label": ANSWERS[i % 4]}
        for i in range(480)
    )
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def peak_of(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds of the command, and the largest VmHWM among its processes, in bytes."""
    began, peak = time.perf_counter(), 0.0
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
        while process.poll() is None:
            peak = max(peak, *(_high_water(pid) for pid in _session(process.pid)), 0.0)
            time.sleep(0.5)
    if process.returncode:
        sys.exit((folder / "log").read_text()[-2000:])
    print((folder / "log").read_text()[-3000:], file=sys.stderr)
    return time.perf_counter() - began, peak


def _session(leader: int) -> list[str]:
    answer = subprocess.run(
        ["ps", "-o", "pid=", "-s", str(leader)], capture_output=True, text=True, check=False
    )
    return answer.stdout.split()


def _high_water(pid: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0.0
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, asked.dtype)
        weights = sum(p.stat().st_size for p in (folder / "model").glob("*.safetensors"))
        command = [
            sys.executable,
            "-m",
            "loclin",
            "recovery",
            "--model",
            "model",
            "--data",
            "questions.jsonl",
        ]
        os.environ["LOCLIN_CACHE"] = str(folder / "cache")
        took, peak = peak_of([*command, "--dtype", asked.dtype, *OPTIONS, "--out", "run"], folder)
        dimension = next(
            r["value"]
            for p in (folder / "run").glob("*/results.json")
            for r in json.loads(p.read_text())
            if r["quantity"] == "dimension"
        )
    updates, logits = 10 * dimension * 4, 3 * 16 * 151936 * 4
    table = [
        f"{date.today()}, {platform.machine()} CPU, one thread, torch {torch.__version__}",
        "",
        f"LoRA recovery (smoke, few steps) of a Qwen2.5-0.5B configuration in {asked.dtype}, D = "
        f"{dimension:.0f}: "
        f"peak {peak / 1e9:.2f} GB, {took:.0f} s.",
        f"Weights {weights / 1e9:.2f} GB; stated buffers: updates {updates / 1e9:.3f} GB, logits "
        "of 16 rows with their gradient "
        f"{logits / 1e9:.3f} GB.",
        f"Peak over the weights: {peak / weights:.2f}; less the buffers: "
        f"{(peak - updates - logits) / weights:.2f} (aim < 2.5).",
    ]
    print("\n".join(table))
    if asked.out:
        asked.out.write_text("\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
