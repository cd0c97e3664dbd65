"""Names of a search's rows, once, for what measures and what draws."""

from __future__ import annotations

# ways to answer the test examples
MODEL = "the model itself"
BEST = "best candidate"
VOTE = "vote of the best"
RANDOM_VOTE = "vote of random candidates"
SAMPLED_VOTE = "vote of the model sampled"

# the forecast, at the model's own weights
LOSS, GRADIENT, TRUE_GRADIENT = "loss", "gradient", "true_gradient"
TRACE, FROBENIUS, ALONG, EFFECTIVE_RANK = "trace", "frobenius", "along", "effective_rank"
DIMENSION, WEIGHTS_LENGTH, RELATIVE_SIGMA = "dimension", "weights_length", "relative_sigma"
BEST_SIGMA, EDGE, EXPECTED_GAIN, NEEDED = "best_sigma", "edge", "expected_gain", "needed"

# what was observed on the select examples
OWN_SCORE, REALISED_SIGMA, NOT_FINITE = "own_score", "realised_sigma", "not_finite"
BEST_OF_N, PASS_AT, GAIN_DENSITY = "best_of_n", "pass_at", "gain_density"

# the test
SCORE, GAIN, P_HOLM, WINNER = "score", "gain", "p_holm", "winner"
