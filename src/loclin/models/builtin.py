"""Built-in causal language models: made once from a written recipe, then read from the cache.

Each is an ordinary Hugging Face folder under the hash of its recipe.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from loclin.errors import LoclinError
from loclin.models.cache import kept
from loclin.models.problem import Problem
from loclin.parameters import ParameterSpace
from loclin.progress import ProgressCallback
from loclin.seeds import derived
from loclin.tasks.batch import concatenate, language_and_answer_loss, mean_answer_loss
from loclin.tasks.data import TaskData, grouped_splits
from loclin.tasks.sequences import SequenceTasks
from loclin.tasks.statements import Statements
from loclin.training import minibatches, train


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a built-in model, its data and its training.

    Attributes:
        data: what it learns, all of it at once.
        shares: of the groups in each split; the model is trained on "train" alone.
        width, layers, heads: the GPT-2 configuration.
        steps, batch, learning_rate: AdamW with a cosine schedule.
        language: weight of the language loss on every token beside the loss on the answers.
        reach: score that every task must reach on "validate". While one does not, training goes on
            for half as many steps at half the learning rate, the tasks below shown three times as
            often, `rounds` times at most.
        hard: tasks shown three times as often from the beginning.
        version: raised when the code that reads a recipe changes its meaning.
    """

    data: SequenceTasks | Statements
    shares: Mapping[str, float]
    width: int = 64
    layers: int = 3
    heads: int = 4
    steps: int = 720
    batch: int = 128
    learning_rate: float = 4e-3
    language: float = 0.0
    reach: float = 0.99
    rounds: int = 5
    hard: tuple[str, ...] = ()
    version: int = 2

    def hash(self, seed: int) -> str:
        """Name of the cache folder: a digest of the recipe and the seed."""
        text = json.dumps([dataclasses.asdict(self), seed], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


_SPLITS = ("train", "validate", "damage", "recovery", "gradients", "test")
_SEQUENCE_SHARES = dict(zip(_SPLITS, (0.66, 0.04, 0.05, 0.1, 0.12, 0.03), strict=True))
_STATEMENT_SHARES = dict(zip(_SPLITS, (0.4, 0.04, 0.12, 0.14, 0.2, 0.1), strict=True))

BUILT_IN: dict[str, Recipe] = {
    "sequences": Recipe(data=SequenceTasks(), shares=_SEQUENCE_SHARES, hard=("sort",)),
    "sequences-small": Recipe(
        data=SequenceTasks.small(),
        shares=_SEQUENCE_SHARES,
        width=32,
        layers=2,
        steps=500,
        learning_rate=7e-3,
    ),
    "statements": Recipe(
        data=Statements(),
        shares=_STATEMENT_SHARES,
        width=96,
        layers=4,
        steps=1000,
        batch=64,
        learning_rate=4e-3,
        language=0.3,
        reach=0.85,
    ),
    "statements-small": Recipe(
        data=Statements(subjects=12, relations=("colour", "town")),
        shares=_STATEMENT_SHARES,
        width=48,
        layers=2,
        steps=500,
        learning_rate=4e-3,
        language=0.3,
        reach=0.9,
    ),
}


def built_in_folder(name: str, *, seed: int, progress: ProgressCallback) -> Path:
    """The folder of a built-in model, trained on first use, always on the CPU.

    Raises:
        LoclinError: training that misses the recipe's score.
    """
    recipe = BUILT_IN[name]

    def write(folder: Path) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # whatever the cores: other sums round differently
        try:
            model, tokenizer = _trained(recipe, seed, progress)
        finally:
            torch.set_num_threads(before)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return kept(f"{name}-{recipe.hash(seed)}", write)


def built_in_examples(recipe: Recipe, seed: int) -> TaskData:
    """Everything that a built-in model can be asked."""
    return recipe.data.examples(seed=derived(seed, "inputs"))


def _trained(
    recipe: Recipe, seed: int, progress: ProgressCallback
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    tokenizer = _word_tokenizer(recipe.data.words())
    model = _initial_model(
        recipe, len(tokenizer), tokenizer.pad_token_id, seed=derived(seed, "initialisation")
    )
    train_data = recipe.data.train_examples(seed=derived(seed, "inputs"))
    parts = grouped_splits(built_in_examples(recipe, seed), recipe.shares, seed=seed)
    taught = grouped_splits(train_data, recipe.shares, seed=seed)["train"]
    problem = Problem(model=model, tokenizer=tokenizer, examples={**parts, "train": taught})
    data = {task: problem.batch("train", task) for task in problem.tasks}
    space, below = ParameterSpace(model), list(recipe.hard)

    loss = mean_answer_loss
    if recipe.language:
        loss = partial(language_and_answer_loss, language=recipe.language)
    for attempt in range(recipe.rounds):
        shown = concatenate([*data.values(), *(data[task] for task in below for _ in range(2))])
        batches = minibatches(shown, recipe.batch, seed=derived(seed, "pretraining", attempt))
        steps = recipe.steps // 2 if attempt else recipe.steps
        rate = recipe.learning_rate / (2 if attempt else 1)
        optimiser = torch.optim.AdamW(space.parameters, lr=rate, fused=True)
        schedule = partial(_warm_cosine, steps=steps)
        watch = partial(_report_step, progress=progress, steps=steps)
        train(
            model, space, batches, optimiser, steps, loss=loss, schedule=schedule, after_step=watch
        )
        scores = {task: problem.score("validate", task) for task in problem.tasks}
        below = [task for task, score in scores.items() if score < recipe.reach]
        if not below:
            return model, tokenizer
    worst = min(scores, key=lambda task: scores[task])
    raise LoclinError(
        f"expected a score of {recipe.reach} on every task after training, found "
        f"{scores[worst]:.3f} on {worst}: use another seed"
    )


def _warm_cosine(step: int, *, steps: int) -> float:
    return min((step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / steps)))


def _report_step(t: int, *, progress: ProgressCallback, steps: int) -> None:
    progress("training the model", t / steps)


def _word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")


def _initial_model(recipe: Recipe, words: int, pad: int, *, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 with weights N(0, 1/width) by the space's own seeded noise.

    GPT-2's 0.02 is made for width 768: at width 64 tasks wait hundreds of steps on a plateau.
    """
    config = GPT2Config(
        vocab_size=words,
        n_positions=recipe.data.longest,
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
    matrices = {
        n: noise[n] / math.sqrt(recipe.width) if v.ndim > 1 else v for n, v in start.items()
    }
    space.write(torch.cat([v.reshape(-1) for v in matrices.values()]))
    return model
