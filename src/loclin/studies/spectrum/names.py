"""Names of what the spectrum study compares, for rows, claims and page."""

#: Whose ranks they are: gradients, and two kinds of random vectors with the same norms.
MEASURED, PER_TENSOR, ISOTROPIC = "measured", "per tensor", "isotropic"
#: All scaled to unit length, or as long as they are.
UNIT, OWN = "unit", "own"
CENTRED, UNCENTRED = "centred", "uncentred"
