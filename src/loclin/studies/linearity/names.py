"""Names of directions, sides and units in the rows of linearity and radius, and their labels."""

from loclin.studies.names import OPTIMISERS

GRADIENT, MATCHED, RANDOM, TASK = "gradient", "norm-matched noise", "random", "task vector"
#: Displacements of a recovery by optimiser: all of it, and the sum of its first updates.
RECOVERY = {optimiser: f"recovery, {label}" for optimiser, label in OPTIMISERS.items()}
FIRST = {optimiser: f"first updates, {label}" for optimiser, label in OPTIMISERS.items()}
TOP = "top curvature 1"

SIGNS = {1: "+", -1: "−"}
BOTH = "both"  # the smaller of both sides
SIDES = {"+": "forward", "−": "backward"}
#: Units of a step (`window.Sizes`) as rows name them.
UNITS = {"relative": "‖δ‖/‖θ‖", "length": "‖δ‖", "multiple": "λ"}
