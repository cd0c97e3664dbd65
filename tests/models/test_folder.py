import json
from pathlib import Path

import pytest
import torch

from loclin.errors import LoclinError
from loclin.models.folder import open_checkpoint, scaling
from tests.models.runs import tiny_lora, weights, write


def test_floating_point_tensors_of_every_precision_are_read_and_counts_are_not(
    tmp_path: Path,
) -> None:
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    stored = {str(kind): torch.arange(6).reshape(3, 2).to(kind) for kind in kinds}
    write(
        tmp_path,
        {
            **stored,
            "scalar": torch.tensor(2.0),
            "count": torch.arange(3),
            "mask": torch.ones(2, dtype=torch.bool),
        },
    )
    checkpoint = open_checkpoint(tmp_path, step=None)
    assert set(checkpoint.files) == {*stored, "scalar"}
    for kind in kinds:
        rows = checkpoint.read(str(kind), slice(1, 3))
        assert rows.tolist() == [[2, 3], [4, 5]]
        assert rows.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    assert checkpoint.shapes["scalar"] == ()
    assert checkpoint.read("scalar", slice(0, 1)).tolist() == [2]


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    whole = weights(0)
    for i, (name, values) in enumerate(whole.items()):
        write(tmp_path, {name: values}, name=f"model-{i}.safetensors")
    places = {name: f"model-{i}.safetensors" for i, name in enumerate(whole)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    checkpoint = open_checkpoint(tmp_path, step=5)
    assert all(torch.equal(checkpoint.read(n, slice(None)), whole[n]) for n in whole)


@pytest.mark.parametrize(
    "change",
    [{}, {"use_rslora": True, "alpha_pattern": {}}, {"rank_pattern": {r"h\.1\..*c_fc": 2}}],
)
def test_ranks_and_scales_are_those_that_peft_applies(change: dict[str, object]) -> None:
    model = tiny_lora(**change)
    config = model.peft_config["default"].to_dict()
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "lora_A")}
    assert len(layers) == 4
    for name, layer in layers.items():
        assert scaling(config, name) == (
            layer.r["default"],
            pytest.approx(layer.scaling["default"]),
        )


def test_folders_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(
        LoclinError,
        match=r"expected model\.safetensors, .* in .*, found none of them: give a folder saved",
    ):
        open_checkpoint(tmp_path, step=None)
    (tmp_path / "training_args.bin").write_bytes(b"x")
    with pytest.raises(LoclinError, match="found none of them"):
        open_checkpoint(tmp_path, step=None)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(
        LoclinError, match=r"found pytorch_model\.bin alone, .* convert to safetensors"
    ):
        open_checkpoint(tmp_path, step=None)
    write(tmp_path, {"count": torch.arange(3)})
    with pytest.raises(
        LoclinError,
        match=r"expected floating-point tensors in .*, found none: give unquantised weights",
    ):
        open_checkpoint(tmp_path, step=None)
    write(tmp_path, weights(0), step=7)
    with pytest.raises(
        LoclinError,
        match=r"to be of step 5, found step 7 in its trainer_state\.json: give the folder",
    ):
        open_checkpoint(tmp_path, step=5)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for broken in (whole[:-8], whole[:20], b""):
        (tmp_path / "model.safetensors").write_bytes(broken)
        with pytest.raises(
            LoclinError,
            match=r"expected whole weights in .*model\.safetensors, found .*: copy the file again",
        ):
            open_checkpoint(tmp_path, step=7)
    write(tmp_path, weights(0), name="adapter_model.safetensors")
    with pytest.raises(
        LoclinError, match=r"expected JSON in .*adapter_config\.json, found .*: copy the file again"
    ):
        open_checkpoint(tmp_path, step=7)
    (tmp_path / "trainer_state.json").write_text("[]")
    with pytest.raises(
        LoclinError, match=r"expected a JSON object in .*trainer_state\.json, found list"
    ):
        open_checkpoint(tmp_path, step=7)
