"""Names in the rows of a search and of the claims about it, once, for measure, claims and pages."""

from __future__ import annotations

#: Ways to answer the test examples.
MODEL, BEST, VOTE = "the model itself", "best candidate", "vote of the best"
RANDOM_VOTE, SAMPLED_VOTE = "vote of random candidates", "vote of the model sampled"
ORACLE = "any of them (oracle)"

#: Points that the claims are about, with their symbols.
POINTS = {"damaged": "θ_D", "halfway": "θ_H"}
#: Spaces that are searched: all coordinates, one tensor, and subspaces of k dimensions.
ALL, LARGEST = "all", "largest tensor"
GRADIENTS, UPDATES, STATIC = "gradients at θ_D", "first updates", "static plane"
LESSER = "lesser gradients at θ_D"
KRYLOV, MATCHED, RANDOM = "Krylov", "norm-matched noise", "random"
#: Where in a space its candidates lie, in the context as "at" where it is not "size".
DOMAIN_END, BEST_SIGMA, EQUAL_RADIUS = "end of the domain", "own best σ", "equal radius"
#: What the errors of the law are means over.
OVER_SIZES, OVER_SPACES, OVER_ALL = "sizes", "spaces", "sizes up to the reference"
#: Kinds of noise that are treated apart.
GAUSSIAN, TIED = "gaussian", "tied"
