"""What steering costs: reading activations, making a vector, generating with it.

    python benchmarks/steering.py [--only PART] [--model FOLDER] [--device cuda] [--out FILE]

On the built-in statements model (4 layers, width 96, prompts of about a dozen tokens) and on a
GPT-2 configuration of 8 layers, width 256 and 4,096 words with random weights (prompts of 64
tokens). Medians over pairs measured in turn, with the range of the pairs' middle half:

1. prompts in a second when the outputs of all layers at the last token are read, over those of a
   plain forward pass on the same batches: time of the plain pass over time of the reading, larger
   is better (aim: at least 0.95). Both compute the vocabulary layer at one place only, so that
   nothing is gained there;
2. the usual way for comparison, as that ratio: every hidden state and all logits of a pass are
   kept, and the last token of each row is picked from them; prompts one at a time, and 32 at a time
   in the order in which they come;
3. the time of a vector from labels, and of one from a gradient step, in forward passes over the
   same prompts;
4. tokens in a second when a vector is added at one layer, or at all of them, over those without:
   time without over time with, larger is better (aim: at least 0.97 at one layer); greedy, with a
   cache, one prompt and 16.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from side_by_side import compare, report, seconds
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as vocabularies
from transformers import (
    AutoModelForCausalLM,
    BatchEncoding,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from loclin import models
from loclin.activations.adding import added
from loclin.activations.blocks import blocks, width
from loclin.activations.capture import activations
from loclin.activations.suffix import resumable
from loclin.models import Problem
from loclin.models.pretrained import read_pretrained
from loclin.options import LoadOptions
from loclin.parameters import ParameterSpace
from loclin.steering import from_gradient, from_labels
from loclin.steering.compare import shares_of
from loclin.steering.effect import adding, responses
from loclin.steering.gradient import step_direction
from loclin.steering.null import RandomSteps, cosines_by_law
from loclin.steering.prompts import PromptSet, pieces
from loclin.studies.steering.settings import preset
from loclin.tasks.batch import Batch, prompts_batch, vocabulary_size
from loclin.tasks.example import Example

PROMPTS = {"statements": 512, "GPT-2": 64}
#: Tokens of a generation, and how often it is made; contexts are 16 and 128 tokens.
SPOKEN = {"statements": (4, 12), "GPT-2": (48, 1)}
ROWS, ROW, WORDS = 32, 64, 4096
STATEMENT = 24  # tokens of a statement


def gpt2() -> Problem:
    """The larger model, with random words as prompts and yes or no as answers."""
    said = ["<pad>", "yes", "no", *(f"w{i}" for i in range(WORDS - 3))]
    core = Tokenizer(vocabularies.WordLevel({w: i for i, w in enumerate(said)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    config = GPT2Config(
        n_layer=8,
        n_embd=256,
        n_head=8,
        n_positions=2 * ROW,
        vocab_size=WORDS,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    drawn = np.random.default_rng(0).choice(said[3:], (PROMPTS["GPT-2"], ROW))
    examples = tuple(
        Example(prompt=" ".join(row), answer=answer, options=(" yes", " no"), group=str(i))
        for i, row in enumerate(drawn)
        for answer in [(" yes", " no")[i % 2]]
    )
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
    return Problem(model=model, tokenizer=tokenizer, examples={"recovery": {"random": examples}})


def both() -> list[tuple[str, Problem, list[Example]]]:
    found = []
    for name, problem in (("statements", models.load("statements")), ("GPT-2", gpt2())):
        every = [e for examples in problem.examples["recovery"].values() for e in examples]
        found.append((name, problem, every[: PROMPTS[name]]))
    return found


def prompts(problem: Problem, examples: list[Example]) -> Batch:
    """The longest first: chunks are then those that `activations` takes."""
    batch = prompts_batch([e.prompt for e in examples], problem.tokenizer)
    return batch.rows(batch.attention_mask.sum(1).argsort(descending=True, stable=True))


def described(name: str, batch: Batch) -> str:
    lengths = batch.attention_mask.sum(1)
    return f"{name}, {len(batch)} prompts of {int(lengths.min())} to {int(lengths.max())} tokens"


@torch.no_grad()
def passes(problem: Problem, batch: Batch) -> None:
    for chunk in batch.chunks(ROWS):
        problem.model(
            input_ids=chunk.input_ids,
            attention_mask=chunk.attention_mask,
            use_cache=False,
            logits_to_keep=1,
        )


def reading() -> list[str]:
    lines = []
    for name, problem, examples in both():
        batch = prompts(problem, examples)
        read = partial(activations, problem.model, batch, rows_at_once=ROWS)
        took, found = compare(partial(passes, problem, batch), read, 15)
        lines.append(
            f"| {described(name, batch)}: plain pass, {ROWS} at a time | reading all layers, "
            f"{len(batch) / took:.0f} prompts in a "
            f"second | {found} | ≥ 0.95 |"
        )
    return lines


def usual() -> list[str]:
    lines = []
    for name, problem, examples in both():
        batch = prompts(problem, examples)
        come = prompts_batch([e.prompt for e in examples], problem.tokenizer)
        for rows in (1, ROWS):
            took, found = compare(
                partial(passes, problem, batch), partial(kept, problem, come, rows), 5
            )
            lines.append(
                f"| {described(name, batch)}: plain pass, {ROWS} at a time | the usual way, {rows} "
                "at a time, "
                f"{len(batch) / took:.0f} prompts in a second | {found} | |"
            )
    return lines


@torch.no_grad()
def kept(problem: Problem, batch: Batch, rows: int) -> torch.Tensor:
    """As it is written elsewhere: hidden states of every token are kept."""
    read = []
    for chunk in batch.chunks(rows):
        said = problem.model(
            input_ids=chunk.input_ids,
            attention_mask=chunk.attention_mask,
            output_hidden_states=True,
        )
        last = chunk.attention_mask.sum(1) - 1
        read.append(torch.stack(said.hidden_states[1:])[:, torch.arange(len(chunk)), last])
    return torch.cat(read, dim=1)


def making() -> list[str]:
    lines = []
    for name, problem, examples in both():
        batch = prompts(problem, examples)
        for route, make in (("from labels", from_labels), ("from a gradient step", from_gradient)):
            work = partial(make, problem.model, problem.tokenizer, examples)
            took, found = compare(work, partial(passes, problem, batch), 7)
            lines.append(
                f"| {described(name, batch)}: vector {route}, all layers | a forward pass over "
                f"them, {took * 1000:.0f} ms | {found} | |"
            )
    return lines


def speaking() -> list[str]:
    lines = []
    for name, problem, examples in both():
        (tokens, times), count = SPOKEN[name], len(blocks(problem.model))
        v = torch.ones(width(problem.model)) / 100
        for rows in (1, 16):
            texts = [e.prompt for e in examples[:rows]]
            batch = problem.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
            plain = partial(generated, problem, batch, tokens, times)
            for how, layers in (
                ("at one layer", [count // 2]),
                (f"at all {count} layers", list(range(count))),
            ):
                took, found = compare(
                    plain, partial(steered, problem, dict.fromkeys(layers, v), plain), 15
                )
                lines.append(
                    f"| {name}, {tokens} tokens after {rows} prompts: without a vector | with one "
                    f"{how}, "
                    f"{times * rows * tokens / took:.0f} tokens in a second | {found} | "
                    f"{'≥ 0.97' if len(layers) == 1 else ''} |"
                )
    return lines


def steered(problem: Problem, vectors: dict[int, torch.Tensor], work: Callable[[], None]) -> None:
    with added(problem.model, vectors):
        work()


@torch.no_grad()
def generated(problem: Problem, batch: BatchEncoding, tokens: int, times: int) -> None:
    for _ in range(times):
        problem.model.generate(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )


def subject(asked: Namespace) -> PreTrainedModel:
    """The model of `--model`; without one the GPT-2 configuration, or on a GPU that of Qwen2.5-0.5B
    with random weights.
    """
    if asked.model:
        options = LoadOptions(model=asked.model, data=("self",), device=asked.device)
        return read_pretrained(asked.model, options)[0]
    if asked.device == "cpu":
        return gpt2().model
    sizes = {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14}
    wide = {"intermediate_size": 4864, "num_key_value_heads": 2, "vocab_size": 151936}
    with torch.device(asked.device):
        model = AutoModelForCausalLM.from_config(Qwen2Config(**sizes, **wide))
    return model.eval()


def posed(model: PreTrainedModel, count: int, length: int = 24) -> PromptSet:
    """Prompts of random tokens, every second of which is answered by the first of two tokens."""
    random, size = torch.Generator().manual_seed(0), vocabulary_size(model)
    ids = torch.randint(3, size, (count, length), generator=random)
    whole = Batch(
        input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.full_like(ids, -100)
    )
    right = np.arange(count) % 2 == 0
    gold = torch.from_numpy(np.where(right, 1, 2))
    return PromptSet(
        batch=whole,
        toward=torch.ones_like(gold),
        away=torch.full_like(gold, 2),
        labels=right,
        gold=gold,
        groups=tuple(map(str, range(count))),
        examples=tuple(Example(prompt=" ", answer=" yes") for _ in range(count)),
        form="class",
        positive=" yes",
    ).to(model.device)


@contextmanager
def without_first(model: PreTrainedModel, count: int) -> Iterator[None]:
    """Inside, the model has the blocks after the first `count` alone."""
    layers = blocks(model)
    owner, name = next(
        (m, n) for m in model.modules() for n, child in m.named_children() if child is layers
    )
    setattr(owner, name, layers[count:])
    try:
        yield
    finally:
        setattr(owner, name, layers)


@torch.no_grad()
def plain(model: PreTrainedModel, prompts: PromptSet) -> None:
    """Forward passes over the rows that one measurement takes together, the last token's logits."""
    for rows in pieces(model, prompts.batch):
        chunk = prompts.batch.rows(rows.to(model.device))
        inputs = {"input_ids": chunk.input_ids, "attention_mask": chunk.attention_mask}
        model(**inputs, use_cache=False, logits_to_keep=1)


