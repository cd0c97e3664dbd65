"""Names of routes, parts and rows, and their labels: once for settings, measure, claims and page.
Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loclin.steering.estimands import Estimand

#: The disjoint parts that the examples are divided into.
PARTS = ("labels", "gradient", "shift", "choose", "test")
#: Every route beside which the one asked for can stand, in words, in the order of the colours.
ROUTES = {
    "labels": "labels",
    "gradient": "gradient step",
    "logits": "logit gradient",
    "search": "random search",
}


def route_name(route: str, estimand: str) -> str:
    """A route in words; the gradient step with its estimand."""
    return f"{ROUTES[route]} ({estimand})" if route == "gradient" else ROUTES[route]


#: Quantities of the record (docs/record.md).
LAYER_SLOPE, LENGTH, CHOSEN_LAYER = "layer_slope", "length", "chosen_layer"
CHANGE, SLOPE, ANTI_STEERABLE, PROMPT_SLOPE = "change", "slope", "anti_steerable", "prompt_slope"
RANDOM_CHANGE, RANDOM_SLOPE = "random_change", "random_slope"
RANDOM_ANTI_STEERABLE = "random_anti_steerable"
COSINE, RANDOM_COSINE = "cosine", "random_cosine"
KL, PERPLEXITY, GENERATION = "kl", "perplexity", "generation"
STRENGTH_AT_KL, CHANGE_AT_KL = "strength_at_kl", "change_at_kl"

# Of the claims.

#: Nulls of a cosine: random weight directions with the gradient's norm as a whole or in every
#: tensor, and the latter against what is left without the readout, and in whitened activations;
#: steps to other tokens; permuted labels of the gradient batch, and of the examples behind CAA;
#: random steps of a search.
WHOLE, BY_TENSOR = "weights as a whole", "weights by tensor"
BEYOND = "weights by tensor, without the readout"
IN_WHITENED = "weights by tensor, in whitened activations"
TOKENS, SCORES = "unrelated tokens", "permuted scores"
RELABELLED, CAA_RELABELLED = "permuted labels", "permuted labels of CAA"
#: Steps that are taken both ways: rows keep draws of one way, but for the largest over blocks.
BOTH_WAYS = (BY_TENSOR, BEYOND, IN_WHITENED, TOKENS)

#: Where claims are decided: the blocks chosen apart in the median third of the blocks, and in the
#: later half; the mean over that half; the largest over all blocks.
MIDDLE, CHOSEN, LATE, HIGHEST = "middle", "chosen", "late", "highest"

#: The estimands of a step's shift (measures §13).
ESTIMANDS: Mapping[Estimand, str] = {
    "E1": "mean shift, loss −log p(fixed answer)",
    "E2": "mean shift, loss of the gold answers",
    "E3": "class contrast of the shift, loss of the gold answers",
}

#: Other vectors, and conditions under which answers are measured.
CAA, PAIRED, LOGITS, SEARCH = "CAA", "paired CAA", "logit gradient", "search"
E1_ALONG, E1_ACROSS, STEP = "E1 along CAA", "E1 across CAA", "weight step E1"
MODEL = "the model"
#: Quantiles of random directions of activations.
RANDOM = {"random, 2.5 %": 0.025, "random, median": 0.5, "random, 97.5 %": 0.975}
LOW, MEDIAN, HIGH = RANDOM

#: Ratio of effects that counts as similar: the margins of bioequivalence.
SIMILAR = (0.8, 1.25)
#: What is averaged on Fisher's scale, by layer and where claims are decided ("_at").
COSINES = (
    *("cosine", "cosine_with_logits", "cosine_with_step"),
    *("reliability", "ceiling", "null", "null_cosine"),
)
#: What is taken out of both vectors before their cosine, and how that is said.
NOTHING, READOUT, COMMON, OUTLIERS = "nothing", "readout", "common mean", "outliers"
WHITENED = "unequal variances"
REMOVED: Mapping[str, str] = {
    LOGITS: "without the logit gradient g",
    READOUT: "without both answers' gradients of log p (the readout)",
    COMMON: "without the common mean activation",
    WHITENED: "in whitened activations",
    OUTLIERS: "without the largest coordinates",
}


def frozen(of: str) -> str:
    """An estimand of a step that leaves the embeddings as they are."""
    return f"{of}, embeddings frozen"


#: What a cosine is taken of, where, and the quantile of a null beside it.
PLAIN: dict[str, Any] = {"removed": NOTHING}
AT_MIDDLE: dict[str, Any] = {"at": MIDDLE}
AT_LATE: dict[str, Any] = {"at": CHOSEN}
LEVEL = "97.5 %"
PAIRED_FORM = (
    "In these examples the right answer counts as +: CAA is the mean difference at the answer's "
    "token, E2 is E1, and E3 is not defined."
)
#: Lines of the table of angles: quantity and condition; over the late layers, if nothing is said.
ANGLES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "cosine with CAA": ("cosine_at", PLAIN),
    "at the late block": ("cosine_at", {**PLAIN, **AT_LATE}),
    "at the best block of each run": ("cosine_at", {**PLAIN, "at": HIGHEST}),
    "at the middle block": ("cosine_at", {**PLAIN, **AT_MIDDLE}),
    "there, without the readout": ("cosine_at", {"removed": READOUT, **AT_MIDDLE}),
    f"{LEVEL} of random steps there": ("null_at", {"null": BEYOND, **AT_MIDDLE}),
    "there, in whitened activations": ("cosine_at", {"removed": WHITENED, **AT_MIDDLE}),
    f"{LEVEL} of random steps in these": ("null_at", {"null": IN_WHITENED, **AT_MIDDLE}),
    **{label: ("cosine_at", {"removed": removed}) for removed, label in REMOVED.items()},
    f"{LEVEL} of random steps without the readout": ("null_at", {"null": BEYOND}),
    "cosine with g": ("cosine_with_logits_at", {}),
    "cosine with CAA in the limit of small steps": ("eta_cosine", {"eta": 0.0}),
    "cosine of a step forward and minus one back": ("mirror_cosine", {"eta": None}),
    "distance of a step forward from the limit": ("limit_error", {"eta": None}),
    "distance of half the difference of both": ("centred_error", {"eta": None}),
    "reliability": ("reliability_at", {}),
    "ceiling of the cosine by both reliabilities": ("ceiling_at", {}),
    "cosine over its ceiling": ("disattenuated_at", {}),
    "share of runs and blocks whose reliability is not above 0": ("unreliable", {}),
}
