"""Which direction a route estimates, by name (measures §13). Imports nothing heavy."""

from typing import Literal

#: The vector from labels. class: mean activation where the positive option is right, less where it
#: is not. paired: mean over prompts of the activation at one answer less that at the other. auto:
#: class where there is a positive option.
Form = Literal["auto", "class", "paired"]
#: The vector from a gradient step. E1: mean shift of a step towards the positive answer; E2: of a
#: step towards the right answers; E3: class contrast of the shift of that step.
Estimand = Literal["E1", "E2", "E3"]
