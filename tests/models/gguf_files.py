"""Small GGUF files of random llamas, written as llama.cpp's converter writes them."""

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

MERGES = ("Ġ Ġ", "t h", "th e", "Ġ the", "Ġ 1")
TOKENS = (
    "<|end|>",
    "<|user|>",
    *bytes_to_unicode().values(),
    *(m.replace(" ", "") for m in MERGES),
)
TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
HEADS, GROUPS = 4, 2
#: Of llama.cpp's tensors in a block, those that are matrices.
MATRICES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def random_llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            num_key_value_heads=GROUPS,
            intermediate_size=96,
            vocab_size=len(TOKENS),
            max_position_embeddings=64,
            initializer_range=0.3,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
        )
    ).eval()


def theirs(name: str) -> str:
    """llama.cpp's name of a tensor."""
    if name.startswith("model.layers."):
        _, _, block, rest = name.removesuffix(".weight").split(".", 3)
        return f"blk.{block}.{(MATRICES | NORMS)[rest]}.weight"
    return {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }[name]


def interleaved(weight: np.ndarray, name: str) -> np.ndarray:
    """llama.cpp rotates neighbouring rows of a head where transformers rotates its two halves."""
    heads = HEADS if "attn_q" in name else GROUPS if "attn_k" in name else 0
    if not heads:
        return weight
    halves = weight.reshape(heads, 2, len(weight) // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_llama(
    path: Path,
    model: LlamaForCausalLM,
    kind: Kind = Kind.F32,
    *,
    architecture: str = "llama",
    left_out: str = "",
    extra: dict[str, np.ndarray] | None = None,
    **keys: str | int | bool,
) -> Path:
    """Matrices of a kind, norms in F32, under llama.cpp's names; `keys` with `__` for dots."""
    writer, config = GGUFWriter(path, architecture), model.config
    writer.add_context_length(64)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(str(keys.pop("pre", "smollm")))
    writer.add_token_list(list(TOKENS))
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(list(MERGES))
    writer.add_eos_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, value in keys.items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}[type(value)]
        add(name.replace("__", "."), value)
    for name, weight in model.named_parameters():
        called = theirs(name)
        values = interleaved(weight.detach().numpy(), called)
        if called == left_out:
            continue
        if values.ndim == 1 or kind == Kind.F32:
            writer.add_tensor(called, values)
        else:
            writer.add_tensor(called, gguf.quants.quantize(values, kind), raw_dtype=kind)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
