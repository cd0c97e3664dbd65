"""Models are built once per session: the built-in ones in a cache folder of the session's own, and
small random ones of other families with small tokenizers of the kinds in use."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as pieces
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from loclin import models
from loclin.models import Problem

torch.set_num_threads(int(os.environ.get("LOCLIN_TEST_THREADS", "1")))


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_heeded() -> Iterator[None]:
    """A script that starts the tests in the background has them, and every process that they start,
    ignore Ctrl-C.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for all processes that tests run in side by side: a model is made once."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    folder.mkdir(exist_ok=True)
    before = os.environ.get("LOCLIN_CACHE")
    os.environ["LOCLIN_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["LOCLIN_CACHE"]
    else:
        os.environ["LOCLIN_CACHE"] = before


@pytest.fixture(scope="session")
def trained() -> Problem:
    """The small sequence model. Tests that move its weights do so inside `space.restored()`."""
    return models.load("sequences-small", seed=0)


@pytest.fixture(scope="session")
def speaking() -> Problem:
    """The small statement model. Tests that move its weights do so inside `space.restored()`."""
    return models.load("statements-small", seed=0)


FAMILIES = ("gpt2", "llama", "qwen2", "gemma")
TEXT = [
    "the cat sat on the mat and the dog ran after it",
    "do cats purr? yes, they do. (A) or (B), no one knows",
]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that this process loads."""
    names: list[str] = []
    plain = AutoModelForCausalLM.from_pretrained

    def counted(name: str, *rest: Any, **more: Any) -> Any:
        names.append(name)
        return plain(name, *rest, **more)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    return names


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    """Byte-level pairs: without special tokens (qwen2), with a beginning that is added (llama,
    gemma) or not (gpt2).
    """
    return {
        "gpt2": _pairs(beginning=True, added=False),
        "llama": _pairs(beginning=True, added=True),
        "qwen2": _pairs(beginning=False, added=False),
        "gemma": _pairs(beginning=True, added=True),
    }


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerBase:
    """A word-level tokenizer, which reads every word that it does not know as padding."""
    known = ["<pad>", "<unk>", *sorted({word for text in TEXT for word in text.split()})]
    core = Tokenizer(pieces.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>")


@pytest.fixture(scope="session")
def families(tokenizers: dict[str, PreTrainedTokenizerBase]) -> dict[str, PreTrainedModel]:
    """Random weights, wide enough apart that no two tokens are equally likely."""
    return {name: random_model(name, len(tokenizers[name])) for name in FAMILIES}


def random_model(family: str, vocabulary: int) -> PreTrainedModel:
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": vocabulary,
    }
    wide = shape | {
        "intermediate_size": 48,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    ends = {"bos_token_id": None, "eos_token_id": None}
    configs: dict[str, PretrainedConfig] = {
        "gpt2": GPT2Config(**shape, **ends, n_positions=64, pad_token_id=0),
        "llama": LlamaConfig(**wide, **ends),
        "qwen2": Qwen2Config(**wide, **ends),
        "gemma": GemmaConfig(**wide, **ends, head_dim=8),
    }
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        model = AutoModelForCausalLM.from_config(configs[family]).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
    return model


def _pairs(*, beginning: bool, added: bool) -> PreTrainedTokenizerBase:
    core = Tokenizer(pieces.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"] if beginning else ["<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if added:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    named = {"bos_token": "<s>", "eos_token": "</s>"} if beginning else {}
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", **named)
