"""`Checkpointer`: the checkpoints of a training loop.

```text
  save ──▶ policy ──▶ (waits for the save before) ──▶ capture ──▶ Response
                                                       └─ background: write, commit, retention
```

It is a front for `milepost.CheckpointManager`: that names, finds, keeps and deletes the steps. One
save is in flight at a time. A failure that nobody has asked a response for is raised by the next
`save`, `wait` or `close`, once.

**Invariant:** what is listed is committed; a save in flight is never among `checkpoints`.
"""

from __future__ import annotations

import functools
import time
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import milepost as mp
from milepost._together import declining
from milepost.orbax import _metrics
from milepost.orbax.v1 import _items, _loading, _saving
from milepost.orbax.v1._context import Context, get_context
from milepost.orbax.v1._deletion import check_arguments
from milepost.orbax.v1._deletion import start as start_deletion
from milepost.orbax.v1._deprecated import _renamed
from milepost.orbax.v1._operation import AsyncResponse, Cancellation, Response, in_background
from milepost.orbax.v1._source import tree_name
from milepost.orbax.v1._tree_load import check_abstract
from milepost.orbax.v1.path import PathLike
from milepost.orbax.v1.training import preservation_policies
from milepost.orbax.v1.training import save_decision_policies as decisions
from milepost.orbax.v1.training._due import Due, Flying
from milepost.orbax.v1.training._log import Log
from milepost.orbax.v1.training._steps import Steps, number_of
from milepost.orbax.v1.training.metadata import CheckpointMetadata, RootMetadata, of_step


