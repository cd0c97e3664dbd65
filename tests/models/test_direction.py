"""Directions from files against what peft itself makes of the same adapters."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from loclin.errors import LoclinError
from loclin.models.adapters import merged_change
from loclin.models.direction import read_direction
from loclin.models.folder import matched_names
from loclin.models.lora import Lora, attach
from tests.conftest import FAMILIES, random_model
from tests.models.runs import experts, tiny, tiny_lora, write


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapted(model: PreTrainedModel, folder: Path, *, seed: int = 0, **change: object) -> nn.Module:
    """A saved adapter whose B is not zero."""
    made = attach(model, Lora(rank=2, **change), seed=seed)  # type: ignore[arg-type]
    return saved(made, folder, seed)


def saved(made: nn.Module, folder: Path, seed: int) -> nn.Module:
    with torch.no_grad():
        for i, (name, p) in enumerate(made.named_parameters()):
            if "lora_B" in name:
                p.copy_(0.1 * noise(tuple(p.shape), 100 * seed + i))
    made.save_pretrained(folder)  # type: ignore[operator]
    return made


def change(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    first, second = (dict(m.named_parameters()) for m in (before, after))
    changes = {n: (second[n] - first[n]).detach() for n in first}
    return {n: d for n, d in changes.items() if d.any()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[n], other[n], atol=2e-6) for n in one
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapters_direction_is_what_merging_it_changes(tmp_path: Path, family: str) -> None:
    base = random_model(family, 320)
    merged = adapted(random_model(family, 320), tmp_path / "adapter").merge_and_unload()  # type: ignore[operator]
    direction = read_direction(str(tmp_path / "adapter"), base)
    assert same(dict(direction.tensors), change(base, merged))
    total = sum(1 for _ in base.parameters())
    assert direction.notes == (
        f"the direction is ΔW of the adapter adapter, at {len(direction.tensors)} tensors",
        f"the direction moves {len(direction.tensors)} of the model's {total} tensors",
    )
    base.save_pretrained(tmp_path / "base")
    merged.save_pretrained(tmp_path / "tuned")
    between = read_direction(f"{tmp_path / 'base'}..{tmp_path / 'tuned'}", base)
    assert same(dict(between.tensors), dict(direction.tensors))
    assert between.notes[0] == "the direction leads from base to tuned"


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True, "alpha_pattern": {}}, {"rank_pattern": {r"h\.1\..*c_fc": 2}}],
)
def test_scales_and_ranks_are_those_of_peft(tmp_path: Path, settings: dict[str, object]) -> None:
    base = tiny()
    merged = saved(tiny_lora(**settings), tmp_path / "adapter", 1).merge_and_unload()  # type: ignore[operator]
    direction = read_direction(str(tmp_path / "adapter"), base)
    assert len(direction.tensors) == 4
    assert same(dict(direction.tensors), change(base, merged))


def test_two_adapters_of_one_run_make_the_way_between_them(tmp_path: Path) -> None:
    base = random_model("llama", 320)
    merged = [
        adapted(copy.deepcopy(base), tmp_path / str(seed), seed=seed).merge_and_unload()  # type: ignore[operator]
        for seed in (1, 2)
    ]
    direction = read_direction(f"{tmp_path / '1'}..{tmp_path / '2'}", base)
    assert same(dict(direction.tensors), change(*merged))


def test_adapted_embeddings_and_square_weights_are_turned_the_right_way(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.conv, self.square = (
                nn.Embedding(7, 4),
                nn.Conv2d(3, 5, 2),
                nn.Linear(4, 4),
            )

    torch.random.default_generator.manual_seed(0)
    base = Net()
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["table", "conv", "square"])
    made = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for i, (name, p) in enumerate(made.named_parameters()):
            if "lora_" in name:
                p.copy_(noise(tuple(p.shape), i))
    made.save_pretrained(tmp_path / "adapter")
    moved = merged_change(tmp_path / "adapter", base)
    assert same(moved, change(base, made.merge_and_unload()))
    assert set(moved) == {"table.weight", "conv.weight", "square.weight"}


def test_a_file_holds_the_change_itself_and_may_leave_tensors_out(tmp_path: Path) -> None:
    model = tiny()
    moved = {
        "h.1.mlp.c_fc.bias": noise((128,), 0),
        "wte.weight": noise((40, 32), 1).bfloat16(),
        "step": torch.arange(3),
    }
    save_file({**moved, "wpe.weight": torch.zeros(16, 32)}, tmp_path / "delta.safetensors")
    direction = read_direction(str(tmp_path / "delta.safetensors"), model)
    assert set(direction.tensors) == {"transformer.h.1.mlp.c_fc.bias", "transformer.wte.weight"}
    assert torch.equal(direction.tensors["transformer.wte.weight"], moved["wte.weight"].float())
    assert direction.notes == (
        "the tensors of delta.safetensors are taken as the change itself",
        f"the direction moves 2 of the model's {len(list(model.parameters()))} tensors",
    )


def test_names_are_found_with_and_without_that_of_the_body() -> None:
    assert matched_names(["model.a", "model.b", "head"], ["a", "b", "head"]) == {
        "model.a": "a",
        "model.b": "b",
        "head": "head",
    }
    assert matched_names(["a", "b"], ["transformer.a", "transformer.b", "c"]) == {
        "a": "transformer.a",
        "b": "transformer.b",
    }
    assert matched_names(["a", "b"], ["b"]) == {"b": "b"}


def test_tied_weights_move_once_and_never_apart(tmp_path: Path) -> None:
    model = tiny()
    assert model.lm_head.weight is model.transformer.wte.weight
    step, other = noise((40, 32), 0), noise((40, 32), 1)
    path = tmp_path / "delta.safetensors"
    for held in (
        {"lm_head.weight": step},
        {"lm_head.weight": step, "transformer.wte.weight": step.clone()},
    ):
        save_file(held, path)
        assert list(read_direction(str(path), model).tensors) == ["transformer.wte.weight"]
    save_file({"lm_head.weight": step, "transformer.wte.weight": other}, path)
    with pytest.raises(
        LoclinError,
        match=r"lm_head\.weight that changes otherwise than transformer\.wte\.weight, which the",
    ):
        read_direction(str(path), model)


def test_a_head_of_its_own_is_refused_where_the_model_ties_it(tmp_path: Path) -> None:
    base = tiny()
    base.save_pretrained(tmp_path / "base")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    table = stored["transformer.wte.weight"]
    moved = stored | {"transformer.wte.weight": table + 1, "lm_head.weight": table + 2}
    text = saved_as(tmp_path, moved)
    with pytest.raises(LoclinError, match=r"changes otherwise than .*, which the model ties to it"):
        read_direction(text, base)
    # the same head stored twice is the same model
    text = saved_as(tmp_path, moved | {"lm_head.weight": table + 1})
    direction = read_direction(text, base)
    assert list(direction.tensors) == ["transformer.wte.weight"]
    assert torch.allclose(direction.tensors["transformer.wte.weight"], torch.ones(40, 32))


def saved_as(folder: Path, tensors: dict[str, Tensor]) -> str:
    """BASE..TUNED with a tuned model of these tensors."""
    shutil.copytree(folder / "base", folder / "tuned", dirs_exist_ok=True)
    held = {n: t.contiguous() for n, t in tensors.items()}
    save_file(held, folder / "tuned" / "model.safetensors", metadata={"format": "pt"})
    return f"{folder / 'base'}..{folder / 'tuned'}"


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "_fsdp_wrapped_module."])
def test_masks_of_old_checkpoints_and_wrappers_are_no_mismatch(
    tmp_path: Path, wrapper: str
) -> None:
    base = tiny()
    base.save_pretrained(tmp_path / "base")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    stored["transformer.wpe.weight"] += 1
    beside = {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4), "value_head": torch.ones(2)}
    text = saved_as(tmp_path, {wrapper + n: t for n, t in {**stored, **beside}.items()})
    direction = read_direction(text, base)
    assert list(direction.tensors) == ["transformer.wpe.weight"]
    assert direction.notes[1] == (
        "1 tensors in the files are no part of the model and are left out: value_head"
    )


def test_experts_that_are_many_on_disk_move_as_one(tmp_path: Path) -> None:
    base = experts()
    base.save_pretrained(tmp_path / "base")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for i, p in enumerate(tuned.parameters()):
            p.add_(1e-3 * noise(tuple(p.shape), i))
    tuned.save_pretrained(tmp_path / "tuned")
    direction = read_direction(f"{tmp_path / 'base'}..{tmp_path / 'tuned'}", base)
    assert "model.layers.0.mlp.experts.gate_up_proj" in direction.tensors
    assert same(dict(direction.tensors), change(base, tuned))


def test_paths_with_steps_up_are_cut_where_both_sides_are_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny()
    base.save_pretrained(tmp_path / "a")
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.transformer.ln_f.bias.add_(1)
    other.save_pretrained(tmp_path / "b..c")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    direction = read_direction("../a..../b..c", base)
    assert direction.tensors["transformer.ln_f.bias"].tolist() == [1] * 32


WHOLE = {"wte.weight": noise((40, 32), 0)}


def file_of(folder: Path, tensors: dict[str, Tensor]) -> str:
    save_file({n: t.clone() for n, t in tensors.items()}, folder / "delta.safetensors")
    return str(folder / "delta.safetensors")


def folders_of(folder: Path, **change: Tensor | None) -> str:
    """The model, and the model with other tensors; None leaves one out."""
    tiny().save_pretrained(folder / "base")
    stored = load_file(folder / "base" / "model.safetensors") | {
        f"transformer.{n.replace('_', '.')}": t for n, t in change.items()
    }
    return saved_as(folder, {n: t for n, t in stored.items() if t is not None})


def adapter_of(folder: Path, config: dict[str, object], **more: Tensor) -> str:
    factors = {
        f"transformer.h.{i}.mlp.c_fc.lora_{x}.weight": noise(size, i)
        for i in (0, 1)
        for x, size in (("A", (2, 32)), ("B", (128, 2)))
    }
    named = {f"base_model.model.{n}": t for n, t in {**factors, **more}.items()}
    write(folder / "adapter", named, name="adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["c_fc"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings | config))
    return str(folder / "adapter")


def pickled(folder: Path) -> str:
    torch.save(WHOLE, folder / "delta.pt")
    return str(folder / "delta.pt")


def two_kinds(folder: Path) -> str:
    tiny().save_pretrained(folder / "base")
    return f"{folder / 'base'}..{adapter_of(folder, {})}"


ONES = torch.ones(1)
LONE = {"h.0.mlp.c_fc.lora_A.weight": torch.ones(2, 32)}
TIED = {"lm_head.lora_A.weight": torch.ones(2, 32), "lm_head.lora_B.weight": torch.ones(40, 2)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: file_of(f, {**WHOLE, "wpe.weight": torch.ones(3, 32)}
                           | dict.fromkeys(("h.0.new", "y", "z"), ONES)),
         r"found h\.0\.new \(no such tensor in the model\), y \(no .*\), z \(no .*\) and 1 more in "
         r".*: give a direction of this"),
        (lambda f: file_of(f, {"wpe.weight": ONES}), r"found wpe\.weight of shape \(1,\) \(the "
                                                     r"model's is \(16, 32\)\)"),
        (lambda f: file_of(f, {"x": torch.zeros(2)}), "named and shaped as the model's, found none "
                                                      "in"),
        (lambda f: file_of(f, {"wte.weight": torch.zeros(40, 32)}), "a direction that moves "
                                                                    "something, found zeros in"),
        (lambda f: file_of(f, {"wte.weight": WHOLE["wte.weight"] / 0}), r"found NaN or infinity in "
                                                                        r"transformer\.wte\.weight "
                                                                        r"of"),
        (lambda f: file_of(f, LONE), "found the factors of an adapter in .*: give the adapter's "
                                     "folder"),
        (pickled, r"a whole safetensors file, found .*delta\.pt .*: save the changes with .*; "
                  r"pickles are never loaded"),
        (lambda f: str(f / "none.safetensors"), "a file of changes, found nothing at"),
        (lambda f: str(f / "none"), r"expected PATH\.safetensors, BASE\.\.TUNED or the folder of "
                                    r"an adapter, found nothing at"),
        (lambda f: f"{f}..{f / 'none'}", r"found nothing at .*none: check the path"),
        (lambda f: str(f), "found none of them: give a folder saved by"),
        (folders_of, "found zeros in"),
        (lambda f: folders_of(f, wte_weight=torch.ones(39, 32)), r"found transformer\.wte\.weight"
                                                                 r" of shape .*39.*: save the"),
        (lambda f: folders_of(f, wpe_weight=None), r"found no transformer\.wpe\.weight: save the "
                                                   "model again .*, as they would be random"),
        (lambda f: folders_of(f).split("..")[0], r"an adapter where one folder is "
                                                 r"given, found full weights in"),
        (two_kinds, "two folders of one kind, found full weights in base and an adapter in "
                    "adapter"),
        (lambda f: adapter_of(f, {"peft_type": "WOLF"}), r"found WOLF \("),
        (lambda f: adapter_of(f, {"peft_type": "PROMPT_TUNING"}),
         "found PROMPT_TUNING in .*, which adds tokens or states to the input and moves"),
        (lambda f: adapter_of(f, {"alora_invocation_tokens": [5]}),
         "found aLoRA in .*, which is at work only after its invocation tokens and moves no"),
        (lambda f: adapter_of(f, {"init_lora_weights": "pissa_niter_4"}),
         "which is drawn at random and not kept"),
        (lambda f: adapter_of(f, {}, ln=ONES),
         r"found LORA \(ValueError: no place in the model for base_model\.model\.ln"),
        (lambda f: adapter_of(f, {"r": 3}), r"found LORA \(RuntimeError: .*size mismatch"),
        (lambda f: adapter_of(f, {"target_modules": ["c_fc", "c_attn"]}),
         r"found LORA \(ValueError: Found missing adapter"),
        (lambda f: adapter_of(f, {"target_modules": ["c_fc", "lm_head"]}, **TIED),
         r"found lm_head in adapter, which the model ties to another one: untie"),
    ],
)  # fmt: skip
def test_what_is_no_direction_of_the_model_says_why(
    tmp_path: Path, make: Callable[[Path], str], message: str
) -> None:
    with pytest.raises(LoclinError, match=message) as error:
        read_direction(make(tmp_path), tiny())
    assert "\n" not in str(error.value)
