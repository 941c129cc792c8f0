"""`orbax.checkpoint.experimental.emergency.replicator_checkpoint_manager`: names, and a manager that refuses."""

from __future__ import annotations

from typing import Any

from ._options import ReplicatorCheckpointManagerOptions, refuse

__all__ = ["ReplicatorCheckpointManager", "ReplicatorCheckpointManagerOptions"]


class ReplicatorCheckpointManager:
    """Orbax's manager of checkpoints that another program copies between nodes; not here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse("ReplicatorCheckpointManager")
