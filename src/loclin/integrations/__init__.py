"""Other people's training runs: a callback for the Hugging Face Trainer."""

from typing import TYPE_CHECKING

from loclin.lazy import public

if TYPE_CHECKING:
    from loclin.integrations.trainer import TrajectoryCallback as TrajectoryCallback

__getattr__, __all__ = public("loclin.integrations", {"TrajectoryCallback": "trainer"})
