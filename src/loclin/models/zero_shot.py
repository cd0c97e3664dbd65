"""What a model knows before anything is done to it (measures §16)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from loclin.models.evaluation import EvalSet
from loclin.models.problem import Problem
from loclin.progress import ProgressCallback, silent
from loclin.seeds import derived
from loclin.stats import Estimate, over_examples
from loclin.tasks.choices import collate_choices, largest, option_log_probabilities
from loclin.tasks.example import Example

MOST = 64  # examples of a task that are asked


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """One task, asked of the model as it is.

    Attributes:
        score: share answered right, over groups of examples.
        guessing: score of a uniform guess.
        blind: best score without reading: of guessing, or of always the commonest answer.
        known: whether the score is clearly above that, and its interval too.
        auc: area under the curve of an option's log-odds against the other options, right ones
            against wrong ones: what the model tells apart, whichever answer it prefers. None for
            free answers.
        mass: mean probability of all options together, the same.
    """

    task: str
    score: Estimate
    guessing: float
    blind: float
    known: bool
    auc: float | None = None
    mass: float | None = None


def zero_shot(
    problem: Problem, *, split: str = "train", seed: int, progress: ProgressCallback = silent
) -> list[ZeroShot]:
    """Every task, on at most 64 examples of a split, drawn by `seed`; not of one that is reported
    on later, where something is chosen by it.
    """
    found = []
    for done, task in enumerate(problem.tasks):
        progress("asking what the model knows", done / len(problem.tasks))
        found.append(_asked(problem, task, split, seed))
    return found


@torch.no_grad()
def _asked(problem: Problem, task: str, split: str, seed: int) -> ZeroShot:
    every = problem.examples[split][task]
    drawn = random.Random(derived(seed, "zero shot", task)).sample(every, min(MOST, len(every)))
    auc = mass = None
    if problem.has_options(task):
        choices = collate_choices(drawn, problem.tokenizer).to(problem.model.device)
        scores = option_log_probabilities(problem.model, choices)
        right = largest(scores, choices.gold[:, None])
        mass = float(scores.exp().sum(1).mean())
        auc = separated(drawn, scores.double().cpu().numpy())
    else:
        right = EvalSet.of(problem, drawn).answers()[1]
    groups = [e.group or e.prompt for e in drawn]
    score = over_examples(right.double().cpu().numpy(), groups=groups, seed=seed)
    blind = problem.without_reading(task)
    return ZeroShot(
        task=task,
        score=score,
        guessing=problem.chance(task),
        blind=blind,
        known=score.value >= problem.known_from(task) and score.low > blind,
        auc=auc,
        mass=mass,
    )


def separated(examples: Sequence[Example], scores: Float[np.ndarray, "n most"]) -> float | None:
    """Area under the curve of log p(option) − log p(all others together).

    Where all examples have the same options: of each option, examples in which it is right against
    those in which it is wrong, then the mean over options; a preference for one of them does not
    count. Else: right options of all examples against wrong ones. None where nothing is right or
    nothing wrong.

    >>> yes, no = (Example(prompt="", answer=a, options=("yes", "no")) for a in ("yes", "no"))
    >>> separated([yes, no], np.log([[0.9, 0.1], [0.8, 0.2]]))  # says yes to both
    1.0
    """
    p = np.exp(scores - scores.max(1, keepdims=True))
    with np.errstate(divide="ignore"):
        odds = np.log(p) - np.log(p.sum(1, keepdims=True) - p)
    there = np.isfinite(scores)
    options = [(*e.options, *[""] * (odds.shape[1] - len(e.options))) for e in examples]
    right = np.array(
        [[o == e.answer for o in row] for e, row in zip(examples, options, strict=True)]
    )
    if len({e.options for e in examples}) > 1:
        return _area(odds[there], right[there])
    areas = [_area(odds[:, i], right[:, i]) for i in range(odds.shape[1])]
    defined = [area for area in areas if area is not None]
    return float(np.mean(defined)) if defined else None


def _area(values: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> float | None:
    """How often a right one is above a wrong one, ties counting half (Mann and Whitney 1947)."""
    count, wrong = int(right.sum()), int((~right).sum())
    if not count or not wrong:
        return None
    return float((rankdata(values)[right].sum() - count * (count + 1) / 2) / (count * wrong))


def best_phrasing(problem: Problem, *, split: str = "validate") -> Problem:
    """The same with one phrasing of each task, the one with the highest score on a split, the first
    of equal ones; a note says which.
    """
    chosen: dict[str, str] = {}
    notes = []
    for task in problem.tasks:
        by_phrasing: dict[str, list[Example]] = {}
        for e in problem.examples[split][task]:
            by_phrasing.setdefault(e.phrasing, []).append(e)
        trial = replace(problem, examples={p: {task: tuple(es)} for p, es in by_phrasing.items()})
        scores = {phrasing: trial.score(phrasing, task) for phrasing in by_phrasing}
        chosen[task] = max(scores, key=lambda phrasing: scores[phrasing])
        others = ", ".join(f"{s:.2f}" for p, s in scores.items() if p != chosen[task])
        notes.append(f"{task}: {chosen[task]!r} ({scores[chosen[task]]:.2f}; others {others})")
    examples = {
        name: {t: tuple(e for e in es if e.phrasing == chosen[t]) for t, es in part.items()}
        for name, part in problem.examples.items()
    }
    note = f"phrasings chosen by their score on the {split} split: {'; '.join(notes)}"
    return replace(problem, examples=examples, notes=(*problem.notes, note))
