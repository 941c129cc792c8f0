"""Every option of Orbax's checkpoint manager, and what of the native manager it becomes."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import sys
from collections.abc import Callable, Container
from typing import Any

from .checkpoint_managers import preservation_policy as preservation
from .checkpoint_managers import save_decision_policy as decision
from .options import AsyncOptions, AtomicityMode, AtomicityOptions, FileOptions
from .options import MultiprocessingOptions
from .path import step as step_names

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass
class CheckpointManagerOptions:
    """What a `CheckpointManager` saves, keeps and deletes, and how.

    When to save (of `save_decision_policy` and the others, the policy counts):
      save_interval_steps: the multiples of this, and the first step that is asked for. At least 1.
      save_on_steps: these steps besides.
      should_save_fn: asked with the step and the newest step (or None) instead of the two above.
      save_decision_policy: a policy instead of all of the above.
      enable_should_save_is_saving_in_progress_check: False: policies are not told that a save is in
        flight.

    What to keep (`preservation_policy` excludes the first three); the newest step is kept in any
    case:
      max_to_keep: so many of the newest; with `best_fn` of the best; None keeps all; 0 the newest
        alone.
      keep_period: the multiples of this besides.
      keep_time_interval: one step each time this has passed besides; a timedelta, or seconds.
      best_fn: takes the metrics of a step, returns the number that ranks it. Metrics are stored in
        any case.
      best_mode: "max" or "min" is best.
      keep_checkpoints_without_metrics: whether steps without metrics are kept, uncounted.
      preservation_policy: a policy instead.
      prevent_write_metrics: metrics rank steps as long as the manager lives, and are not stored.

    Names and directories:
      step_prefix: steps are named `<prefix>_<number>`.
      step_format_fixed_length: numbers are padded with zeros to so many digits.
      step_name_format: a format instead, see `milepost.orbax.path.step`.
      create: creates the run's directory at once. False: the first save creates it.
      cleanup_tmp_directories: what dead writers left is swept, in the background, when the manager
        is opened.
      file_options: see `FileOptions`.
      atomicity_options: see `AtomicityOptions`.
      temporary_path_class: of Orbax's, only None: how a step is committed is the store's business
        here.
      save_root_metadata: False: the manager's `metadata` is not stored.
      enable_per_process_directory_creation: needs `primary_host=None`; each process then has a run
        of its own.

    Deletion:
      todelete_subdir: steps to delete are moved into this directory below the run instead. Local
        file systems only.
      todelete_full_path: the same by a bucket's path; object stores cannot move: refused.
      enable_background_delete: False: `save` of a synchronous manager returns when old steps are
        gone. True: before.
      num_deletion_threads: at least 1. One thread plans, and the engine's own delete: it sizes
        nothing here.

    How:
      read_only: nothing is ever written or deleted, forced or not.
      enable_async_checkpointing: False: `save` returns when the step is committed.
      async_options, multiprocessing_options: see there.
      single_host_load_and_broadcast: several processes list what the first of them lists, when the
        manager is opened and at `reload`, which all call then. Each still reads the store.
      lightweight_initialize: Orbax then skips times and metrics; here they are in the one small
        record that is read of a step anyway, so they are known with True, too.

    Milepost's own:
      compression: "none" (default), "zstd", "zstd:LEVEL", "gzip:LEVEL", "blosc:lz4:5:shuffle".
      write_tree_metadata: False leaves out the consolidated metadata of groups, which only speeds
        up other readers.
    """

    save_interval_steps: int = 1
    max_to_keep: int | None = None
    keep_time_interval: datetime.timedelta | float | None = None
    keep_period: int | None = None
    best_fn: Callable[[Any], float] | None = None
    best_mode: str = "max"
    keep_checkpoints_without_metrics: bool = True
    step_prefix: str | None = None
    step_format_fixed_length: int | None = None
    step_name_format: step_names.NameFormat | None = None
    create: bool = True
    cleanup_tmp_directories: bool = False
    save_on_steps: Container[int] | None = None
    single_host_load_and_broadcast: bool = False
    todelete_subdir: str | None = None
    todelete_full_path: str | None = None
    enable_background_delete: bool = False
    num_deletion_threads: int | None = None
    read_only: bool = False
    enable_async_checkpointing: bool = True
    async_options: AsyncOptions | None = None
    multiprocessing_options: MultiprocessingOptions = dataclasses.field(
        default_factory=MultiprocessingOptions
    )
    should_save_fn: Callable[[int, int | None], bool] | None = None
    file_options: FileOptions = dataclasses.field(default_factory=FileOptions)
    atomicity_options: AtomicityOptions | None = None
    save_root_metadata: bool = True
    temporary_path_class: type | None = None
    save_decision_policy: decision.SaveDecisionPolicy | None = None
    preservation_policy: preservation.PreservationPolicy | None = None
    prevent_write_metrics: bool = False
    enable_should_save_is_saving_in_progress_check: bool = True
    enable_per_process_directory_creation: bool = False
    lightweight_initialize: bool = False
    compression: str | None = None
    write_tree_metadata: bool = True

    def __post_init__(self) -> None:
        self._check()
        if isinstance(self.keep_time_interval, (int, float)):
            self.keep_time_interval = datetime.timedelta(seconds=self.keep_time_interval)
        if self.read_only:
            self._quieten()
        if self.save_on_steps is None or isinstance(self.save_on_steps, (list, tuple, set)):
            self.save_on_steps = frozenset(self.save_on_steps or ())

    def _check(self) -> None:
        broadcasts = getattr(self.step_name_format, "single_host_load_and_broadcast", False)
        if self.step_name_format and bool(broadcasts) != self.single_host_load_and_broadcast:
            raise ValueError(
                "single_host_load_and_broadcast is set for the manager or for step_name_format; "
                "set it for both or none"
            )
        if self.best_mode not in ("min", "max"):
            raise ValueError(f"best_mode is 'min' or 'max'. best_mode=`{self.best_mode}`")
        most = self.max_to_keep
        if self.preservation_policy is None and most is not None and most < 0:
            raise ValueError(f"max_to_keep is None or not negative. max_to_keep=`{most}`")
        if self.todelete_subdir is not None and self.todelete_full_path is not None:
            raise ValueError("todelete_subdir and todelete_full_path exclude each other")
        if (
            self.enable_per_process_directory_creation
            and self.multiprocessing_options.primary_host is not None
        ):
            raise ValueError("enable_per_process_directory_creation needs primary_host=None")
        threads = self.num_deletion_threads
        if threads is not None and threads < 1:
            raise ValueError(f"at least 1 thread deletes. num_deletion_threads=`{threads}`")

    def _quieten(self) -> None:
        """Sets what a reader cannot do to what it does, as Orbax does."""
        without = {
            "save_interval_steps": 0,
            "max_to_keep": None,
            "keep_time_interval": None,
            "keep_period": None,
            "create": False,
            "cleanup_tmp_directories": False,
            "save_on_steps": None,
            "todelete_subdir": None,
            "todelete_full_path": None,
            "should_save_fn": None,
        }
        for name, value in without.items():
            if getattr(self, name) not in (value, None, False):
                _LOG.debug("a read-only manager goes without %s", name)
            setattr(self, name, value)


def save_decision(options: CheckpointManagerOptions) -> decision.SaveDecisionPolicy:
    """Returns the policy that the options ask for; preemption saves in any case."""
    if options.save_decision_policy is not None:
        return options.save_decision_policy
    if options.should_save_fn is not None:
        policies: list[Any] = [decision.ShouldSaveFnPolicy(options.should_save_fn)]
        return decision.AnySavePolicy([*policies, decision.PreemptionCheckpointingPolicy()])
    policies = [decision.PreemptionCheckpointingPolicy(), decision.InitialSavePolicy()]
    if options.save_interval_steps is not None:
        policies.append(decision.FixedIntervalPolicy(options.save_interval_steps))
    if options.save_on_steps:
        policies.append(decision.SpecificStepsPolicy(options.save_on_steps))
    return decision.AnySavePolicy(policies)


def preservation_of(options: CheckpointManagerOptions) -> preservation.PreservationPolicy:
    """Returns the policy that the options ask for.

    Raises:
      ValueError: options that exclude each other.
    """
    classic = (options.max_to_keep, options.keep_time_interval, options.keep_period)
    if options.preservation_policy is not None:
        if any(option is not None for option in classic):
            raise ValueError(
                "preservation_policy and max_to_keep, keep_time_interval, keep_period are mutually "
                "exclusive; say all of it by policies: AnyPreservationPolicy([…])"
            )
        return options.preservation_policy
    policies: list[Any] = []
    if options.keep_period is not None:
        policies.append(preservation.EveryNSteps(options.keep_period))
    if options.keep_time_interval is not None:
        seconds = options.keep_time_interval.total_seconds()
        policies.append(preservation.EveryNSeconds(seconds))
    if options.best_fn is None:
        policies.append(preservation.LatestN(options.max_to_keep))
    else:
        policies.append(best_of(options, options.max_to_keep))
    # Checked also where they keep nothing that is not kept anyway.
    for policy in policies[:-1]:
        policy.native()
    if options.max_to_keep is None:
        return preservation.PreserveAll()
    return preservation.AnyPreservationPolicy(policies)


def best_of(options: CheckpointManagerOptions, n: int | None) -> preservation.BestN:
    """Returns the policy that ranks by `best_fn`, which must be there."""
    assert options.best_fn is not None
    return preservation.BestN(
        get_metric_fn=options.best_fn,
        reverse=options.best_mode == "min",
        n=n,
        keep_checkpoints_without_metrics=options.keep_checkpoints_without_metrics,
    )


def native_options(options: CheckpointManagerOptions, is_local: bool) -> dict[str, Any]:
    """Returns the keywords of `milepost.CheckpointManager`, without policies and metadata.

    Raises:
      Unsupported: an option that this store or Milepost cannot follow.
    """
    _refuse(options, is_local)
    name_format = options.step_name_format or step_names.standard_name_format(
        step_prefix=options.step_prefix, step_format_fixed_length=options.step_format_fixed_length
    )
    write, read = step_names.native_formats(name_format)
    async_options = options.async_options or AsyncOptions()
    keywords: dict[str, Any] = {
        "read_only": options.read_only,
        "timeout": async_options.timeout_secs,
        "read_formats": tuple((f.prefix, f.width) for f in read),
        "sweep_at_start": options.cleanup_tmp_directories,
    }
    if options.todelete_subdir is not None:
        keywords["trash"] = options.todelete_subdir
    if is_named(options):
        keywords.update(step_prefix=write.prefix, step_width=write.width)
    return {**keywords, **storage(options)}


def is_named(options: CheckpointManagerOptions) -> bool:
    """Tells whether the options say how steps are named; else the run itself does, or plain numbers
    are."""
    named = (options.step_prefix, options.step_format_fixed_length, options.step_name_format)
    return any(name is not None for name in named)


def storage(options: CheckpointManagerOptions) -> dict[str, Any]:
    """Returns how arrays are stored, as keywords of `milepost.save` and the native manager."""
    keywords: dict[str, Any] = {}
    if options.compression is not None:
        keywords["compression"] = options.compression
    if not options.write_tree_metadata:
        keywords["consolidate"] = "never"
    return keywords


def _refuse(options: CheckpointManagerOptions, is_local: bool) -> None:
    import milepost as mp

    if options.todelete_full_path is not None:
        raise mp.Unsupported(
            "todelete_full_path moves steps within a bucket, and object stores cannot move; "
            "use todelete_subdir on a local file system, or let steps be deleted"
        )
    mode = (options.atomicity_options or AtomicityOptions()).mode
    own = AtomicityMode.ATOMIC_RENAME if is_local else AtomicityMode.COMMIT_FILE
    if mode not in (AtomicityMode.AUTO, own):
        raise mp.Unsupported(
            f"steps are committed by {'a rename' if is_local else 'their record'} here; leave "
            f"atomicity_options out. mode=`{mode.value}`"
        )
    if options.temporary_path_class is not None:
        raise mp.Unsupported(
            "how a step is built and committed is not exchangeable; leave temporary_path_class "
            f"out. temporary_path_class=`{options.temporary_path_class.__name__}`"
        )
    if not is_local and options.file_options.path_permission_mode is not None:
        raise mp.Unsupported("an object store has no path_permission_mode; leave it out")
    _refuse_processes(options)


def _refuse_processes(options: CheckpointManagerOptions) -> None:
    processes = options.multiprocessing_options
    active, primary = processes.active_processes, processes.primary_host
    if active is not None and options.create:
        raise NotImplementedError(
            "create=True with active_processes is not supported. Please create the root directory "
            "yourself."
        )
    if active is not None and primary is not None and primary not in active:
        raise ValueError(
            f"the primary host is one of the active processes. primary_host=`{primary}`, "
            f"active_processes=`{sorted(active)}`"
        )
    count = _process_count()
    if primary is not None and primary >= count:
        raise ValueError(
            f"there is no such process to commit. primary_host=`{primary}`, processes=`{count}`"
        )


def _process_count() -> int:
    """Returns how many processes jax runs on; one where it was not told of others."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return 1
    return jax.process_count()
