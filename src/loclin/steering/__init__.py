"""Directions of a model's activations: made from labels, one gradient step or a random search;
compared, tested, taken away.

`with vector.applied(model, strength=2): model.generate(...)`. Vectors add, subtract and scale;
`vector.save(path)` and `SteeringVector.load(path)` keep them, `gguf` writes them for llama.cpp.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loclin.steering.routes import from_gradient as from_gradient
    from loclin.steering.routes import from_labels as from_labels
    from loclin.steering.routes import from_search as from_search
    from loclin.steering.vector import SteeringVector as SteeringVector

#: Public name -> the file it lives in. Imported on first use, so that `loclin --help` need not wait
#: for torch.
_HOMES = {
    "SteeringVector": "vector",
    "from_gradient": "routes",
    "from_labels": "routes",
    "from_search": "routes",
}

__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'loclin.steering' has no attribute {name!r}")
    return getattr(import_module(f"loclin.steering.{_HOMES[name]}"), name)
