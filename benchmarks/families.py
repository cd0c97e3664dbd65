"""Every model type of `AutoModelForCausalLM` that can be built small: loaded, scored, read.

    python benchmarks/families.py [TYPE ...] [--out FILE]

A random model of each type is saved and read back as `load` does, and then
- a greedy generation is scored by teacher forcing, which must call every token right, and
- the outputs of its blocks are held against transformers' own hidden states.
The table says for each: right, or the one line in which it is refused; "wrong" and "traceback" are
faults.
"""

from __future__ import annotations

import argparse
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as TYPES,
)

from loclin.activations.capture import activations
from loclin.errors import LoclinError
from loclin.models.pretrained import read_pretrained
from loclin.options import LoadOptions
from loclin.tasks.batch import Batch, answer_logits

VOCABULARY, WIDTH, BLOCKS = 300, 32, 2
#: What the configurations call their sizes; those that a type has are made small.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim"), WIDTH),
    **dict.fromkeys(("intermediate_size", "n_inner", "d_ff", "ffn_dim", "dff"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "decoder_layers"), BLOCKS),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCABULARY, "decoder_ffn_dim": 48,
    "max_position_embeddings": 64, "n_positions": 64, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "rotary_dim": 8, "state_size": 8, "is_decoder": True,
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """Of single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(["<pad>", *alphabet])}, merges=[])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<pad>")


def small(kind: str) -> PreTrainedModel:
    """A random model of a type."""
    made = transformers.AutoConfig.for_model(kind)
    known = {n: v for n, v in SMALL.items() if hasattr(made, n)}
    inner = made.get_text_config()
    if inner is not made:
        known["text_config"] = {n: v for n, v in SMALL.items() if hasattr(inner, n)}
    config = type(made)(**known)
    size = getattr(config.get_text_config(), "hidden_size", WIDTH)
    if size > 8 * WIDTH:
        raise ValueError(f"its width stays {size}")
    torch.random.default_generator.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=0.2)
    return model


def scored(model: PreTrainedModel) -> str:
    """Whether teacher forcing calls a greedy generation right."""
    ids = torch.randint(1, VOCABULARY - 44, (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        row = ids
        for _ in range(4):
            new = model(input_ids=row).logits[:, -1].argmax(-1)
            row = torch.cat([row, new[:, None]], dim=1)
        labels = torch.where(torch.arange(10) < 6, -100, row)
        padded = torch.nn.functional.pad(row, (0, 3), value=0)
        mask = torch.nn.functional.pad(torch.ones_like(row), (0, 3))
        labels = torch.nn.functional.pad(labels, (0, 3), value=-100)
        batch = Batch(input_ids=padded, attention_mask=mask, labels=labels)
        logits, wanted = answer_logits(model, batch)
    kept = wanted != -100
    right = (logits.argmax(-1) == wanted)[kept]
    return "right" if bool(right.all()) else f"wrong ({int(right.sum())} of {len(right)} tokens)"


def seen(model: PreTrainedModel) -> str:
    """Whether the blocks' outputs are the hidden states."""
    ids = torch.randint(1, VOCABULARY - 44, (2, 6), generator=torch.Generator().manual_seed(1))
    one = torch.ones_like(ids)
    found = activations(
        model, Batch(input_ids=ids, attention_mask=one, labels=ids), position="every"
    )
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
    own = torch.stack([h.flatten(0, 1) for h in states[1:-1]])  # the last is after the final norm
    close = torch.allclose(found[:-1], own, atol=1e-4 * float(own.abs().max()))
    return "right" if close else "wrong"


def said(check: Callable[[], str]) -> str:
    """A check's answer, or the one line that it is refused with."""
    try:
        return check()
    except LoclinError as error:
        return str(error)
    except Exception as error:
        traceback.print_exc()
        return f"traceback: {type(error).__name__}: {' '.join(str(error).split())[:80]}"


def checked(kind: str) -> tuple[str, str, str]:
    """How a type loads, scores and is read."""
    try:
        model = small(kind)
    except Exception as error:
        return f"not built small ({type(error).__name__})", "", ""
    with tempfile.TemporaryDirectory() as folder:
        read: list[PreTrainedModel] = []

        def load() -> str:
            model.save_pretrained(folder)
            tokenizer().save_pretrained(folder)
            options = LoadOptions(model=folder, device="cpu")
            read.append(read_pretrained(folder, options)[0])
            return "right"

        loaded = said(load).replace(folder, "FOLDER")
    if not read:
        return loaded, "", ""
    return loaded, said(lambda: scored(read[0])), said(lambda: seen(read[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", default=sorted(TYPES))
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    lines = ["| type | load | score = generation | activations = hidden states |", "|-|-|-|-|"]
    counts: Counter[str] = Counter()
    for kind in chosen.types:
        row = checked(kind)
        counts[row[0].split(" (")[0].split(":")[0].partition(" in FOLDER")[0]] += 1
        lines.append(f"| {kind} | {' | '.join(t.replace('|', '/') for t in row)} |")
        print(lines[-1], flush=True)
    print(dict(counts))
    if chosen.out:
        chosen.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