def suffix(asked: Namespace) -> list[str]:
    """Responses, over one whole pass and as many passes of the blocks after the one added to."""
    model, strengths, lines = subject(asked), (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0), []
    prompts, count = posed(model, 16), len(blocks(model))
    name, v = model.config.name_or_path or type(model).__name__, torch.ones(width(model)) / 100
    resumable(model)
    for layer in (count // 6, count // 2, 5 * count // 6):

        def needed(layer: int = layer) -> None:
            plain(model, prompts)
            with without_first(model, layer + 1):
                for _ in range(len(strengths) - 1):
                    plain(model, prompts)

        change = {"v": adding(model, {layer: v})}
        took, found = compare(partial(responses, model, prompts, change, strengths), needed, 3)
        lines.append(
            f"| {Path(name).name}: responses at 6 strengths, block {layer} of {count}, 16 prompts "
            f"of 24 tokens | a whole pass and 6 of the {count - layer - 1} blocks after it, "
            f"{took:.2f} s | {found} | ≤ 1.15 |"
        )
    return lines


def null(asked: Namespace) -> list[str]:
    """The null of the cosine by its law, over a backward pass a block and 24 forward passes."""
    model = subject(asked)
    prompts, count = posed(model, 16), len(blocks(model))
    layers, space = tuple(range(count // 10, count, max(1, count // 5))), ParameterSpace(model)
    toward = step_direction(model, space, prompts, loss="fixed")
    at = {"estimand": "E1", "eta": 1e-3, "path": None, "seed": 0, "layers": layers}
    shares = shares_of(space, toward)
    steps = RandomSteps(model=model, space=space, shares=shares, read=prompts, **at)  # type: ignore[arg-type]
    against = torch.randn(len(layers), width(model), generator=torch.Generator().manual_seed(1))

    def needed() -> None:
        for _ in layers:
            step_direction(model, space, prompts, loss="fixed")
        for _ in range(24):
            plain(model, prompts)

    law = partial(cosines_by_law, steps, against, progress=lambda _share: None)
    step_direction(model, space, prompts, loss="fixed")
    by_law, took = seconds(law), seconds(needed)  # one pair: minutes on a CPU
    return [
        f"| {Path(model.config.name_or_path or 'random').name}: null of the cosine at "
        f"{len(layers)} blocks of {count}, 16 prompts | {len(layers)} backward passes and 24 "
        f"forward, {took:.1f} s | {by_law / took:.2f} | ≤ 1.15 |"
    ]


def whole(asked: Namespace) -> list[str]:
    """`loclin steer` from labels on a model folder, over the time of the block-passes it needs."""
    if not asked.model:
        return []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "statements.jsonl"
        data.write_text("\n".join(map(json.dumps, statements(1500))), encoding="utf-8")
        words = [sys.executable, "-m", "loclin", "steer", "--model", asked.model]
        more = ["--data", str(data), "--device", asked.device, "--out", str(Path(folder) / "run")]
        took = seconds(
            partial(subprocess.run, [*words, *more], check=True, stdout=subprocess.DEVNULL)
        )
        rows = json.loads(next(Path(folder).glob("run/*/results.json")).read_text())["rows"]
        layer = next(int(r["value"]) for r in rows if r["quantity"] == "chosen_layer")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    model, settings = subject(asked), preset(asked.model)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    count, after = len(blocks(model)), len(blocks(model)) - 1 - layer
    near = sum(0 < abs(s) <= 1 for s in settings.strengths)
    by_prompt = {
        settings.labels: count,
        settings.choose: count + count * (count - 1),  # both signs at every block
        settings.test: count + (len(settings.strengths) + near * settings.band) * after,
    }
    prompts = posed(model, 64, STATEMENT)
    plain(model, prompts)
    each = min(seconds(partial(plain, model, prompts)) for _ in range(3)) / 64 / count
    needed = each * sum(n * passes for n, passes in by_prompt.items())
    weights = sum(p.nbytes for p in model.parameters()) / 2**30
    return [
        f"| {Path(asked.model).name}: `loclin steer` from labels, defaults, 1,500 statements, "
        f"{took:.0f} s, {peak:.2f} GB ({weights:.2f} of weights) | the block-passes of labels, "
        f"choice and test, {needed:.0f} s | {took / needed:.2f} | ≤ 1.25, 600 s, 2.8 GB |"
    ]


def statements(count: int) -> list[dict[str, object]]:
    """Sums that are right or wrong, of about as many tokens as `STATEMENT` says."""
    rng, made = np.random.default_rng(0), []
    for i in range(count):
        a, b = rng.integers(2, 90, 2)
        claimed = a + b + (i % 2) * rng.integers(1, 9)
        prompt = f"Statement: the sum of {a} and {b} is {claimed}. Is this statement true? Answer:"
        options = [" yes", " no"]
        made.append({"prompt": prompt, "options": options, "label": i % 2, "group": f"{a}+{b}"})
    return made


if __name__ == "__main__":
    report(__doc__, reading, usual, making, speaking, suffix, null, whole)
