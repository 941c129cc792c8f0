"""Options of a `Context`: what each means to Milepost.

Every class is a plain dataclass. While a context is active (inside its `with` block) its options
are frozen: setting one raises `RuntimeError`. Options that tune machinery which Milepost does not
have say in their docstring what takes their place; none is silently dropped.
"""

from __future__ import annotations

import contextvars
import copy
import dataclasses
import enum
from collections.abc import Callable
from typing import Any, Protocol

from milepost.orbax.options import AtomicityMode
from milepost.orbax.v1.handlers import _registry
from milepost.orbax.v1.path import default_path_class

FROZEN_IDS: contextvars.ContextVar[frozenset[int]] = contextvars.ContextVar(
    "milepost_frozen_option_ids", default=frozenset()
)


class _Guard:
    """Refuses changes to options of an active context."""

    def __setattr__(self, name: str, value: Any) -> None:
        if id(self) in FROZEN_IDS.get():
            raise RuntimeError(
                f"Cannot mutate options of an active context: set {type(self).__name__}.{name} "
                "before entering the `with` block."
            )
        object.__setattr__(self, name, value)


@dataclasses.dataclass(kw_only=True)
class AsyncOptions(_Guard):
    """How saves run in the background.

    Attributes:
      timeout_secs: Seconds a save may take, from the call to the commit. Past it the save is
        cancelled, nothing becomes visible, and `result()` raises `TimeoutError`. None: no limit.
      post_finalization_callback: Called without arguments in the background once the checkpoint
        is committed, before `result()` returns. What it raises, `result()` raises.
      create_directories_asynchronously: Milepost never creates directories on the caller's thread.
        That the path is free is checked on it in any case, so that neither value hides an error.
    """

    timeout_secs: float | None = 1200
    post_finalization_callback: Callable[[], None] | None = None
    create_directories_asynchronously: bool = True


@dataclasses.dataclass(kw_only=True)
class AtomicityOptions(_Guard):
    """How a commit becomes visible.

    Attributes:
      mode: Every mode gets Milepost's commit, which needs no choice: on a local disk one rename of
        a whole checkpoint (with its record inside), on an object store one conditional create of
        the record. Both are all or nothing.
      allow_legacy_atomic_rename: Orbax's permission to rename on stores without rename. Milepost
        never does that; True allows nothing more.
    """

    mode: AtomicityMode = AtomicityMode.AUTO
    allow_legacy_atomic_rename: bool = False


@dataclasses.dataclass(kw_only=True)
class MultiprocessingOptions(_Guard):
    """Which processes take part.

    Attributes:
      primary_host: The process that writes what is not an array. With one process it is this one,
        whatever the number.
      active_processes: The processes that save and load. A process that is not among them gets an
        error instead of taking part. None: all.
      barrier_sync_key_prefix: Prefix of the names of barriers between processes.
    """

    primary_host: int | None = 0
    active_processes: set[int] | None = None
    barrier_sync_key_prefix: str | None = None


@dataclasses.dataclass(kw_only=True)
class FileOptions(_Guard):
    """Files and paths.

    Attributes:
      path_permission_mode: Mode (such as 0o750) of the directories of a checkpoint on a local
        disk, set right after the commit. None: as the process's umask says.
      path_class: Type of the paths that are handed out and given to handlers; by default
        `etils.epath.Path` where that is installed, else `pathlib.Path`.
      skip_sync_file_validations: Orbax's switch for the look-ups before a save. Milepost has none
        to skip: the commit itself refuses an existing path.
    """

    path_permission_mode: int | None = None
    path_class: type = dataclasses.field(default_factory=default_path_class)
    skip_sync_file_validations: bool = False


@dataclasses.dataclass(kw_only=True)
class PyTreeMetadataOptions(_Guard):
    """How containers come back where no abstract tree is given.

    Attributes:
      support_rich_types: True: `load` and `metadata` without an abstract tree give the saved
        containers (tuple, named tuple, integer keys); set at save or at load. False: dicts with
        text keys and lists, as Orbax does.
    """

    support_rich_types: bool = False


@dataclasses.dataclass(kw_only=True)
class PyTreeOptions(_Guard):
    """Trees: `saving` and `loading`."""

    @dataclasses.dataclass(kw_only=True)
    class Saving(_Guard):
        """Attributes: pytree_metadata_options (see `PyTreeMetadataOptions`)."""

        pytree_metadata_options: Any = dataclasses.field(default_factory=PyTreeMetadataOptions)

    @dataclasses.dataclass(kw_only=True)
    class Loading(_Guard):
        """Attributes: partial_load (leaves that the abstract tree leaves out are not read)."""

        partial_load: bool = False

    saving: Saving = dataclasses.field(default_factory=Saving)
    loading: Loading = dataclasses.field(default_factory=Loading)


