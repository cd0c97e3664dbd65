"""Directions of a model's activations: made from labels, one gradient step or a random search;
compared, tested, taken away.

`with vector.applied(model, strength=2): model.generate(...)`. Vectors add, subtract and scale;
`vector.save(path)` and `SteeringVector.load(path)` keep them, `gguf` writes them for llama.cpp.
"""

from typing import TYPE_CHECKING

from loclin.lazy import public

if TYPE_CHECKING:
    from loclin.steering.routes import from_gradient as from_gradient
    from loclin.steering.routes import from_labels as from_labels
    from loclin.steering.routes import from_pairs as from_pairs
    from loclin.steering.routes import from_search as from_search
    from loclin.steering.vector import SteeringVector as SteeringVector

__getattr__, __all__ = public(
    "loclin.steering",
    {
        "SteeringVector": "vector",
        "from_gradient": "routes",
        "from_labels": "routes",
        "from_pairs": "routes",
        "from_search": "routes",
    },
)
