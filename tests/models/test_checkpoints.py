import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loclin.errors import LoclinError
from loclin.models.checkpoints import read_run
from tests.models.runs import hand_made, weights, write


def test_checkpoints_come_in_the_order_of_their_steps_as_numbers(tmp_path: Path) -> None:
    points = read_run(hand_made(tmp_path))
    assert points.labels == ("checkpoint-2", "checkpoint-10", "checkpoint-100")
    assert points.steps == (2, 10, 100)
    block = points.read("wte.weight", slice(3, 5))
    assert torch.equal(block, torch.stack([weights(s)["wte.weight"][3:5] for s in (2, 10, 100)]))
    assert points.notes == (
        "the first point is checkpoint-2: what came before it is not known (--start gives it)",
    )


def test_a_pattern_chooses_tensors(tmp_path: Path) -> None:
    assert list(read_run(hand_made(tmp_path), pattern="*attn*").shapes) == ["h.0.attn.bias"]


def test_the_finished_model_is_the_last_point_once(tmp_path: Path) -> None:
    hand_made(tmp_path)
    write(tmp_path, weights(100))
    again = read_run(tmp_path)
    assert again.labels[-1] == "checkpoint-100"
    assert again.notes[0] == f"the model in {tmp_path.name} itself is checkpoint-100 again"
    write(tmp_path, weights(10), step=100)  # the best model, loaded at the end, is no further point
    assert read_run(tmp_path).notes[0].endswith("checkpoint-10 again")
    write(tmp_path, weights(150), step=150)
    assert read_run(tmp_path).steps == (2, 10, 100, 150)
    write(tmp_path, weights(150), step=50)
    assert read_run(tmp_path).steps == (2, 10, 100)
    assert (
        read_run(tmp_path)
        .notes[0]
        .endswith("itself is of step 50, before checkpoint-100, and is left out")
    )
    write(tmp_path, {"merged": torch.ones(3)})
    assert (
        read_run(tmp_path)
        .notes[0]
        .endswith("itself holds other tensors than the checkpoints and is left out")
    )


def test_a_base_model_is_the_start_under_either_name_of_its_body(tmp_path: Path) -> None:
    for step in (5, 6):
        held = {f"transformer.{n}": t for n, t in weights(step).items()}
        write(tmp_path / "run" / f"checkpoint-{step}", held)
    write(tmp_path / "bare", {**weights(0), "lm_head.weight": torch.ones(30, 8)})
    write(tmp_path / "named", {f"transformer.{n}": t for n, t in weights(0).items()})
    for base in ("bare", "named"):
        points = read_run(tmp_path / "run", start=tmp_path / base)
        assert points.labels == (base, "checkpoint-5", "checkpoint-6")
        assert points.steps == (0, 5, 6)
        assert torch.equal(
            points.read("transformer.wte.weight", slice(None))[0], weights(0)["wte.weight"]
        )


def rename(folder: Path) -> None:
    write(
        folder / "checkpoint-10",
        {"wte.weight": weights(0)["wte.weight"], "other": torch.ones(2)},
        step=10,
    )


def reshape(folder: Path) -> None:
    write(folder / "checkpoint-100", {**weights(0), "wte.weight": torch.ones(31, 8)}, step=100)


def adapter(folder: Path) -> None:
    write(folder / "checkpoint-10", weights(0), name="adapter_model.safetensors")
    (folder / "checkpoint-10" / "adapter_config.json").write_text(
        json.dumps({"r": 2, "lora_alpha": 4})
    )


def twin(folder: Path) -> None:
    write(folder / "checkpoint-010", weights(0))