@dataclasses.dataclass(kw_only=True)
class ArrayOptions(_Guard):
    """Arrays: `saving` and `loading`."""

    @dataclasses.dataclass(kw_only=True)
    class Saving(_Guard):
        """How arrays are stored.

        Attributes:
          storage_options: For every array leaf.
          scoped_storage_options_creator: `(key path, leaf) -> StorageOptions | None`; what it sets
            goes before `storage_options`, member by member.
          use_compression: True: zstd level 3, as Orbax does by default; False or None: none, which
            is Milepost's default: checkpoints shrink by little and save several times slower.
          ocdbt_target_data_file_size: Largest stored object in bytes (Milepost's shard size);
            0 or None: Milepost's own choice.
          use_ocdbt, use_zarr3: Orbax's containers. Milepost always writes plain Zarr v3 with
            several chunks in one shard; False changes nothing about it.
          enable_post_merge_validation: Milepost has no merge step; every chunk carries a checksum.
          use_replica_parallel, min_slice_bytes_for_replica_parallel,
          max_replicas_for_replica_parallel, enable_replica_parallel_separate_folder: How replicas
            share the work between processes; each shard is written once in any case.
          enable_pinned_host_transfer: How Orbax stages device memory. Milepost asks the device for
            an asynchronous host copy.
          enable_write_sharding_file: False: shardings are not recorded, so that `load` without an
            abstract tree puts arrays on the default device.
          array_metadata_store: Orbax's side files; the index of an item holds what they held.
        """

        class ScopedStorageOptionsCreator(Protocol):
            """Chooses storage options for one leaf."""

            def __call__(self, key: tuple[Any, ...], value: Any) -> Any: ...

        @dataclasses.dataclass(kw_only=True)
        class StorageOptions(_Guard):
            """Attributes: dtype, chunk_byte_size (bytes), shard_axes (axes cut first)."""

            dtype: Any = None
            chunk_byte_size: int | None = None
            shard_axes: tuple[int, ...] | None = None

        storage_options: StorageOptions = dataclasses.field(default_factory=StorageOptions)
        use_ocdbt: bool = True
        use_zarr3: bool = True
        use_compression: bool | None = None
        ocdbt_target_data_file_size: int | None = None
        enable_pinned_host_transfer: bool | None = None
        enable_post_merge_validation: bool = True
        use_replica_parallel: bool | None = None
        min_slice_bytes_for_replica_parallel: int | None = None
        max_replicas_for_replica_parallel: int | None = None
        enable_replica_parallel_separate_folder: bool = False
        enable_write_sharding_file: bool = True
        array_metadata_store: Any = None
        scoped_storage_options_creator: ScopedStorageOptionsCreator | None = None

    @dataclasses.dataclass(kw_only=True)
    class Loading(_Guard):
        """How arrays are read.

        Attributes:
          enable_padding_and_truncation: True: an array of another shape (same rank) is cut or
            padded with zeros to the shape that the abstract leaf names. False: an error.
          raise_array_data_missing_error: Orbax may leave out chunks of fill values. Milepost
            stores every chunk, so that a missing one is damage and an error either way.
          use_load_and_broadcast, load_and_broadcast_options: Orbax's way to read once for all
            replicas. Milepost reads each region once a process and places it on all its devices.
        """

        @dataclasses.dataclass(kw_only=True)
        class LoadAndBroadcastOptions(_Guard):
            """Attributes: as in Orbax; see `Loading.use_load_and_broadcast`."""

            replica_axis_index: int | None = 0
            primary_replica_id: int | None = 0
            broadcast_memory_limit_bytes: int | None = None
            broadcast_memory_scaling_factor: float | None = 0.75

        enable_padding_and_truncation: bool = False
        raise_array_data_missing_error: bool = True
        use_load_and_broadcast: bool = False
        load_and_broadcast_options: LoadAndBroadcastOptions = dataclasses.field(
            default_factory=LoadAndBroadcastOptions
        )

    saving: Saving = dataclasses.field(default_factory=Saving)
    loading: Loading = dataclasses.field(default_factory=Loading)


@dataclasses.dataclass(kw_only=True)
class CheckpointablesOptions(_Guard):
    """Which handler saves and loads which checkpointable.

    Attributes:
      registry: Asked for every checkpointable; the handler registered last goes first. By default
        a read-only view of the global registry.
    """

    registry: _registry.CheckpointableHandlerRegistry = dataclasses.field(
        default_factory=lambda: _registry.ReadOnlyCheckpointableHandlerRegistry(
            _registry.local_registry(include_global_registry=True)
        )
    )


@dataclasses.dataclass(kw_only=True)
class PathwaysOptions(_Guard):
    """Attributes: checkpointing_impl (Pathways' own array handlers; refused where it is set)."""

    checkpointing_impl: Any = None


