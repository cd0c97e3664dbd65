import pytest

from loclin.studies.trajectory.names import GROUPS, group_of


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("embeddings", ["transformer.wte.weight", "model.embed_tokens.weight", "lm_head.weight"]),
        (
            "attention",
            ["transformer.h.3.attn.c_proj.weight", "model.layers.0.self_attn.q_proj.lora_A.weight"],
        ),
        ("MLP", ["transformer.h.3.mlp.c_fc.weight", "model.layers.0.mlp.up_proj.weight"]),
        (
            "norms",
            [
                "transformer.ln_f.bias",
                "model.layers.1.post_attention_layernorm.weight",
                "model.norm.weight",
            ],
        ),
        ("other", ["classifier.weight"]),
    ],
)
def test_tensors_of_the_usual_networks_are_grouped(group: str, names: list[str]) -> None:
    assert {group_of(n) for n in names} == {group}
    assert group in GROUPS
