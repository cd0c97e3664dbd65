"""Names of routes, parts and rows of `loclin steer`, once, for settings, measure and page."""

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
