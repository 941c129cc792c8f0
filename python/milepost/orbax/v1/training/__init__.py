"""Checkpoints of a training loop: a run of steps, when to save them and which to keep."""

from __future__ import annotations

from milepost.orbax.v1.training import errors, pathways, preservation_policies
from milepost.orbax.v1.training import save_decision_policies
from milepost.orbax.v1.training.checkpointer import Checkpointer
from milepost.orbax.v1.training.metadata import CheckpointMetadata, RootMetadata

__all__ = [
    "CheckpointMetadata",
    "Checkpointer",
    "RootMetadata",
    "errors",
    "pathways",
    "preservation_policies",
    "save_decision_policies",
]
