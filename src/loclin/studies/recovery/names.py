"""Bases that a recovery is held against, as rows, claims and page call them."""

from __future__ import annotations

from loclin.studies.names import MINIBATCH

AT_ORIGIN, AT_DAMAGED = "gradients at θ₀", "gradients at θ_D"
TASK_VECTORS, HESSIAN = "task vectors", "Hessian at θ_D"
#: Fixed before recovery starts.
STATIC = (AT_ORIGIN, AT_DAMAGED, TASK_VECTORS, HESSIAN)
ANOTHER_RUN, ANOTHER_TASK = "another run's prefix", "another task's prefix"
NOISE = "norm-matched noise"
CONTROLS = (ANOTHER_RUN, ANOTHER_TASK, MINIBATCH, NOISE)
#: Training that is not confined to a basis.
FULL = "full"
