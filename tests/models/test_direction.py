"""Directions from files against what peft itself makes of the same adapters."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from loclin.errors import LoclinError
from loclin.models.direction import Tensors, read_direction
from loclin.models.folder import matched_names
from loclin.models.lora import Lora, attach
from tests.conftest import FAMILIES, random_model
from tests.models.runs import tiny, tiny_lora, write


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
    direction = read_direction(str(tmp_path / "adapter"), Tensors.of(base))
    assert same(dict(direction.tensors), change(base, merged))
    total = sum(1 for _ in base.parameters())
    assert direction.notes == (
        f"the direction is ΔW of the adapter adapter, at {len(direction.tensors)} weights",
        f"the direction moves {len(direction.tensors)} of the model's {total} tensors",
    )
    base.save_pretrained(tmp_path / "base")
    merged.save_pretrained(tmp_path / "tuned")
    between = read_direction(f"{tmp_path / 'base'}..{tmp_path / 'tuned'}", Tensors.of(base))
    assert same(dict(between.tensors), dict(direction.tensors))
    assert between.notes[0] == "the direction leads from base to tuned"


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True, "alpha_pattern": {}}, {"rank_pattern": {r"h\.1\..*c_fc": 2}}],
)
def test_scales_and_ranks_are_those_of_peft(tmp_path: Path, settings: dict[str, object]) -> None:
    base = tiny()
    merged = saved(tiny_lora(**settings), tmp_path / "adapter", 1).merge_and_unload()  # type: ignore[operator]
    direction = read_direction(str(tmp_path / "adapter"), Tensors.of(base))
    assert len(direction.tensors) == 4
    assert same(dict(direction.tensors), change(base, merged))


def test_two_adapters_of_one_run_make_the_way_between_them(tmp_path: Path) -> None:
    base = random_model("llama", 320)
    merged = [
        adapted(copy.deepcopy(base), tmp_path / str(seed), seed=seed).merge_and_unload()  # type: ignore[operator]
        for seed in (1, 2)
    ]
    direction = read_direction(f"{tmp_path / '1'}..{tmp_path / '2'}", Tensors.of(base))
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
    direction = read_direction(str(tmp_path / "adapter"), Tensors.of(base))
    assert same(dict(direction.tensors), change(base, made.merge_and_unload()))
    assert set(direction.tensors) == {"table.weight", "conv.weight", "square.weight"}


def test_a_file_holds_the_change_itself_and_may_leave_tensors_out(tmp_path: Path) -> None:
    model = Tensors.of(tiny())
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
        f"the direction moves 2 of the model's {len(model.shapes)} tensors",
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
    base = tiny()
    model = Tensors.of(base)
    assert model.tied == {"lm_head.weight": "transformer.wte.weight"}
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
    # a checkpoint may hold it once or twice
    write(tmp_path / "base", {"transformer.wte.weight": step})
    write(tmp_path / "tuned", {"transformer.wte.weight": other, "lm_head.weight": other.clone()})
    direction = read_direction(f"{tmp_path / 'base'}..{tmp_path / 'tuned'}", model)
    assert torch.equal(direction.tensors["transformer.wte.weight"], other - step)


def test_masks_of_old_checkpoints_are_no_mismatch_but_what_moved_is(tmp_path: Path) -> None:
    before = {
        "wte.weight": noise((40, 32), 0),
        "h.0.attn.bias": torch.ones(1, 1, 4, 4),
        "old": torch.ones(2),
    }
    write(tmp_path / "base", before)
    write(
        tmp_path / "tuned",
        {"wte.weight": noise((40, 32), 1), "h.0.attn.bias": torch.ones(1, 1, 4, 4)},
    )
    text = f"{tmp_path / 'base'}..{tmp_path / 'tuned'}"
    direction = read_direction(text, Tensors.of(tiny()))
    assert list(direction.tensors) == ["transformer.wte.weight"]
    assert (
        direction.notes[1]
        == "1 tensors that the model does not have stand in one of the two folders alone"
    )
    write(tmp_path / "tuned", {**before, "wte.weight": noise((40, 32), 1), "old": torch.zeros(2)})
    with pytest.raises(LoclinError, match=r"found old \(no such tensor in the model\) in"):
        read_direction(text, Tensors.of(tiny()))


def test_paths_with_steps_up_are_cut_where_both_sides_are_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("a", 0), ("b..c", 1)):
        write(tmp_path / name, {"wte.weight": noise((40, 32), seed)})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    direction = read_direction("../a..../b..c", Tensors.of(tiny()))
    assert torch.equal(
        direction.tensors["transformer.wte.weight"], noise((40, 32), 1) - noise((40, 32), 0)
    )


WHOLE = {"wte.weight": noise((40, 32), 0)}


def file_of(folder: Path, tensors: dict[str, Tensor]) -> str:
    save_file({n: t.clone() for n, t in tensors.items()}, folder / "delta.safetensors")
    return str(folder / "delta.safetensors")


def folders_of(folder: Path, first: dict[str, Tensor], second: dict[str, Tensor]) -> str:
    write(folder / "base", first)
    write(folder / "tuned", second)
    return f"{folder / 'base'}..{folder / 'tuned'}"


def adapter_of(folder: Path, config: dict[str, object], **more: Tensor) -> str:
    factors = {
        "h.0.mlp.c_fc.lora_A.weight": noise((2, 32), 0),
        "h.0.mlp.c_fc.lora_B.weight": noise((128, 2), 1),
        **more,
    }
    write(folder / "adapter", factors, name="adapter_model.safetensors")
    (folder / "adapter" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config})
    )
    return str(folder / "adapter")


def pickled(folder: Path) -> str:
    torch.save(WHOLE, folder / "delta.pt")
    return str(folder / "delta.pt")


def two_kinds(folder: Path) -> str:
    write(folder / "base", WHOLE)
    return f"{folder / 'base'}..{adapter_of(folder, {})}"


def two_scales(folder: Path) -> str:
    adapter_of(folder, {"lora_alpha": 8})
    (folder / "adapter").rename(folder / "first")
    return f"{folder / 'first'}..{adapter_of(folder, {})}"


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
        (lambda f: folders_of(f, WHOLE, WHOLE), "found zeros in"),
        (lambda f: folders_of(f, WHOLE, {"wte.weight": ONES}), r"one shape of transformer\.wte\."
                                                               r"weight, found \(40, 32\) in base "
                                                               r"and \(1,\) in"),
        (lambda f: folders_of(f, WHOLE, {**WHOLE, "ln_f.bias": ONES}), r"found "
                                                                       r"transformer\.ln_f\.bias "
                                                                       r"in tuned but not in base"),
        (lambda f: folders_of(f, WHOLE, WHOLE).split("..")[0], r"an adapter where one folder is "
                                                               r"given, found full weights in"),
        (two_kinds, "two folders of one kind, found full weights in base and an adapter in "
                    "adapter"),
        (two_scales, "adapters of one configuration, found lora_alpha 8 in first and 4 in adapter"),
        (lambda f: adapter_of(f, {"peft_type": "IA3"}), "found one of kind IA3 in adapter: merge "
                                                        "it"),
        (lambda f: adapter_of(f, {"use_dora": True}), "found one of kind DoRA in adapter: merge "
                                                      "it"),
        (lambda f: adapter_of(f, {}, ln=ONES), r"LoRA factors alone in adapter, found ln beside "
                                               r"them: merge"),
        (lambda f: adapter_of(f, {}, **TIED), r"found lm_head\.weight in adapter, which the model "
                                              r"ties to another one: untie"),
    ],
)  # fmt: skip
def test_what_is_no_direction_of_the_model_says_why(
    tmp_path: Path, make: Callable[[Path], str], message: str
) -> None:
    with pytest.raises(LoclinError, match=message) as error:
        read_direction(make(tmp_path), Tensors.of(tiny()))
    assert "\n" not in str(error.value)