@dataclasses.dataclass(kw_only=True)
class DeletionOptions(_Guard):
    """How checkpoints are deleted.

    Attributes:
      gcs_deletion_options: `todelete_full_path`: move what is deleted below this path instead of
        freeing it: relative to the bucket on object stores, to the checkpoint's parent directory
        on a local disk.
    """

    @dataclasses.dataclass(kw_only=True)
    class GcsDeletionOptions(_Guard):
        """Attributes: todelete_full_path."""

        todelete_full_path: str | None = None

    gcs_deletion_options: GcsDeletionOptions = dataclasses.field(
        default_factory=GcsDeletionOptions
    )


@dataclasses.dataclass(kw_only=True)
class MemoryOptions(_Guard):
    """How much memory saving and loading may take.

    Milepost has one byte budget a process for staging, encoding and requests in flight (the smaller
    of 1 GiB and a quarter of the memory). A limit below gives the saves or loads with this context
    a budget of their own. A chunk larger than the budget goes alone; it is no error.

    Attributes:
      write_concurrent_bytes: Budget of a save. None: the process's.
      read_concurrent_bytes: Budget of a load. None: the process's.
      transfer_concurrent_bytes: Budget of a save's copies from the device; the smaller of the two
        counts.
      regulator_options: Feedback control of the budget of saves, see `RegulatorOptions`.
      expected_surge_bytes: Bytes that the regulated budget is lowered by for one save.
      is_prioritized_key_fn: Orbax copies other keys later, so that they may change meanwhile.
        Milepost captures every leaf before `save_async` returns: all keys are prioritized.
      serialization_status_callback: Its `on_transfer_end(key path)` is called for each leaf once
        the tree is captured, `on_write_end(key path)` once the checkpoint is committed.
      deepcopy_host_arrays: False: NumPy arrays are handed over, not copied: do not change them
        before the save is done.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class RegulatorOptions:
        """A PID controller of the save budget, fed by `profiler` between saves.

        A `training.Checkpointer` has one budget for its life: the limit that stands when it is
        made. The free functions take the limit of each save.

        Attributes:
          max_memory_limit_gib, min_memory_limit_gib: Bounds of the budget in GiB; the minimum is
            where it begins.
          profiler: Has `profiler_start()`, `profiler_end()`, `peak_usage_gib`,
            `total_memory_gib`, and optionally `get_expected_surge_gib()`.
          target_ratio: Share of the host's memory to aim at.
          kp, ki, kd: The controller's coefficients.
        """

        max_memory_limit_gib: float
        profiler: Any
        target_ratio: float = 0.80
        min_memory_limit_gib: float = 10.0
        kp: float = 0.4
        ki: float = 0.05
        kd: float = 0.1
        _regulator: Any = dataclasses.field(init=False, repr=False, compare=False)

        def __post_init__(self) -> None:
            from milepost.orbax.v1._regulator import MemoryRegulator

            if self.profiler is None:
                raise ValueError("RegulatorOptions requires a `profiler`.")
            object.__setattr__(self, "_regulator", MemoryRegulator(self))

        def __deepcopy__(self, memo: dict[int, Any]) -> "MemoryOptions.RegulatorOptions":
            # Child contexts share the controller's state.
            result = copy.copy(self)
            memo[id(self)] = result
            return result

        @property
        def regulator(self) -> Any:
            """The controller: `current_limit_bytes`, `regulate(expected_surge_bytes=…)`."""
            return self._regulator

    write_concurrent_bytes: int | None = None
    read_concurrent_bytes: int | None = None
    transfer_concurrent_bytes: int | None = None
    regulator_options: RegulatorOptions | None = None
    expected_surge_bytes: int | float | None = None
    is_prioritized_key_fn: Callable[[tuple[Any, ...]], bool] | None = None
    serialization_status_callback: Any = None
    deepcopy_host_arrays: bool = True


@dataclasses.dataclass(kw_only=True)
class SafetensorsOptions(_Guard):
    """How safetensors files are read.

    Attributes:
      max_over_read_ratio: How many bytes may be read for one that is wanted when ranges of one
        file are joined; at least 1. None: 1.0 where the wanted ranges are few, whole spans where
        they would be more than 1,024 reads.
      read_chunk_bytes: Largest single read; None: 128 MiB.
    """

    max_over_read_ratio: float | None = None
    read_chunk_bytes: int | None = None


class CheckpointLayout(enum.Enum):
    """What is at a path: a checkpoint (ORBAX), safetensors files, or found out (AUTO)."""

    ORBAX = "orbax"
    SAFETENSORS = "safetensors"
    AUTO = "auto"


__all__ = [
    "ArrayOptions",
    "AsyncOptions",
    "AtomicityMode",
    "AtomicityOptions",
    "CheckpointLayout",
    "CheckpointablesOptions",
    "DeletionOptions",
    "FileOptions",
    "MemoryOptions",
    "MultiprocessingOptions",
    "PathwaysOptions",
    "PyTreeMetadataOptions",
    "PyTreeOptions",
    "SafetensorsOptions",
]
