"""What steering costs: reading activations, making a vector, generating with it.

    python benchmarks/steering.py [--only reading|usual|making|speaking] [--out FILE]

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

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from side_by_side import compare, report
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as pieces
from transformers import BatchEncoding, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from loclin import models
from loclin.activations.adding import added
from loclin.activations.blocks import blocks, width
from loclin.activations.capture import activations
from loclin.models import Problem
from loclin.steering import from_gradient, from_labels
from loclin.tasks.batch import Batch, prompts_batch
from loclin.tasks.example import Example

PROMPTS = {"statements": 512, "GPT-2": 64}
#: Tokens of a generation, and how often it is made; contexts are 16 and 128 tokens.
SPOKEN = {"statements": (4, 12), "GPT-2": (48, 1)}
ROWS, ROW, WORDS = 32, 64, 4096


def gpt2() -> Problem:
    """The larger model, with random words as prompts and yes or no as answers."""
    said = ["<pad>", "yes", "no", *(f"w{i}" for i in range(WORDS - 3))]
    core = Tokenizer(pieces.WordLevel({w: i for i, w in enumerate(said)}, unk_token="<pad>"))
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


if __name__ == "__main__":
    report(__doc__, reading, usual, making, speaking)