def unsafe(folder: Path) -> None:
    file = folder / "checkpoint-10" / "model.safetensors"
    file.rename(file.with_suffix(".bin"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f), "expected a folder of checkpoints, found none at"),
        (lambda f: [shutil.rmtree(p) for p in f.iterdir()], "expected folders checkpoint-N in .*, "
                                                            "found none: give the output"),
        (lambda f: [shutil.rmtree(p) for p in f.iterdir()] and write(f, weights(0)), r"found a "
                                                                                     r"single "
                                                                                     r"model "
                                                                                     r"\(model\.safe"),
        (lambda f: shutil.rmtree(f / "checkpoint-2"), r"at least 3 checkpoints \(2 updates\), "
                                                      r"found checkpoint-10, checkpoint-100"),
        (rename, r"the same tensors in every checkpoint, found h\.0\.attn\.bias in checkpoint-2 "
                 r"but not in checkpoint-10"),
        (reshape, r"one shape of wte\.weight, found \(30, 8\) in checkpoint-2 and \(31, 8\) in "
                  r"checkpoint-100"),
        (adapter, "of one kind, found full weights in checkpoint-2 and an adapter in "
                  "checkpoint-10"),
        (twin, "expected one checkpoint of step 10, found checkpoint-010 and checkpoint-10: remove "
               "one"),
        (unsafe, r"found model\.bin alone, a kind of file that runs code when it is loaded: "
                 r"convert to safetensors"),
    ],
)  # fmt: skip
def test_folders_that_are_no_run_say_why(
    tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    folder = hand_made(tmp_path / "run")
    change(folder)
    with pytest.raises(LoclinError, match=message) as error:
        read_run(folder)
    assert "\n" not in str(error.value)


def test_a_start_of_another_kind_or_place_is_refused(tmp_path: Path) -> None:
    folder = hand_made(tmp_path / "run")
    with pytest.raises(LoclinError, match="expected a folder for --start, found none at"):
        read_run(folder, start=tmp_path / "nowhere")
    write(tmp_path / "other", {"x": torch.ones(2)})
    with pytest.raises(
        LoclinError, match=r"found h\.0\.attn\.bias in checkpoint-2 but not in other"
    ):
        read_run(folder, start=tmp_path / "other")
    adapter(tmp_path)
    with pytest.raises(
        LoclinError, match="found an adapter in checkpoint-10 and full weights in checkpoint-2"
    ):
        read_run(folder, start=tmp_path / "checkpoint-10")


def adapters(folder: Path, **last: object) -> Path:
    for step in (1, 2, 3):
        generator = torch.Generator().manual_seed(step)
        factors = {
            "h.0.lora_A.weight": torch.randn(2, 6, generator=generator),
            "h.0.lora_B.weight": torch.randn(5, 2, generator=generator),
        }
        write(folder / f"checkpoint-{step}", factors, name="adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 8,
            **(last if step == 3 or "all" in last else {}),
        }
        (folder / f"checkpoint-{step}" / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_adapters_that_are_not_scaled_products_are_measured_in_their_own_parameters(
    tmp_path: Path,
) -> None:
    plain = read_run(adapters(tmp_path / "plain"))
    assert plain.adapted["h.0"].scale == 4
    for change, note in (
        ({"peft_type": "IA3"}, "adapters of kind IA3 are measured in their own parameters alone"),
        ({"use_dora": True}, "adapters of kind DoRA are measured"),
        ({"r": 3}, "h.0 is not adapted by one pair of rank 3: measured in"),
    ):
        points = read_run(adapters(tmp_path / note, all=True, **change))
        assert points.adapted == {}
        assert points.notes[-1].startswith(note)


def test_adapters_of_two_configurations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        LoclinError,
        match="one configuration, found lora_alpha 8 in checkpoint-1 and 16 in checkpoint-3",
    ):
        read_run(adapters(tmp_path, lora_alpha=16))


def killed_empty(folder: Path) -> None:
    (folder / "checkpoint-101").mkdir()


def killed_half_way(folder: Path) -> None:
    write(folder / "checkpoint-101", weights(101))
    path = folder / "checkpoint-101" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def killed_between_shards(folder: Path) -> None:
    (folder / "checkpoint-101").mkdir()
    index = {"weight_map": {"wte.weight": "model-00001-of-00002.safetensors"}}
    (folder / "checkpoint-101" / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("kill", [killed_empty, killed_half_way, killed_between_shards])
def test_a_last_checkpoint_that_is_not_whole_is_left_out_with_a_note(
    kill: Callable[[Path], None], tmp_path: Path
) -> None:
    kill(hand_made(tmp_path))
    points = read_run(tmp_path)
    assert points.labels == ("checkpoint-2", "checkpoint-10", "checkpoint-100")
    assert points.notes[0].startswith("checkpoint-101 is not whole (")
    assert points.notes[0].endswith(") and is left out")
    # in the middle of a run it is not left out: its neighbours would be taken for one step
    (tmp_path / "checkpoint-101").rename(tmp_path / "checkpoint-50")
    with pytest.raises(LoclinError, match="checkpoint-50"):
        read_run(tmp_path)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "module."])
