"""The manager, its options and its policies, as `orbax.checkpoint.checkpoint_managers` has them."""

from __future__ import annotations

from typing import Any

from . import preservation_policy, save_decision_policy
from .policy_checkpoint_info import PolicyCheckpointInfo
from .preservation_policy import (
    AnyPreservationPolicy,
    BestN,
    CustomSteps,
    EveryNSeconds,
    EveryNSteps,
    EveryNStepsClosest,
    LatestDuration,
    LatestN,
    PreservationContext,
    PreservationPolicy,
    PreserveAll,
)
from .save_decision_policy import (
    AnySavePolicy,
    ContinuousCheckpointingPolicy,
    DecisionContext,
    FixedIntervalPolicy,
    InitialSavePolicy,
    PreemptionCheckpointingPolicy,
    SaveDecisionPolicy,
    SpecificStepsPolicy,
)

__all__ = [
    "AnyPreservationPolicy",
    "AnySavePolicy",
    "BestN",
    "CheckpointManager",
    "CheckpointManagerOptions",
    "ContinuousCheckpointingPolicy",
    "CustomSteps",
    "DecisionContext",
    "EveryNSeconds",
    "EveryNSteps",
    "EveryNStepsClosest",
    "FixedIntervalPolicy",
    "InitialSavePolicy",
    "LatestDuration",
    "LatestN",
    "PolicyCheckpointInfo",
    "PreemptionCheckpointingPolicy",
    "PreservationContext",
    "PreservationPolicy",
    "PreserveAll",
    "SaveDecisionPolicy",
    "SpecificStepsPolicy",
    "preservation_policy",
    "save_decision_policy",
]


def __getattr__(name: str) -> Any:
    # The manager imports this package.
    if name == "CheckpointManager":
        from ..checkpoint_manager import CheckpointManager

        return CheckpointManager
    if name == "CheckpointManagerOptions":
        from .._manager_options import CheckpointManagerOptions

        return CheckpointManagerOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
