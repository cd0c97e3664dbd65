"""What the rows of a run are called: groups of tensors, spaces, random vectors to compare with."""

from __future__ import annotations

import re

#: Groups of tensors by their names, the first that fits: "input_layernorm" is a norm,
#: "post_attention_layernorm" too.
GROUPS = {
    "norms": r"norm|\bln_|\.ln\d?\b",
    "embeddings": r"embed|\bwte\b|\bwpe\b|\blm_head\b",
    "attention": r"attn|attention|\b[qkvo]_proj\b|\b(query|key|value)\b",
    "MLP": r"mlp|feed_forward|ffn|\bfc\d?\b|\b(up|down|gate)_proj\b|intermediate|\bdense\b",
    "other": "",
}
#: Spaces, and what they are called where there are two.
SPACES = {"weights": "weights ΔW", "factors": "factors A, B"}
#: The segments, and random vectors with their norms in every tensor, and as a whole.
MEASURED, PER_TENSOR, ISOTROPIC = "measured", "per tensor", "isotropic"
MEANS = ("uncentred", "centred")
RANKS = ("stable", "participation", "entropy")


def group_of(name: str) -> str:
    """The group of a tensor, from its name.

    >>> [group_of(n) for n in ("h.0.attn.c_attn.weight", "layers.1.input_layernorm.weight", "wte")]
    ['attention', 'norms', 'embeddings']
    """
    return next(group for group, pattern in GROUPS.items() if re.search(pattern, name))