def test_names_of_wrappers_are_no_part_of_a_name(wrapper: str, tmp_path: Path) -> None:
    for step in (5, 6):
        held = {wrapper + n: t for n, t in weights(step).items()}
        write(tmp_path / "run" / f"checkpoint-{step}", held)
    write(tmp_path / "base", weights(0))
    points = read_run(tmp_path / "run", start=tmp_path / "base", pattern=f"{wrapper}wte*")
    assert list(points.shapes) == ["wte.weight"]
    found = points.read("wte.weight", slice(None))
    assert torch.equal(found, torch.stack([weights(s)["wte.weight"] for s in (0, 5, 6)]))


def test_a_named_adapter_lies_one_folder_down(tmp_path: Path) -> None:
    plain = read_run(adapters(tmp_path / "plain"))
    adapters(tmp_path / "named")
    for step in (1, 2, 3):
        folder = tmp_path / "named" / f"checkpoint-{step}"
        (folder / "wolf").mkdir()
        for file in [p for p in folder.iterdir() if p.is_file()]:
            file.rename(folder / "wolf" / file.name)
    named = read_run(tmp_path / "named")
    assert named.adapted == plain.adapted
    for name in plain.shapes:
        assert torch.equal(named.read(name, slice(None)), plain.read(name, slice(None)))
    last = tmp_path / "named" / "checkpoint-3"
    shutil.copytree(last / "wolf", last / "bear")
    with pytest.raises(LoclinError, match=r"one adapter in .*checkpoint-3, found bear, wolf: give"):
        read_run(tmp_path / "named")


@pytest.mark.parametrize(
    "tensor",
    [
        {"h.0.attn.q_proj.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)},
        {"h.0.attn.q_proj.weight": torch.ones(4, 4, dtype=torch.uint8)},
        {"h.0.attn.q_proj.qweight": torch.ones(4, 4, dtype=torch.int32)},
    ],
)
def test_quantised_tensors_are_refused_by_name(
    tensor: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    for step in (1, 2, 3):
        write(tmp_path / f"checkpoint-{step}", weights(step) | tensor)
    with pytest.raises(
        LoclinError, match=r"not quantised in .*, found h\.0\.attn\.q_proj\.q?weight"
    ):
        read_run(tmp_path)


def test_a_stale_file_beside_shards_is_noted(tmp_path: Path) -> None:
    hand_made(tmp_path)
    index = {"weight_map": {"wte.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "checkpoint-10" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_run(tmp_path).notes[-1] == (
        "checkpoint-10 holds model.safetensors beside shards of another save: the single file is "
        "read, as transformers does"
    )


@pytest.mark.parametrize(
    ("setting", "kind"),
    [({"lora_bias": True}, "LoRA with biases"), ({"alora_invocation_tokens": [1]}, "aLoRA")],
)
def test_adapters_that_do_more_than_a_product_say_so(
    setting: dict[str, object], kind: str, tmp_path: Path
) -> None:
    points = read_run(adapters(tmp_path, all=True, **setting))
    assert points.adapted == {}
    assert points.notes[-1].startswith(f"adapters of kind {kind} are measured in their own")
