"""Every model type of `AutoModelForCausalLM`: built small, saved, and read as a user's model is.

    python -m tests.models.families [TYPE ...] [--results FILE] [--page FILE]

A random model of each type goes through what the commands do with it. Each check is right, or
refused in one line; "WRONG" and "TRACEBACK" are faults. Each type has a process and a minute of its
own; results are appended as they come, and types that are there already are not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import textwrap
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from loclin.activations.adding import added
from loclin.activations.blocks import width
from loclin.activations.capture import activations
from loclin.curvature import CurvatureOperator, NoSecondDerivative, finite_difference_product
from loclin.errors import LoclinError
from loclin.models import twice_differentiable
from loclin.models.pretrained import read_pretrained
from loclin.options import LoadOptions
from loclin.parameters import ParameterSpace
from loclin.seeds import seeded
from loclin.steering.generation import generations
from loclin.steering.vector import SteeringVector
from loclin.tasks.batch import answer_loss, collate, exact_match, mean_answer_loss, prompts_batch
from loclin.tasks.example import Example

TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
SECONDS = 60
WORDS = 300
#: What configurations call their sizes; those that a type has are made small.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "d_ff", "ffn_dim", "dff"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": WORDS, "decoder_ffn_dim": 48,
    "max_position_embeddings": 64, "n_positions": 64, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "rotary_dim": 8, "state_size": 8, "is_decoder": True,
    "first_k_dense_replace": 1, "num_dense_layers": 1, "mamba_n_heads": 8, "mamba_d_state": 8,
    "mamba_d_ssm": 64, "vocab_size_per_layer_input": WORDS, "hidden_size_per_layer_input": 8,
    "laurel_rank": 4, "num_kv_shared_layers": 0, "index_n_heads": 4, "index_topk": 3,
    "index_head_dim": 16, "shared_experts_intermediate_size": 16,
}  # fmt: skip
BLT = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
INDEXER = {
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}  # fmt: skip
#: Where that is not enough.
OWN: dict[str, dict[str, Any]] = {
    "blt": {
        "encoder_hash_byte_group_vocab": 40,
        **{f"{part}_config": {n: v for n, v in SMALL.items() if n in BLT}
           for part in ("patcher", "encoder", "decoder", "global")},
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {
        "n_heads": 4,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_top_k": 2},
    },
    "git": {
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": 32,
        }
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "kimi_linear": {"num_hidden_layers": 5, "linear_head_dim": 8, "linear_num_heads": 4},
    "recurrent_gemma": {"num_hidden_layers": 4},
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1]},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "qwen4_exp_text": INDEXER,
    "zamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"hidden_size": 128},
    "zaya": {"num_experts_per_tok": 1},
    "dots1": {"n_shared_experts": 1},
    "roc_bert": {"pronunciation_vocab_size": 30, "shape_vocab_size": 30},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
}  # fmt: skip


def small_config(config: PreTrainedConfig, own: dict[str, Any]) -> PreTrainedConfig:
    """One of the same class with small sizes, its parts' too."""
    known = config.to_dict() | config.attribute_map
    sizes = {n: v for n, v in SMALL.items() if n in known}
    if known.keys() & {"layer_types", "layers_block_type"}:  # of several kinds in turn
        sizes["num_hidden_layers"] = 4
    if "kv_lora_rank" in known:  # latent attention has a key for each head
        sizes["num_key_value_heads"] = 4
    for part in config.sub_configs:
        inner = getattr(config, part, None)
        if isinstance(inner, PreTrainedConfig) and part not in own:
            sizes[part] = small_config(inner, OWN.get(inner.model_type, {})).to_dict()
    return type(config)(**(sizes | own))


