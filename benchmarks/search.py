"""What a candidate of a random search costs beyond the forward passes that score it.

    python benchmarks/search.py [--only gaussian|threads|usual|thin|statements|shares|workers]
    [--out FILE]

On a GPT-2 configuration of 6 layers, width 384 and 4,096 words (12.3 million weights, all searched)
with random weights, and on the built-in statements model. Rows have 64 tokens (12 on the statements
model), of which 4 (1) are the answer. Each ratio is the time of a candidate, which is to draw its
noise, write the weights, score, and its share of writing the base back, over the model's plain
forward pass on the same rows; median over pairs measured in turn, with the range of the pairs'
middle half:

1. Gaussian noise on all weights, at 256 to 16,384 tokens (aims: at most 1.5 at 256 and 1.05 at
   4,096), with one thread and two; 2. the usual ways, for comparison: a deep copy that is changed;
   noise from one global seed, added and subtracted again; a matrix that holds the noise of the
   whole population, with a copy of the base;
3. low-rank noise and LoRA (aim: at most 1.1 at 256), and the same on the statements model;
4. where the time of a Gaussian candidate goes;
5. candidates in a second by one and two worker processes, and by Ray with one and two workers,
where Ray is there.

Beside each of 1 to 3 stands how far the process grew at most while it worked (Linux alone).
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from curvature import growth
from side_by_side import compare, report, seconds
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as pieces
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from loclin import models
from loclin.models import Problem
from loclin.models.evaluation import EvalSet
from loclin.models.lora import Lora, attach
from loclin.options import LoadOptions
from loclin.parameters import ParameterSpace
from loclin.run.dispatch import Place, results
from loclin.search.candidate import Perturbed, candidates
from loclin.search.ledger import opened
from loclin.search.noise import Noise, NoiseStream
from loclin.search.scoring import score
from loclin.search.spec import SearchSpec
from loclin.tasks.batch import answer_logits
from loclin.tasks.example import Example

ROW, ANSWER, WORDS, SIGMA = 64, 4, 4096, 1e-3


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word."""
    core = Tokenizer(
        pieces.WordLevel({w: i for i, w in enumerate(["<pad>", *words()])}, unk_token="<pad>")
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")


def gpt2() -> Problem:
    """The larger model, and no examples yet."""
    config = GPT2Config(
        n_layer=6,
        n_embd=384,
        n_head=6,
        n_positions=2 * ROW,
        vocab_size=WORDS,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
        return Problem(model=model, tokenizer=word_tokenizer(), examples={})


def words() -> list[str]:
    return [f"w{i}" for i in range(WORDS - 1)]


def eval_set(problem: Problem, tokens: int) -> EvalSet:
    """Rows of random words that come to so many tokens."""
    drawn = np.random.default_rng(0).choice(words(), (tokens // ROW, ROW))
    texts = [(" ".join(row[:-ANSWER]), " ".join(row[-ANSWER:])) for row in drawn]
    return EvalSet.of(problem, [Example(prompt=p, answer=" " + a) for p, a in texts])


@torch.no_grad()
def passes(of: EvalSet, times: int) -> None:
    for _ in range(times):
        answer_logits(of.problem.model, of.batch)


def row(
    what: str, of: EvalSet, work: Callable[[], object], *, each: int, pairs: int, aim: str = ""
) -> str:
    """One line: `work` scores `each` candidates."""
    tokens = of.batch.input_ids.numel()
    against, found = compare(work, lambda: passes(of, each), pairs)
    return (
        f"| {what}, {tokens} tokens, {each} candidates, grows by {growth(work)} | {each} forward "
        f"passes, {against * 1000:.0f} ms "
        f"| {found} | {aim} |"
    )


def searched(
    name: str,
    of: EvalSet,
    noise: str,
    *,
    pattern: str = "*",
    each: int,
    pairs: int,
    aim: str = "",
) -> str:
    """A line of our own way."""
    space = ParameterSpace(of.problem.model, pattern)
    perturbed, group = Perturbed(space, Noise.parse(noise)), candidates(each, [SIGMA], seed=0)
    return row(
        f"{name}, D = {space.dimension}, {noise} noise",
        of,
        lambda: score(perturbed, of, group),
        each=each,
        pairs=pairs,
        aim=aim,
    )


def gaussian() -> list[str]:
    problem = gpt2()
    sizes = ((256, 8, 9, "≤ 1.5"), (1024, 4, 7, ""), (4096, 2, 5, "≤ 1.05"), (16384, 1, 3, ""))
    return [
        searched("GPT-2", eval_set(problem, tokens), "gaussian", each=each, pairs=pairs, aim=aim)
        for tokens, each, pairs, aim in sizes
    ]


def threads() -> list[str]:
    """The same with two threads: torch's products take both, and so do we."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        problem = gpt2()
        return [
            searched(
                "two threads: GPT-2",
                eval_set(problem, tokens),
                "gaussian",
                each=each,
                pairs=pairs,
                aim=aim,
            )
            for tokens, each, pairs, aim in ((256, 8, 9, "≤ 1.5"), (4096, 2, 5, "≤ 1.05"))
        ]
    finally:
        torch.set_num_threads(before)


def usual() -> list[str]:
    """The ways in use elsewhere, as short as they are written there."""
    problem = gpt2()
    of, model, each = eval_set(problem, 256), problem.model, 8
    base = [p.detach().clone() for p in model.parameters()]

    def copied() -> None:
        for seed in range(each):
            other = copy.deepcopy(model)
            torch.manual_seed(seed)
            for p in other.parameters():
                p.data.add_(torch.randn_like(p), alpha=SIGMA)
            with torch.no_grad():
                answer_logits(other, of.batch)

    def added() -> None:
        for seed in range(each):
            for scale in (SIGMA, -SIGMA):
                torch.manual_seed(seed)
                for p in model.parameters():
                    p.data.add_(torch.randn_like(p), alpha=scale)
                if scale > 0:
                    passes(of, 1)

    def dense() -> None:
        population = torch.randn(each, sum(p.numel() for p in base))
        for noise in population:
            pieces = noise.split([p.numel() for p in base])
            for p, b, z in zip(model.parameters(), base, pieces, strict=True):
                p.data.copy_(b).add_(z.view(b.shape), alpha=SIGMA)
            passes(of, 1)

    ways = {
        "a deep copy for each": copied,
        "added and subtracted": added,
        "a matrix of all noise": dense,
    }
    return [row(f"usual, GPT-2: {name}", of, way, each=each, pairs=5) for name, way in ways.items()]


def thin() -> list[str]:
    problem = gpt2()
    lines = [searched("GPT-2", eval_set(problem, 256), "lowrank:4", each=8, pairs=9, aim="≤ 1.1")]
    of = eval_set(adapted(problem), 256)
    lines.append(searched("GPT-2, LoRA of rank 8", of, "gaussian", each=8, pairs=9, aim="≤ 1.1"))
    return lines


def adapted(problem: Problem) -> Problem:
    return Problem(
        model=attach(problem.model, Lora(rank=8), seed=0),
        tokenizer=problem.tokenizer,
        examples=problem.examples,
    )


def statements() -> list[str]:
    problem = models.load("statements")
    lines = []
    for name, asked, noise in (
        ("statements", problem, "gaussian"),
        ("statements", problem, "lowrank:4"),
        ("statements, LoRA of rank 8", adapted(copy.deepcopy(problem)), "gaussian"),
    ):
        for tokens in (64, 256, 1024):
            examples = asked.examples["recovery"][asked.tasks[0]]
            of = EvalSet.of(asked, examples[: tokens // 12])
            lines.append(searched(name, of, noise, each=16, pairs=7))
    return lines


def shares() -> list[str]:
    """Milliseconds of every step of a Gaussian candidate, and their shares of all."""
    problem = gpt2()
    of, space = eval_set(problem, 256), ParameterSpace(problem.model)
    perturbed, (candidate,) = Perturbed(space, Noise()), candidates(1, [SIGMA], seed=0)
    stream = NoiseStream(
        Noise(), {n: tuple(p.shape) for n, p in zip(space.names, space.parameters, strict=True)}
    )
    (outcome,) = score(perturbed, of, [candidate])
    with (
        tempfile.TemporaryDirectory() as folder,
        opened(Path(folder) / "ledger.jsonl", {"examples": len(of.batch)}) as ledger,
    ):
        waiting = iter([replace(outcome, candidate=c) for c in candidates(100, [SIGMA], seed=0)])
        noise = median(lambda: [None for _ in stream.of(candidate.seed)])
        steps = {
            "noise": noise,
            "apply": median(lambda: perturbed.place(candidate)) - noise,
            "score": median(of.answers),
            "restore, once for each group": median(perturbed.restore),
            "ledger": median(lambda: ledger.append([next(waiting)])),
        }
    whole = sum(steps.values())
    return [
        f"| share of a GPT-2 candidate at 256 tokens: {name} | {took * 1000:.2f} ms | "
        f"{took / whole:.3f} | |"
        for name, took in steps.items()
    ]


def median(work: Callable[[], object], times: int = 9) -> float:
    work()
    return float(np.median([seconds(work) for _ in range(times)]))


def workers() -> list[str]:
    """Candidates in a second, the workers' start not counted."""
    problem = models.load("statements")
    examples = problem.examples["recovery"][problem.tasks[0]][:170]
    lines = []
    for name, ray in (("processes", None), ("Ray workers", "local")):
        if ray and importlib.util.find_spec("ray") is None:
            continue
        found = {}
        for count in (1, 2):
            spec = SearchSpec(
                options=LoadOptions(model="statements", device="cpu"), examples=tuple(examples)
            )
            groups = [[c] for c in candidates(120, [SIGMA], seed=0)]
            found[count] = _rate(results(spec, groups, Place(workers=count, ray=ray)))
        lines.append(
            f"| {name}, statements model, {len(examples)} examples: 2 | 1, {found[1]:.1f} "
            "candidates in a second | "
            f"{found[2] / found[1]:.2f} | |"
        )
    return lines


def _rate(outcomes) -> float:  # type: ignore[no-untyped-def]
    """From the tenth group that ends to the last."""
    ends = [time.perf_counter() for _ in outcomes]
    return (len(ends) - 10) / (ends[-1] - ends[9])


if __name__ == "__main__":
    report(__doc__, gaussian, threads, usual, thin, statements, shares, workers)
