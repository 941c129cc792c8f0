"""The options of emergency managers: programs build them at import."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

from milepost._errors import Unsupported
from milepost.orbax.options import AsyncOptions


@dataclasses.dataclass
class LocalCheckpointOptions:
    """How often a node saves for itself, and how much it keeps."""

    save_interval_steps: int = 10
    max_to_keep: int | None = None
    read_only: bool = False
    should_save_fn: Any = None
    save_decision_policy: Any = None
    preservation_policy: Any = None
    debug_use_full_global_mesh: bool = False


@dataclasses.dataclass
class PersistentCheckpointOptions:
    """How often all save to shared storage, and how much is kept."""

    save_interval_steps: int = 1000
    max_to_keep: int | None = None
    keep_period: int | None = None
    should_save_fn: Any = None
    save_decision_policy: Any = None
    preservation_policy: Any = None


@dataclasses.dataclass
class MultiprocessingOptions:
    """How long processes wait for each other."""

    coordination_timeout_secs: int = 120


@dataclasses.dataclass
class CheckpointManagerOptions:
    """Options of an emergency manager."""

    local: LocalCheckpointOptions = dataclasses.field(default_factory=LocalCheckpointOptions)
    persistent: PersistentCheckpointOptions = dataclasses.field(
        default_factory=PersistentCheckpointOptions
    )
    replica_axis_index: int = 0
    step_name_format: Any = None
    cleanup_tmp_directories: bool = False
    enable_async_checkpointing: bool = True
    async_options: AsyncOptions | None = None
    multiprocessing_options: MultiprocessingOptions | None = None
    single_host_load_and_broadcast: bool = True


@dataclasses.dataclass
class ReplicatorCheckpointManagerOptions:
    """Options of a replicator's manager."""

    save_interval_steps: int = 1
    step_name_format: Any = None
    should_save_fn: Any = None
    preservation_policy: Any = None


def refuse(what: str) -> NoReturn:
    """Raises what every emergency manager raises here."""
    raise Unsupported(
        f"there is no {what}: Milepost has no checkpoints on nodes beside the run's",
        hint="use CheckpointManager: saves do not hold the loop, so they can be as frequent; "
        "primary_host=None saves to each node's own disk",
    )