@typing.final
class Checkpointer:
    """The checkpoints of a training loop.

    Example:
      >>> with ocp.training.Checkpointer(directory) as ckptr:
      ...     state = ckptr.load(abstract_state=abstract) if ckptr.latest else init()
      ...     for step in range(ckptr.latest.step + 1 if ckptr.latest else 0, steps):
      ...         state = train_step(state)
      ...         ckptr.save_async(step, state)

    Leaving the block (or `close()`) waits for the last save and raises its error.

    Args:
      directory: The run; created if need be.
      context: Options for all calls; a context that is active at a call goes before it, but for
        names, permissions and memory limits of saves, which the run has from its beginning.
      save_decision_policy: When to save. None: the first step, then whenever no save is in flight,
        and when preemption is signalled.
      preservation_policy: What to keep. None: everything. The newest step is kept in any case.
      step_name_format: How steps are named. None: as the run has it, a new one by their number.
        A run keeps the format of its first step; a composite format finds the others.
      custom_metadata: A dict that belongs to all steps; kept from the first time.
      cleanup_tmp_directories: Sweep what dead writers left, in the background.
      lightweight_initialize: Orbax then skips times and metrics. Here they are in the one small
        record that is read of a step anyway: they are known with True, too.
      logger: Its `log_entry(dict)` is called after each save and load with seconds and step.
    """

    def __init__(
        self,
        directory: PathLike,
        *,
        context: Context | None = None,
        save_decision_policy: decisions.SaveDecisionPolicy | None = None,
        preservation_policy: preservation_policies.PreservationPolicy | None = None,
        step_name_format: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
        cleanup_tmp_directories: bool = False,
        lightweight_initialize: bool = False,
        logger: Any = None,
    ):
        del lightweight_initialize
        self._context = Context(context if context is not None else get_context())
        self._decision = save_decision_policy or decisions.AnySavePolicy(
            [
                decisions.InitialSavePolicy(),
                decisions.ContinuousCheckpointingPolicy(),
                decisions.PreemptionCheckpointingPolicy(),
            ]
        )
        self._flying: Flying | None = None
        self._deleting: Response[bool] | None = None
        self._policy_errors: list[Exception] = []
        self._steps = Steps(
            directory,
            self._context,
            preservation_policy or preservation_policies.PreserveAll(),
            step_name_format,
            lambda: None if self._flying is None else self._flying.metadata,
            self._policy_errors.append,
            sweep_at_start=cleanup_tmp_directories,
            metadata=_saving.check_metadata(custom_metadata),
        )
        self._due = Due(self._steps, self._decision, self._context, lambda: self._flying)
        self._log = Log(logger, self.directory)

    @property
    def directory(self) -> Any:
        """The run."""
        return self._steps.directory

    @property
    def latest(self) -> CheckpointMetadata[None] | None:
        """The newest committed step; None where there is none."""
        found = self.checkpoints
        return found[-1] if found else None

    @property
    def checkpoints(self) -> Sequence[CheckpointMetadata[None]]:
        """All committed steps, ascending; as last listed (`reload`) and changed by this object.

        Where the run has none of Milepost's own, those that Orbax left there. In several processes
        it waits for the save in flight, so that all list the same.
        """
        if self._flying is not None and self._steps.manager.together is not None:
            self._flying.wait_committed()
        return self._steps.listed()

    def should_save(self, step: int | CheckpointMetadata[Any]) -> bool:
        """Returns whether `save` would save this step without `force`. In several processes all
        ask."""
        number = number_of(step)
        if self._steps.manager.together is not None:
            self._wait_for_deletion()
        return self._due.is_due(number)

    def save(
        self,
        step: int,
        state: Any,
        *,
        checkpointable_name: str = _items.STATE,
        force: bool = False,
        overwrite: bool = False,
        metrics: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Saves a step if the policy says so, and returns once it is committed.

        Args:
          step: Its number, not negative.
          state: A pytree; see `v1.save`.
          checkpointable_name: Name of the item.
          force: Do not ask the policy.
          overwrite: Replace the step if it exists: the old one stays until the new one takes its
            place. Where the policy says no, nothing happens.
          metrics: JSON values, for policies that rank steps.
          custom_metadata: A dict of JSON values that belongs to the step.

        Returns:
          Whether it was saved.

        Raises:
          StepAlreadyExistsError: (FileExistsError) the step exists, and `overwrite` is False.
          Invalid: Something that is no checkpoint of Milepost is in the step's place.
        """
        return self.save_checkpointables(
            step,
            {checkpointable_name: state},
            force=force,
            overwrite=overwrite,
            metrics=metrics,
            custom_metadata=custom_metadata,
        )

    def save_async(
        self,
        step: int,
        state: Any,
        *,
        checkpointable_name: str = _items.STATE,
        force: bool = False,
        overwrite: bool = False,
        metrics: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> AsyncResponse[bool] | None:
        """Saves a step if the policy says so; returns once it is captured, None where it said no.

        Waits for the save before. See `save`.
        """
        return self.save_checkpointables_async(
            step,
            {checkpointable_name: state},
            force=force,
            overwrite=overwrite,
            metrics=metrics,
            custom_metadata=custom_metadata,
        )

    def save_checkpointables(
        self,
        step: int,
        checkpointables: dict[str, Any],
        *,
        force: bool = False,
        overwrite: bool = False,
        metrics: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Saves several objects as items of a step; see `save` and `v1.save_checkpointables`."""
        with Cancellation() as stop:
            response = self._start(
                step, checkpointables, force, overwrite, metrics, custom_metadata, stop
            )
            if response is None:
                return False
            saved = response.result()
        # What the policy does not keep is not listed any more when this returns.
        self._steps.manager.wait()
        return saved

    def save_checkpointables_async(
        self,
        step: int,
        checkpointables: dict[str, Any],
        *,
        force: bool = False,
        overwrite: bool = False,
        metrics: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> AsyncResponse[bool] | None:
        """Saves several objects as items of a step in the background; see `save_async`."""
        return self._start(
            step, checkpointables, force, overwrite, metrics, custom_metadata, Cancellation()
        )

    def _start(
        self,
        step: int,
        checkpointables: dict[str, Any],
        force: bool,
        overwrite: bool,
        metrics: Any,
        custom_metadata: Any,
        cancellation: Cancellation,
    ) -> Response[bool] | None:
        begun = time.monotonic()
        self._wait_for_deletion()
        step = number_of(step)
        if not checkpointables:
            raise ValueError("`checkpointables` must be a dict that is not empty")
        _items.check_names(checkpointables, "checkpointables")
        together = self._steps.manager.together
        verdict = self._due.verdict(step, force=force, overwrite=overwrite)
        with declining(None if verdict == "not due" else together):
            plain = _metrics.plain(metrics) if metrics else None
            metadata = self._record_metadata(plain, custom_metadata)
            if verdict == "exists":
                raise self._steps.already_exists(step)
        if verdict == "not due":
            self._raise_background_errors()
            return None
        self._wait_for_save()
        with declining(together, is_old=True):
            self._raise_background_errors(is_saving=together is not None)
        waited = time.monotonic() - begun
        flat = _metrics.recorded(plain)[0] if plain is not None else None

        def submit(**keywords: Any) -> Any:
            keywords.pop("engine", None)  # the run's own, from its context
            handle = self._steps.manager.save(
                step, force=True, overwrite=overwrite, metrics=flat, metadata=metadata, **keywords
            )
            if not handle:
                raise mp.Conflict(f"step {step} was not saved: {handle.reason}")
            return handle

        saving = _saving.start(
            f"save of step {step} to {self._steps.location}",
            checkpointables,
            submit,
            get_context(self._context),
            location=str(self._steps.path_of(step)),
            cancellation=cancellation,
            meeting=together,
        )
        self._log.entry("save", step, begun, wait_for_prev_duration_secs=waited)
        self._flying = Flying(
            CheckpointMetadata(
                step,
                self._steps.path_of(step),
                metadata=None,
                commit_timestamp_nsecs=time.time_ns(),
                metrics=plain,
            ),
            saving,
        )
        return saving.mapped(lambda _: True)

    def _record_metadata(self, plain: Any, custom_metadata: Any) -> dict[str, Any]:
        metadata = _saving.check_metadata(custom_metadata) or {}
        if plain is not None:
            whole = _metrics.recorded(plain)[1]
            if whole is not None:
                metadata[_metrics.MEMBER] = {"metrics": whole}
        return metadata

    def cancel(self, step: int | CheckpointMetadata[Any] | None = None) -> None:
        """Cancels the save in flight and waits until it has ended.

        Args:
          step: Delete this step, too, if it was committed before.
        """
        self._wait_for_deletion()
        flying = self._flying
        if flying is not None:
            flying.response.cancel()
            flying.response.exception()
        if step is not None and any(one.step == number_of(step) for one in self.checkpoints):
            self._steps.manager.delete(number_of(step))

    def load(
        self,
        step: int | CheckpointMetadata[Any] | None = None,
        abstract_state: Any = None,
        *,
        checkpointable_name: str | None = _items.STATE,
    ) -> Any:
        """Loads a pytree of a step; waits for a save in flight first.

        Args:
          step: Its number or metadata; None: the newest.
          abstract_state: See `v1.load`.
          checkpointable_name: The item; "AUTO": `state`, else the first tree.

        Raises:
          StepNotFoundError: (FileNotFoundError) there is no such step; the message lists them.
        """
        load, _ = self._prepared_load(step, abstract_state, checkpointable_name)
        return load()

    def load_async(
        self,
        step: int | CheckpointMetadata[Any] | None = None,
        abstract_state: Any = None,
        *,
        checkpointable_name: str | None = _items.STATE,
    ) -> AsyncResponse[Any]:
        """Loads a pytree of a step in the background; it is kept meanwhile. See `load`."""
        load, number = self._prepared_load(step, abstract_state, checkpointable_name, lease=True)
        return in_background(f"load of step {number} of {self._steps.location}", load)

    def _prepared_load(
        self, step: Any, abstract: Any, name: str | None, lease: bool = False
    ) -> tuple[Any, int]:
        begun = time.monotonic()
        context = get_context(self._context)
        abstract = _loading.unwrapped(abstract)
        if abstract is not None:
            check_abstract(abstract)
        checkpoint, source = self._opened(step, lease)
        if name is None or name == _items.AUTO:
            name = tree_name(source, name)
        elif name not in source.names():
            raise _loading.missing_items([name], checkpoint.path, source.names())

        def load() -> Any:
            loaded = source.load(name, abstract, context)
            self._log.entry("restore", checkpoint.step, begun)
            return loaded

        return load, checkpoint.step

    def load_checkpointables(
        self,
        step: int | CheckpointMetadata[Any] | None = None,
        abstract_checkpointables: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Loads several items of a step; see `load` and `v1.load_checkpointables`."""
        load, _ = self._prepared_several(step, abstract_checkpointables)
        return load()

    def load_checkpointables_async(
        self,
        step: int | CheckpointMetadata[Any] | None = None,
        abstract_checkpointables: Mapping[str, Any] | None = None,
    ) -> AsyncResponse[dict[str, Any]]:
        """Loads several items of a step in the background; see `load_checkpointables`."""
        load, number = self._prepared_several(step, abstract_checkpointables, lease=True)
        return in_background(f"load of step {number} of {self._steps.location}", load)

    def _prepared_several(
        self, step: Any, abstract: Any, lease: bool = False
    ) -> tuple[Any, int]:
        begun = time.monotonic()
        context = get_context(self._context)
        checkpoint, source = self._opened(step, lease)
        wanted = _loading.wanted_items(source, _loading.unwrapped(abstract))

        def load() -> dict[str, Any]:
            loaded = {name: source.load(name, one, context) for name, one in wanted.items()}
            self._log.entry("restore", checkpoint.step, begun)
            return loaded

        return load, checkpoint.step

    def _opened(self, step: Any, lease: bool = False) -> tuple[CheckpointMetadata[None], Any]:
        """A step and its items, once the save in flight has ended."""
        context = get_context(self._context)
        _saving.check_context(context, saving=False)
        self._wait_for_save()
        return self._steps.open(step, context, lease=lease)

    def metadata(
        self, step: int | CheckpointMetadata[Any] | None = None
    ) -> CheckpointMetadata[Any]:
        """Returns what a step's pytree is; see `v1.metadata`."""
        checkpoint, source = self._opened(step)
        name = tree_name(source, _items.AUTO)
        described = source.describe(name, get_context(self._context))
        return of_step(checkpoint, source, described)

    def checkpointables_metadata(
        self, step: int | CheckpointMetadata[Any] | None = None
    ) -> CheckpointMetadata[dict[str, Any]]:
        """Returns what describes each item of a step; see `v1.checkpointables_metadata`."""
        checkpoint, source = self._opened(step)
        context = get_context(self._context)
        described = {name: source.describe(name, context) for name in source.names()}
        return of_step(checkpoint, source, described)

    def root_metadata(self) -> RootMetadata:
        """Returns what belongs to all steps."""
        custom = dict(self._steps.manager.metadata or {})
        return RootMetadata(directory=self.directory, custom_metadata=custom or None)

    def delete(
        self,
        step: int | CheckpointMetadata[Any],
        *,
        checkpointable_name: str | None = None,
        missing_ok: bool = False,
    ) -> bool:
        """Deletes a step, or one item of it, whatever the preservation policy says.

        Args:
          step: Its number or metadata.
          checkpointable_name: Only this item; see `v1.delete`.
          missing_ok: Return False where there is nothing to delete, instead of an error.

        Returns:
          Whether something was deleted.

        Raises:
          StepNotFoundError: (FileNotFoundError) there is no such step.
          FileNotFoundError: The step has no such item.
          ValueError: The item is the step's only one.
        """
        response = self.delete_async(
            step, checkpointable_name=checkpointable_name, missing_ok=missing_ok
        )
        return response.result()

    def delete_async(
        self,
        step: int | CheckpointMetadata[Any],
        *,
        checkpointable_name: str | None = None,
        missing_ok: bool = False,
    ) -> AsyncResponse[bool]:
        """Deletes in the background; later saves and deletions wait for it. See `delete`."""
        number = number_of(step)
        check_arguments(checkpointable_name, missing_ok)
        self._wait_for_deletion()
        self._wait_for_save()
        what = f"delete step {number} of {self._steps.location}"
        together = self._steps.manager.together
        has = functools.partial(self._steps.has, number)
        if not (has() if together is None else together.first(has)):
            if not missing_ok:
                self._steps.existing(number)  # raises, and lists what is there
            return in_background(what, lambda: False)
        if checkpointable_name is None:

            def work() -> bool:
                self._steps.manager.delete(number)
                return True

            if together is not None:  # what is saved next must not come between
                work()
            self._deleting = in_background(what, work if together is None else lambda: True)
        else:
            path = str(self._steps.existing(number).path)

            def commit(**keywords: Any) -> None:
                manager = self._steps.manager
                manager.save(number, force=True, overwrite=True, **keywords).result()

            self._deleting = start_deletion(
                path, checkpointable_name, missing_ok, get_context(self._context), commit, together
            )
        return self._deleting

    def reload(self) -> None:
        """Lists the run again: what others have added or deleted is seen."""
        self._wait_for_deletion()
        self._steps.reload()

    def is_saving_in_progress(self) -> bool:
        """Returns whether a save is in flight."""
        return self._flying is not None and not self._flying.response.done()

    def wait(self) -> None:
        """Waits for saves and deletions; raises the error of one that nobody was told of."""
        self._wait_for_deletion()
        self._wait_for_save()
        self._raise_background_errors()
        self._steps.manager.wait()

    def close(self) -> None:
        """Waits as `wait` does, and ends the manager's threads, in any case."""
        try:
            self.wait()
        finally:
            self._steps.manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def _wait_for_deletion(self) -> None:
        deleting, self._deleting = self._deleting, None
        if deleting is not None:
            deleting.check()

    def _wait_for_save(self) -> None:
        """Waits for the save in flight; its error is kept for whoever asks first."""
        if self._flying is not None:
            self._flying.response.wait_until_done()

    def _raise_background_errors(self, *, is_saving: bool = False) -> None:
        """Raises, once, what went wrong in the background and nobody was told of; where several
        processes save next, not what another one has cancelled and tells."""
        flying = self._flying
        if flying is not None and flying.response.done():
            if not (is_saving and flying.response.was_cancelled()):
                flying.response.check()
        if self._policy_errors:
            raise self._policy_errors.pop(0)

    save_pytree = _renamed("save_pytree", save)
    save_pytree_async = _renamed("save_pytree_async", save_async)
    load_pytree = _renamed("load_pytree", load)
    load_pytree_async = _renamed("load_pytree_async", load_async)
    pytree_metadata = _renamed("pytree_metadata", metadata)
