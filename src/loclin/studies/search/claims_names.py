"""Names in the rows of the claims about random search, for measure, claims and page alike."""

from __future__ import annotations

#: Points that are searched around, with their symbols.
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

#: A way to answer the test examples, in the context as "arm"; the others are those of `names`.
ORACLE = "any of them (oracle)"