def small(kind: str) -> PreTrainedModel:
    """A random model of a type."""
    config = small_config(AutoConfig.for_model(kind), OWN.get(kind, {}))
    with seeded(0), torch.no_grad():
        model = AutoModelForCausalLM.from_config(config).eval()
        if sum(p.numel() for p in model.parameters()) > 1e7:
            raise ValueError(f"{sum(p.numel() for p in model.parameters())} parameters")
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=0.2)
    return model


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of words w1, w2, ..."""
    vocabulary = {"<pad>": 0} | {f"w{i}": i for i in range(1, WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<pad>")


PROMPTS = [" ".join(f"w{7 * i * n % 299 + 1}" for i in range(1, n)) for n in (4, 6, 7)]
DATA = [Example(prompt=p, answer=f" w{9 * i + 5} w{i + 2}") for i, p in enumerate(PROMPTS)]
Check = Callable[[PreTrainedModel], bool]


def score_is_generation(model: PreTrainedModel) -> bool:
    """Teacher forcing calls a greedy generation right, and one with another last word wrong."""
    still = SteeringVector(
        directions={0: torch.ones(width(model))}, model="", model_type=model.config.model_type,
        blocks=None, route="", position="last", norm="", data="", dtype="float32",
    )  # fmt: skip
    made = generations(model, words(), still, PROMPTS, [0.0], tokens=4)
    right = [Example(prompt=g.prompt, answer=f" {g.text}") for g in made if g.text]
    wrong = [
        Example(prompt=g.prompt, answer=f" {g.text.rpartition('w')[0]}w{1 + (g.text[-1] == '1')}")
        for g in made
        if g.text
    ]
    match = [exact_match(model, collate(each, words())) for each in (right, wrong)]
    return len(right) > 0 and bool(match[0].all()) and not bool(match[1].any())


def rows_stand_alone(model: PreTrainedModel) -> bool:
    """Neither padding nor what follows changes what is said of 13 or 40 tokens."""
    rows = torch.randint(1, WORDS, (3, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(input_ids=rows).logits
        for n in (13, 40):
            alone = model(input_ids=rows[:, :n]).logits
            mask = (torch.arange(n + 7) < n).long().expand(3, -1)
            padded = model(input_ids=rows[:, : n + 7] * mask, attention_mask=mask).logits
            if not (_close(whole[:, :n], alone, 1e-4) and _close(padded[:, :n], alone, 1e-4)):
                return False
    return True


def activations_are_hidden_states(model: PreTrainedModel) -> bool:
    """As transformers gives them; the last of its are after the final norm."""
    batch = prompts_batch(PROMPTS, words())
    read = activations(model, batch, position="every")[:-1]
    with torch.no_grad():
        states = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
        ).hidden_states
    own = [h[batch.attention_mask > 0] for h in states[:-1]]  # with or without the embedding
    places = [[i for i, h in enumerate(own) if _close(each, h, 1e-4)] for each in read]
    return len(read) > 0 and places in ([[i + b] for i in range(len(read))] for b in (0, 1))


def steering_shows(model: PreTrainedModel) -> bool:
    """A vector added at the first block is there, and is seen in what the model says."""
    batch = prompts_batch(PROMPTS, words())
    before = activations(model, batch, position="every")
    with seeded(3):
        vector = torch.randn(before.shape[-1]) * before[0].std()
    with added(model, {0: vector}):
        after = activations(model, batch, position="every")
    moved = [float((after[i] - before[i]).norm()) for i in (0, -1)]
    return _close(after[0], before[0] + vector, 1e-5) and min(moved) > 1e-3 * float(vector.norm())


def derivatives_are_right(model: PreTrainedModel) -> bool:
    """Slope and curvature along a direction, against differences of the loss and its gradient."""
    batch, space = collate(DATA, words()), ParameterSpace(model)

    def loss(b: Any) -> tuple[Tensor, int]:
        return answer_loss(model, b)

    with twice_differentiable(model):
        start, v = space.read(), space.noise(seed=5)
        v = 1e-6 * v * start.norm() / v.norm()
        slope, ends = float(space.gradient(loss, [batch]) @ v), []
        for sign in (1, -1):
            space.write(start + sign * v)
            with torch.no_grad():
                ends.append(float(mean_answer_loss(model, batch)))
        space.write(start)
        product = CurvatureOperator(space, loss, [batch]) @ v
        differences = finite_difference_product(space, loss, [batch], v)
    rise = (ends[0] - ends[1]) / 2
    assert abs(rise - slope) < 1e-5 * abs(slope), f"slope {slope:.8g}, by differences {rise:.8g}"
    off = float((product - differences).norm() / differences.norm())
    assert off < 1e-4, f"curvature off by {off:.2g}"
    return True


CHECKS: dict[str, Check] = {
    "rows stand alone": rows_stand_alone,
    "score = generation": score_is_generation,
    "activations = hidden states": activations_are_hidden_states,
    "steering shows": steering_shows,
}


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return one.shape == other.shape and bool(
        (one - other).abs().max() <= tolerance * other.abs().max()
    )


def outcome(check: Callable[[], bool]) -> str:
    """ "right", the one line in which it is refused, or a fault."""
    try:
        return "right" if check() else "WRONG"
    except AssertionError as error:
        return f"WRONG: {' '.join(str(error).split())[:160]}"
    except NoSecondDerivative as error:
        return f"no second derivatives: {error}"
    except LoclinError as error:
        return str(error) if "\n" not in str(error) else f"WRONG: several lines: {error!r}"
    except Exception as error:
        lines = traceback.extract_tb(error.__traceback__)
        own = next((f for f in reversed(lines) if "/loclin/" in f.filename), lines[-1])
        place = f"{Path(own.filename).name}:{own.lineno}"
        return f"TRACEBACK: {type(error).__name__} at {place}: {' '.join(str(error).split())[:160]}"


def checked(kind: str) -> dict[str, str]:
    """What each check of a type says; only "built" where it cannot be built small."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _checked(kind)


