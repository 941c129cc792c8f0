"""Options of checkpointers and managers, as `orbax.checkpoint.options` has them.

`CheckpointManagerOptions` is in `milepost.orbax` and `milepost.orbax.checkpoint_managers`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Set
from typing import Protocol

__all__ = [
    "AsyncOptions",
    "AtomicityMode",
    "AtomicityOptions",
    "BarrierSyncFn",
    "FileOptions",
    "MemoryLimitOptions",
    "MultiprocessingOptions",
]


class BarrierSyncFn(Protocol):
    """Blocks until all processes have called it with the same key."""

    def __call__(self, *, key: str, timeout_ms: int) -> None: ...


@dataclasses.dataclass
class AsyncOptions:
    """How saves go on in the background.

    Attributes:
      timeout_secs: a save that takes longer fails, and what it wrote is freed. More than 0.
      barrier_sync_fn: called in the background after each commit, with a key that is the same in
        every process.
      post_finalization_callback: called in the background after each commit; `wait_until_finished`
        waits for it and raises its error.
      create_directories_asynchronously: the directories of a step are always made in the
        background, the run's before the first `save` returns: both values do that.
    """

    timeout_secs: float = 1200
    barrier_sync_fn: BarrierSyncFn | None = None
    post_finalization_callback: Callable[[], None] | None = None
    create_directories_asynchronously: bool = True

    def __post_init__(self) -> None:
        if self.timeout_secs is not None and self.timeout_secs <= 0:
            raise ValueError(f"Timeout must be positive, but got {self.timeout_secs} seconds.")


@dataclasses.dataclass
class MultiprocessingOptions:
    """Which processes take part.

    Attributes:
      primary_host: the process that commits; None: each process saves for itself, to a place of its
        own.
      active_processes: the processes that call the manager; None: all. `primary_host` is one of
        them.
      barrier_sync_key_prefix: put before the keys that `AsyncOptions.barrier_sync_fn` is called
        with.
    """

    primary_host: int | None = 0
    active_processes: Set[int] | None = None
    barrier_sync_key_prefix: str | None = None


class AtomicityMode(str, enum.Enum):
    """How a step becomes visible at once."""

    AUTO = "auto"
    COMMIT_FILE = "commit_file"
    ATOMIC_RENAME = "atomic_rename"


@dataclasses.dataclass(frozen=True)
class AtomicityOptions:
    """How a step becomes visible at once.

    Attributes:
      mode: AUTO: a rename on disks, a commit record on object stores, where the other mode does not
        exist: asking for it there is an error.
      allow_legacy_atomic_rename: for Orbax steps that are read at a run's path: those without
        `commit_success.txt` count, whatever this says, as Orbax writes them on disks.
    """

    mode: AtomicityMode = AtomicityMode.AUTO
    allow_legacy_atomic_rename: bool = False


@dataclasses.dataclass(frozen=True)
class FileOptions:
    """How directories are made.

    Attributes:
      path_permission_mode: the mode of the run's directory where it is created, and of each step's
        and its items' directories, e.g. 0o750; None: by the process's umask. Local file systems
        only.
      skip_sync_file_validations: Orbax's knob to stat less before a save. Milepost looks at nothing
        on the caller's
        thread but its list of steps in memory: both values do that.
    """

    path_permission_mode: int | None = None
    skip_sync_file_validations: bool = False


@dataclasses.dataclass
class MemoryLimitOptions:
    """Bounds of memory while saving.

    Attributes:
      max_transfer_concurrent_gb: how many gigabytes (1e9 bytes) are on their way from the devices
        at once.
    """

    max_transfer_concurrent_gb: int | None = None
