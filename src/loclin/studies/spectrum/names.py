"""Names of what the spectrum study compares, for rows, claims and page."""

#: Whose ranks they are: gradients as they are and at unit norm, and two kinds of random vectors.
MEASURED, UNIT_NORM = "measured", "measured, unit norm"
PER_TENSOR, ISOTROPIC = "per tensor", "isotropic"
CENTRED, UNCENTRED = "centred", "uncentred"
