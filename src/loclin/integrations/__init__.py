"""Other people's training runs: checkpoint folders of any Trainer or peft run, and a callback for a
Trainer.

`TrajectoryCallback` is imported on first use, so that reading folders need not wait for
transformers.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loclin.integrations.trainer import TrajectoryCallback

__all__ = ["TrajectoryCallback"]


def __getattr__(name: str) -> Any:
    if name != "TrajectoryCallback":
        raise AttributeError(f"module 'loclin.integrations' has no attribute {name!r}")
    from loclin.integrations.trainer import TrajectoryCallback

    return TrajectoryCallback
