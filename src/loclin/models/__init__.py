"""Causal language models with the tasks they are asked: the built-in ones, any hub id or folder,
and LoRA adapters.
"""

from loclin.models.builtin import BUILT_IN
from loclin.models.cache import cache_folder
from loclin.models.loading import load
from loclin.models.problem import Problem, twice_differentiable

__all__ = ["BUILT_IN", "Problem", "cache_folder", "load", "twice_differentiable"]
