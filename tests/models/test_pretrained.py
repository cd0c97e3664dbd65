import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.models.pretrained import (
    context_of,
    device_of,
    read_pretrained,
    resolved,
)
from loclin.options import LoadOptions
from loclin.parameters import ParameterSpace
from loclin.studies.recovery.settings import RecoverySettings
from tests.conftest import FAMILIES


@pytest.fixture(scope="session")
def folders(
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Every family as an ordinary model folder."""
    where = tmp_path_factory.mktemp("folders")
    for name in FAMILIES:
        families[name].save_pretrained(where / name)
        tokenizers[name].save_pretrained(where / name)
    return {name: where / name for name in FAMILIES}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_read_as_it_was_saved(
    family: str, folders: dict[str, Path], families: dict[str, PreTrainedModel]
) -> None:
    model, tokenizer, _notes = read_pretrained(
        str(folders[family]), LoadOptions(model="other", device="cpu")
    )
    assert torch.equal(ParameterSpace(model).read(), ParameterSpace(families[family]).read())
    assert not model.training
    assert context_of(model) == 64
    assert tokenizer.pad_token_id is not None
    half, *_ = read_pretrained(str(folders[family]), LoadOptions(model="other", dtype="bfloat16"))
    assert half.dtype == torch.bfloat16


def test_the_end_token_serves_where_there_is_no_padding_token(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folders["llama"], tmp_path / "copy")
    file = copy / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in settings.items() if k != "pad_token"}))
    _, tokenizer, _ = read_pretrained(str(copy), LoadOptions(model="other", device="cpu"))
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"
    file.write_text(
        json.dumps({k: v for k, v in settings.items() if k not in ("pad_token", "eos_token")})
    )
    with pytest.raises(
        LoclinError, match="tokenizer with a padding or an end token, found neither in"
    ):
        read_pretrained(str(copy), LoadOptions(model="other", device="cpu"))


def broken(folder: Path, how: str) -> None:
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "pickles":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif how == "no weights":
        (folder / "model.safetensors").unlink()
    elif how == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
    elif how == "cut":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:1000])
    elif how == "other config":
        (folder / "config.json").write_text('{"model_type": "nothing-known"}')
    elif how == "own code":
        settings = json.loads((folder / "config.json").read_text())
        settings |= {
            "model_type": "mine",
            "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"},
        }
        (folder / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no config", "model folder with a config.json, found none in"),
        ("pickles", r"found pickled weights only \(pytorch_model.bin\): save the model again"),
        ("no weights", "found no weights"),
        (
            "no tokenizer",
            "expected a tokenizer in .*, found none: save it there with tokenizer.save_pretrained",
        ),
        ("cut", "expected a causal language model in .*, found SafetensorError"),
        ("other config", "expected a causal language model in .*, found ValueError"),
        ("own code", "brings code of its own: read it, then pass --trust-remote-code"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_in_one_line(
    how: str, message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folders["gpt2"], tmp_path / "copy")
    broken(copy, how)
    with pytest.raises(LoclinError, match=message) as error:
        read_pretrained(str(copy), LoadOptions(model="other", device="cpu"))
    assert "\n" not in str(error.value)


def test_what_is_neither_a_folder_nor_cached_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(
        LoclinError, match=r"found that 'distilgpt2' is none of these.*run `hf download distilgpt2`"
    ) as error:
        read_pretrained("distilgpt2", LoadOptions(model="other", device="cpu"))
    assert "\n" not in str(error.value)
    with pytest.raises(LoclinError, match="hf download distilgpt2 --revision old"):
        read_pretrained("distilgpt2", LoadOptions(model="other", revision="old"))
    with pytest.raises(LoclinError, match=r"expected a model folder, found nothing at \./nowhere"):
        read_pretrained("./nowhere", LoadOptions(model="other", device="cpu"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LoclinError, match="found the file"):
        read_pretrained(str(tmp_path / "file"), LoadOptions(model="other", device="cpu"))


def test_devices() -> None:
    assert device_of(LoadOptions(model="sequences")) == "cpu"
    assert device_of(LoadOptions(model="other", device="cpu")) == "cpu"
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(
        LoclinError, match=f"expected a device among .*cpu, found '{missing}': change --device"
    ):
        device_of(LoadOptions(model="other", device=missing))


def test_options_resolved_from_any_settings_name_a_device() -> None:
    plain = resolved(RecoverySettings(model="sequences", dtype="float64", steps=7))
    assert type(plain) is LoadOptions
    assert (plain.model, plain.dtype, plain.device) == ("sequences", "float64", "cpu")
