"""`orbax.checkpoint.experimental.emergency.checkpoint_manager`: names, and a manager that refuses."""

from __future__ import annotations

from typing import Any

from ._options import (
    CheckpointManagerOptions,
    LocalCheckpointOptions,
    MultiprocessingOptions,
    PersistentCheckpointOptions,
    refuse,
)

__all__ = [
    "CheckpointManager",
    "CheckpointManagerOptions",
    "LocalCheckpointOptions",
    "MultiprocessingOptions",
    "PersistentCheckpointOptions",
]


class CheckpointManager:
    """Orbax's manager of checkpoints in the nodes' memory and on shared storage; not here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse("emergency CheckpointManager")