def _checked(kind: str) -> dict[str, str]:
    try:
        made = small(kind)
    except Exception as error:
        return {"built": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}
    read: list[PreTrainedModel] = []
    with tempfile.TemporaryDirectory() as folder:

        def load() -> bool:
            made.save_pretrained(folder)
            words().save_pretrained(folder)
            model, notes = read_in(folder, "float32")
            read.append(model)
            first, second = (dict(m.named_parameters()) for m in (made, model))
            assert not notes, notes
            assert first.keys() == second.keys(), sorted(first.keys() ^ second.keys())[:3]
            return all(torch.equal(p, second[n]) for n, p in first.items())

        results = {"load": outcome(load)}
        if read:
            for name, check in CHECKS.items():
                results[name] = outcome(lambda c=check: c(read[0]))  # type: ignore[misc]
            results["derivatives"] = outcome(
                lambda: derivatives_are_right(read_in(folder, "float64")[0])
            )
    return {name: text.replace(folder, "FOLDER") for name, text in results.items()}


def read_in(folder: str, dtype: Any) -> tuple[PreTrainedModel, tuple[str, ...]]:
    model, _, notes = read_pretrained(folder, LoadOptions(model=folder, device="cpu", dtype=dtype))
    return model, notes


def in_time(kind: str) -> dict[str, str]:
    """The same in a process of its own, which is ended after `SECONDS`."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: theirs.send(checked(kind)))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(SECONDS) else {"built": f"not done in {SECONDS} s"}
    except EOFError:
        return {"built": "its process died"}
    finally:
        process.kill()
        process.join()


PAGE = """# Model families

Every model type that `AutoModelForCausalLM` of transformers {version} knows ({all}), built small
with random weights, saved, and read as a user's model is. Checked is that
- every weight in memory is the one that was saved, and no later token changes an earlier logit
  (load);
- neither padding nor what follows changes the logits of 13 or 40 tokens (rows stand alone), where
  attention that chooses tokens (DeepSeek's) chooses three;
- teacher forcing calls a greedy generation right (score = generation);
- what is read of the blocks is what transformers calls hidden states (activations = hidden states);
- a vector added at the first block is there, and at the last (steering shows);
- slope and curvature along a direction are those of differences, in float64 (derivatives).

Written by `python -m tests.models.families --page docs/families.md`; twenty types run in the tests.

## Right in all six ({right})

{names}

## Refused in one line ({refused})

| type | what | the line |
| --- | --- | --- |
{rows}

## Not built small ({unbuilt})

{reasons}
"""


def page(results: dict[str, dict[str, str]]) -> str:
    """docs/families.md."""
    right = [k for k, row in results.items() if set(row.values()) == {"right"}]
    unbuilt = {k: row["built"] for k, row in results.items() if "built" in row}
    refused = [k for k in results if k not in right and k not in unbuilt]
    rows = [
        f"| {kind} | {name} | {text.replace('|', '/')} |"
        for kind in refused
        for name, text in results[kind].items()
        if text != "right"
    ]
    return PAGE.format(
        version=transformers.__version__,
        all=len(results),
        right=len(right),
        names=textwrap.fill(", ".join(right), 100, break_on_hyphens=False),
        refused=len(refused),
        rows="\n".join(rows),
        unbuilt=len(unbuilt),
        reasons="\n".join(f"- {kind}: {reason}" for kind, reason in unbuilt.items()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("types", nargs="*", default=TYPES)
    parser.add_argument("--results", type=Path, default=Path("families.jsonl"))
    parser.add_argument("--page", type=Path)
    chosen = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    chosen.results.touch()
    lines = chosen.results.read_text(encoding="utf-8").splitlines()
    results = {row.pop("type"): row for row in map(json.loads, lines)}
    for kind in chosen.types:
        if kind not in results:
            results[kind] = in_time(kind)
            with chosen.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"type": kind, **results[kind]}) + "\n")
            print(kind, results[kind], flush=True)
    if chosen.page:
        chosen.page.write_text(page(dict(sorted(results.items()))), encoding="utf-8")


if __name__ == "__main__":
    main()
