"""Built-in causal language models: trained once from a written recipe, then read from the cache.

A built-in model is an ordinary Hugging Face folder (safetensors, configuration, tokenizer) in the cache folder
``$LOCLIN_CACHE`` (default ``~/.cache/loclin``), under the hash of its recipe. Its checksums are verified on every load.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loclin.errors import LoclinError
from loclin.parameters import ParameterSpace
from loclin.seeds import derived
from loclin.tasks.batch import Batch, accuracy, collate, concatenate
from loclin.tasks.example import Example, split
from loclin.tasks.sequences import sequence_examples, vocabulary
from loclin.training import minibatches, train

transformers.utils.logging.disable_progress_bar()  # loclin shows its own

Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a built-in sequence model, its data and its training.

    Attributes:
        tasks: what it learns, all at once.
        length: symbols in a sequence.
        symbols: alphabet size.
        pool: distinct input sequences, divided among the splits by `shares`.
        shares: share of the inputs in each disjoint split; the model is trained on "pretrain" alone.
        width, layers, heads: the GPT-2 configuration.
        steps, batch, learning_rate: AdamW with a cosine schedule.
        reach: exact match that every task must reach on the "validate" split. While one does not, training goes on for
            half as many steps at half the learning rate, the tasks below shown three times as often, `rounds` times at most.
        version: raised when the code that reads a recipe changes its meaning.
    """

    tasks: tuple[str, ...] = ("copy", "reverse", "sort", "increment", "swap", "rotate")
    length: int = 6
    symbols: int = 16
    pool: int = 16384
    shares: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {
            "pretrain": 0.65,
            "validate": 0.04,
            "damage": 0.05,
            "recovery": 0.1,
            "gradients": 0.12,
            "test": 0.04,
        }
    )
    width: int = 64
    layers: int = 3
    heads: int = 4
    steps: int = 800
    batch: int = 128
    learning_rate: float = 4e-3
    reach: float = 0.99
    rounds: int = 5
    version: int = 1

    def hash(self, seed: int) -> str:
        """Name of the cache folder: a digest of the recipe and the seed."""
        text = json.dumps([dataclasses.asdict(self), seed], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


BUILT_IN: dict[str, Recipe] = {
    "sequences": Recipe(),
    "sequences-small": Recipe(  # without sort, which alone would take most of the training
        tasks=("copy", "reverse", "halves", "increment", "swap", "rotate"),
        length=4,
        symbols=8,
        pool=2000,
        width=32,
        layers=2,
        steps=500,
        learning_rate=7e-3,
        batch=128,
    ),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """A trained model together with the tasks that it knows.

    Attributes:
        model: in evaluation mode, float32.
        tokenizer: its tokenizer.
        recipe: what it was made from.
        examples: for every split, every task's examples; no input sequence is in two splits.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe
    examples: Mapping[str, Mapping[str, tuple[Example, ...]]]
    _batches: dict[tuple[str, str], Batch] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def batch(self, name: str, task: str) -> Batch:
        """One task's examples of one split as tensors on the model's device, made once."""
        if (name, task) not in self._batches:
            self._batches[name, task] = self.collate(self.examples[name][task])
        return self._batches[name, task]

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as tensors on the model's device."""
        return collate(examples, self.tokenizer).to(self.model.device)


def cache_folder() -> Path:
    """Where built-in models are kept: $LOCLIN_CACHE, or ~/.cache/loclin."""
    return Path(os.environ.get("LOCLIN_CACHE") or Path.home() / ".cache" / "loclin")


def load(name: str, *, seed: int = 0, device: str = "cpu", progress: Progress | None = None) -> Problem:
    """A built-in model, trained on first use.

    Args:
        name: "sequences" or "sequences-small".
        seed: of its data, initialisation and training; another seed is an independent model.
        device: where to put it. Training always runs on the CPU, so that the cached weights do not depend on it.
        progress: called with a description and the share done while it trains.

    Raises:
        LoclinError: unknown name, or training that misses the recipe's exact match.
    """
    if name not in BUILT_IN:
        raise LoclinError(f"unknown model {name!r}: expected one of {', '.join(BUILT_IN)}")
    recipe = BUILT_IN[name]
    folder = cache_folder() / f"{name}-{recipe.hash(seed)}"
    if not _intact(folder):
        _train_into(folder, recipe, seed, progress or (lambda text, share: None))
    model, tokenizer = _read(folder)
    model.to(device)
    return Problem(model=model, tokenizer=tokenizer, recipe=recipe, examples=_examples(recipe, seed))


def _examples(recipe: Recipe, seed: int) -> dict[str, dict[str, tuple[Example, ...]]]:
    posed = sequence_examples(
        recipe.tasks, recipe.pool, length=recipe.length, symbols=recipe.symbols, seed=derived(seed, "inputs")
    )
    parts = {task: split(examples, recipe.shares, seed=seed) for task, examples in posed.items()}
    return {name: {task: part[name] for task, part in parts.items()} for name in recipe.shares}


def _read(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="sdpa", use_safetensors=True)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(folder)


@contextmanager
def twice_differentiable(model: PreTrainedModel) -> Iterator[None]:
    """Eager attention inside, the model's own afterwards: fused attention kernels have no double backward (measures §8)."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.iterdir() if p.name != "checksums.json")
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _intact(folder: Path) -> bool:
    """Whether the folder holds what was written there; a damaged one is said to be so and trained anew."""
    if not folder.exists():
        return False
    try:
        if json.loads((folder / "checksums.json").read_text()) == _checksums(folder):
            return True
    except (OSError, ValueError):
        pass
    print(f"the cached model in {folder} is damaged: training it again", flush=True)
    return False


def _train_into(folder: Path, recipe: Recipe, seed: int, progress: Progress) -> None:
    """Train and move into place whole, so that an interrupted training leaves nothing that looks finished."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
        made = Path(scratch) / "model"
        problem = _trained(recipe, seed, progress)
        problem.model.save_pretrained(made)
        problem.tokenizer.save_pretrained(made)
        (made / "checksums.json").write_text(json.dumps(_checksums(made)))
        shutil.rmtree(folder, ignore_errors=True)
        try:
            made.rename(folder)
        except OSError:  # another process finished the same model first
            if not _intact(folder):
                raise


def _trained(recipe: Recipe, seed: int, progress: Progress) -> Problem:
    words = vocabulary(recipe.symbols)
    tokenizer = _word_tokenizer(words)
    model = _initial_model(recipe, len(words), tokenizer.pad_token_id, seed=derived(seed, "initialisation"))
    problem = Problem(model=model, tokenizer=tokenizer, recipe=recipe, examples=_examples(recipe, seed))
    data = {task: problem.batch("pretrain", task) for task in recipe.tasks}
    checks = {task: problem.batch("validate", task) for task in recipe.tasks}
    space = ParameterSpace(model)
    below: list[str] = []
    for attempt in range(recipe.rounds):
        shown = concatenate([*data.values(), *(data[task] for task in below for _ in range(2))])
        batches = minibatches(shown, recipe.batch, seed=derived(seed, "pretraining", attempt))
        steps = recipe.steps // 2 if attempt else recipe.steps
        optimiser = torch.optim.AdamW(space.parameters, lr=recipe.learning_rate / (2 if attempt else 1))
        schedule = partial(_warm_cosine, steps=steps)
        watch = partial(_report_step, progress=progress, steps=steps)
        train(model, space, batches, optimiser, steps, schedule=schedule, after_step=watch)
        scores = {task: accuracy(model, check) for task, check in checks.items()}
        below = [task for task, score in scores.items() if score < recipe.reach]
        if not below:
            return problem
    worst = min(scores, key=lambda task: scores[task])
    raise LoclinError(
        f"expected exact match of {recipe.reach} on every task after training, found {scores[worst]:.3f} on {worst}: "
        "use another seed"
    )


def _warm_cosine(step: int, *, steps: int) -> float:
    return min((step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / steps)))


def _report_step(t: int, *, progress: Progress, steps: int) -> None:
    progress("training the model", t / steps)


def _word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")


def _initial_model(recipe: Recipe, words: int, pad: int, *, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 with weights N(0, 1/width) by the space's own seeded noise, no global seed.

    The 0.02 of GPT-2 is made for width 768; at width 64 the tasks then wait hundreds of steps on a plateau.
    """
    config = GPT2Config(
        vocab_size=words,
        n_positions=2 * recipe.length + 2,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=pad,
        attn_implementation="sdpa",
    )
    model = GPT2LMHeadModel(config).eval()
    space = ParameterSpace(model)
    start, noise = space.by_tensor(space.read()), space.by_tensor(space.noise(seed=seed))
    matrices = {n: noise[n] / math.sqrt(recipe.width) if v.ndim > 1 else v for n, v in start.items()}
    space.write(torch.cat([v.reshape(-1) for v in matrices.values()]))
    return model
