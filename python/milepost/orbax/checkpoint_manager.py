"""A drop-in for `orbax.checkpoint.CheckpointManager`, over the native manager.

```text
save(step) ─▶ policy ─▶ handlers ─▶ items ─▶ native save ─▶ committed ─▶ old steps go
                 │no                             └ failed: the next call tells, once
restore(step) ─▶ native step ─▶ handlers ─▶ values   (none of ours there: Orbax's, Flax's)
```

Where it differs from Orbax, on purpose: what is in flight is not listed; the newest step is never
deleted by a policy; metrics are stored in any case, NaN is the worst, and order is that of the
numbers; an error in `best_fn` is raised before anything is written; `force` does not overwrite and
a read-only manager writes nothing, forced or not; a step is invisible before its first byte is
deleted; a fresh manager restores and describes what it was never told.
"""

from __future__ import annotations

import logging
import operator
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import milepost as mp
from milepost._together import declining

from . import _bridge, _manager_foreign, _manager_log, _manager_restore, _manager_setup, _metrics
from . import _place_of_checkpoint, checkpoint_args, multihost
from . import _manager_options as _options
from ._composite import Composite, CompositeArgs
from ._manager_due import Due
from ._manager_foreign import ForeignSteps
from ._manager_items import RESTORE, SAVE
from ._manager_log import SaveLog
from ._manager_options import CheckpointManagerOptions
from ._manager_policies import Policies
from ._manager_saves import Saves
from ._manager_setup import is_async_checkpointer
from ._native_run import NativeRun
from ._run_path import is_local, path_of, url_of
from .abstract_checkpoint_manager import AbstractCheckpointManager
from .metadata import RootMetadata, StepMetadata
from .options import AsyncOptions, FileOptions, MultiprocessingOptions

__all__ = [
    "AsyncOptions",
    "CheckpointManager",
    "CheckpointManagerOptions",
    "FileOptions",
    "MultiprocessingOptions",
    "StepAlreadyExistsError",
    "is_async_checkpointer",
]

_LOG = logging.getLogger(__name__)

DEFAULT_ITEM_NAME = _bridge.DEFAULT_ITEM
METRIC_ITEM_NAME = _manager_setup.METRICS_ITEM
METADATA_ITEM_NAME = "metadata"
RESERVED_ITEM_NAMES: list[str] = []

StepAlreadyExistsError = mp.StepAlreadyExists
"""The step is there already; a ValueError."""


class CheckpointManager(AbstractCheckpointManager):
    """Saves, finds, restores and keeps the steps of a run."""

    def __init__(
        self,
        directory: Any,
        checkpointers: Any | None = None,
        options: CheckpointManagerOptions | None = None,
        metadata: Mapping[str, Any] | None = None,
        item_names: Sequence[str] | None = None,
        item_handlers: Any | None = None,
        logger: Any | None = None,
        handler_registry: Any | None = None,
    ) -> None:
        """Opens the run, which is created if it is not there.

        Args:
          directory: a path, relative ones too, or a URL.
          checkpointers: a Checkpointer, or several by item: the oldest API.
          options: see `CheckpointManagerOptions`.
          metadata: of the run; stored when the run is created and never changed again.
          item_names: the items there are; None: by what is saved.
          item_handlers: the handler of the one item, or handlers by item.
          logger: its `log_entry(dict)` is told of every save and restore.
          handler_registry: handlers by item and args.

        Raises:
          ValueError: options or arguments that exclude each other.
          Unsupported: options that cannot be followed here.
        """
        self._options = options = options or CheckpointManagerOptions()
        given = _manager_setup.Given(checkpointers, item_names, item_handlers, handler_registry)
        self._items, self._default = _manager_setup.item_handlers(given, options)
        self._is_async = _manager_setup.is_async(given, options)
        asynchronous = _manager_setup.async_options(given, options)
        if asynchronous.post_finalization_callback is not None and not self._is_async:
            raise ValueError("post_finalization_callback needs asynchronous saves")
        self._url = url_of(directory)
        self._logger = logger
        keywords = _options.native_options(options, is_local(self._url))
        keywords["timeout"] = self._timeout = asynchronous.timeout_secs
        if options.create and not options.read_only:
            _manager_setup.create_run(self._url, options.file_options.path_permission_mode)
        self._saves = Saves(_manager_setup.finish_of(options, asynchronous))
        self._foreign = ForeignSteps(self._url, _foreign_prefix(options, keywords))
        self._policies = Policies(self._url, options, self._saves, self._foreign)
        self._given_metadata = dict(metadata or {})
        if metadata and options.save_root_metadata and not options.read_only:
            keywords["metadata"] = dict(metadata)
        self._native = NativeRun(
            self._url,
            together=False if options.read_only else _manager_setup.meeting(self._url, options, self._timeout),
            decision=None if options.read_only else self._policies.decision(),
            preservation=None if options.read_only else self._policies.preservation(),
            **keywords,
        )
        self._policies.native = self._native
        self._due = Due(self._native, self._policies, self._saves)
        self._closed = False
        self._last_saved: float | None = None
        self._check_names(keywords)
        # With whom the run is listed.
        self._listing = None
        if options.single_host_load_and_broadcast:
            self._listing = _manager_setup.meeting(self._url, options, self._timeout) or None
        if self._listing is not None:
            self._native.list_as_first(self._listing)
        if "metadata" in keywords and not self._native.metadata:
            _LOG.warning("metadata is stored when a run is created, not later. run=%s", self._url)

    # --- what is there

    @property
    def directory(self) -> Any:
        """The run: a path, or a path object of its URL."""
        return path_of(self._url)

    @property
    def native(self) -> mp.CheckpointManager:
        """The native manager: pins, plans, statistics, events, preemption. In several processes it
        is JAX that tells all of them of preemption, at one step."""
        return self._native

    def all_steps(self, read: bool = False) -> Sequence[int]:
        """Returns the committed steps, ascending; `read` lists the run again first. In several
        processes it waits for the save on its way, so that all list the same."""
        if read:
            self.reload()
        if self._native.together is not None:
            # Else one process might list what another does not yet.
            self._saves.wait_committed()
        return self._native.steps() or self._foreign.steps()

    def latest_step(self) -> int | None:
        """Returns the newest committed step; None where there is none."""
        steps = self.all_steps()
        return steps[-1] if steps else None

    def best_step(self) -> int | None:
        """Returns the best step by `best_fn` or a `BestN` policy, the latest if neither is there.

        None where no step has metrics.
        """
        best = self._policies.best()
        if best is None:
            return self.latest_step()
        if self._native.together is not None:
            self._saves.wait_committed()
        ranked = best.ranked(self._policies.steps())
        return ranked[0][0] if ranked else None

    def reload(self) -> None:
        """Lists the run again: what other processes saved and deleted. All call it with
        `single_host_load_and_broadcast`."""
        self._native.reload()
        self._foreign.forget()
        if self._listing is not None:
            self._native.list_as_first(self._listing)

    def metrics(self, step: int) -> Any | None:
        """Returns the metrics of a step as they were saved; None where it has none, or is not
        there."""
        step = _step_number(step)
        if step in self._policies.unwritten:
            return self._policies.unwritten[step]
        try:
            opened, foreign = self._open(step)
        except mp.NotFound:
            return None
        return foreign.metrics if foreign is not None else _metrics.of_checkpoint(opened)

    # --- saving

    def should_save(self, step: int) -> bool:
        """Tells whether `save(step)` would save now. In several processes all ask, and the primary one decides by
        clocks and functions."""
        step = _step_number(step)
        return not self._options.read_only and self._due.is_due(step)

    def save(
        self,
        step: int,
        items: Any | None = None,
        save_kwargs: Mapping[str, Any] | None = None,
        metrics: Any | None = None,
        force: bool | None = False,
        args: Any | None = None,
        custom_metadata: dict[str, Any] | None = None,
    ) -> bool:
        """Saves a step if the policy wants it; returns when the state is captured.

        Args:
          step: a whole number (of numpy or jax, too). A path or URL saves a checkpoint that stands
            alone there, asking no policy and counting for none; `force` then replaces what is
            there.
          items: what to save, of the API before `args`; args, too.
          save_kwargs: keywords for the args that are made of `items`; by item where `items` is.
          metrics: numbers by name, nested at will; stored in any case, and what `best_fn` is asked
            with.
          force: asks no policy, and saves in the foreground. Never overwrites a step.
          args: SaveArgs of the one item, or a Composite of them by item; an item that is None is
            left out.
          custom_metadata: JSON that is kept with the step.

        Returns:
          Whether a save was started.

        Raises:
          StepAlreadyExists: the step is there; a ValueError.
          ValueError: args that do not fit the manager or the item.
          Exception: what `best_fn` raised, before anything is written; how an earlier save failed.
        """
        if isinstance(step, (str, os.PathLike)):
            given = (items, save_kwargs, args)
            return self._save_alone(step, given, metrics, bool(force), custom_metadata)
        step = _step_number(step)
        is_due = not self._options.read_only and (bool(force) or self.should_save(step))
        together = self._native.together if is_due else None
        with declining(together):
            args = self._save_args(items, save_kwargs, args)
        if not is_due:
            return False
        log = SaveLog(step, self._url, self._last_saved)
        with declining(together, is_old=True):
            self._saves.settle()
            self._saves.check()
        with declining(together):
            if not self._native.steps() and step in self._foreign.steps():
                raise mp.StepAlreadyExists(
                    f"another library's step is there, and is not overwritten. step=`{step}`, "
                    f"run=`{self._url}`"
                )
            measured = None if metrics is None else _metrics.plain(metrics)
            self._policies.rank(measured)
            log.waiting()
            custom = _metrics.beside(custom_metadata)
        if together is not None and self._options.prevent_write_metrics:
            # Nobody reads them in the store: all rank by those of the first process.
            measured = together.first(lambda: measured)
        self._save_step(step, args, measured, bool(force), custom)
        if self._logger is not None:
            self._last_saved = time.time()
            preempted = self._native._is_signalled() or multihost.reached_preemption(step)
            self._logger.log_entry(log.ended(synchronous=not self._is_async, preempted=preempted))
        return True

    def delete(self, step: int) -> None:
        """Deletes a step: it is gone when this returns, its bytes are freed in the background. All
        processes call it.

        Raises:
          NotFound: it is not there; a FileNotFoundError.
        """
        if self._options.read_only:
            _LOG.warning("a read-only manager deletes nothing. run=%s", self._url)
            return
        step = _step_number(step)
        if not self._native.steps() and step in self._foreign.steps():
            raise mp.ForeignFormat(
                f"a step of another library is not deleted. step=`{step}`, run=`{self._url}`"
            )
        if self._native.together is not None:
            self._saves.wait_committed()
        self._native.delete(step)
        self._policies.unwritten.pop(step, None)

    # --- restoring

    def restore(
        self,
        step: int | None,
        items: Any | None = None,
        restore_kwargs: Mapping[str, Any] | None = None,
        directory: Any | None = None,
        args: Any | None = None,
    ) -> Any:
        """Restores a step, after what is in flight has ended.

        Args:
          step: its number; None: the newest. A path or URL: a checkpoint that stands alone.
          items: targets, of the API before `args`; args, too.
          restore_kwargs: keywords for the args that are made of `items`.
          directory: another run to restore from.
          args: RestoreArgs of the one item, or a Composite of them by item; None: all as saved.

        Returns:
          The one item, or a Composite by item.

        Raises:
          NotFound: no such step, or no step at all; a FileNotFoundError.
          ItemNotFound: an item is not there; a KeyError.
          ValueError: args that do not fit the manager or the item.
        """
        started = time.time()
        if items is not None and args is None and checkpoint_args.is_args(items):
            items, args = None, items
        opened, foreign = self._opened(step, directory)
        opened_at = time.time()
        if self._default is None:
            here = foreign if foreign is not None else opened
            self._default = _manager_foreign.is_default(here)
        if args is None and (items is not None or restore_kwargs is not None):
            args = self._legacy(items, restore_kwargs, RESTORE, opened)
        if args is not None:
            self._check_mode(args)
        if foreign is not None:
            value = _manager_foreign.restore(foreign, args, self._default)
        else:
            value = _manager_restore.restore(opened, self._items, args, self._default)
        if self._logger is not None:
            entry = _manager_log.restore_entry(step, self._url, started, opened_at)
            self._logger.log_entry(entry)
        return value

    def item_metadata(self, step: int) -> Any:
        """Returns what is known of the items without reading them: of the one, or a Composite."""
        if step is None:
            raise ValueError("item_metadata is that of a step: name one")
        return self.metadata(step).item_metadata

    def metadata(self, step: int | None = None) -> Any:
        """Returns the `StepMetadata` of a step, or the `RootMetadata` of the run."""
        if step is None:
            stored = dict(self._native.metadata or {})
            if not stored and self._options.read_only:
                stored = self._given_metadata
            return RootMetadata(custom_metadata=stored)
        opened, foreign = self._open(_step_number(step))
        if foreign is not None:
            return StepMetadata(
                item_handlers={item.name: item.handler for item in foreign.items.values()},
                metrics=foreign.metrics or {},
                commit_timestamp_nsecs=foreign.committed_ns,
                custom_metadata=foreign.metadata,
            )
        return _manager_restore.described(opened, self._items, self._default)

    # --- the background

    def wait_until_finished(self) -> None:
        """Waits until nothing is in flight and nothing is left to delete.

        Raises:
          Exception: the failure of a save, once.
        """
        self._saves.wait()
        self._native.wait()
        self._saves.check_all()

    def check_for_errors(self) -> None:
        """Raises the failure of a save that has ended, once; does not wait."""
        self._saves.check_all()

    def is_saving_in_progress(self) -> bool:
        """Tells whether a save is on its way."""
        return self._saves.is_any() or self._native.is_saving()

    def reached_preemption(self, step: int) -> bool:
        """Tells whether preemption was signalled: to the native manager before the last `save` or
        `should_save`, or by jax at `step`.
        """
        return self._native.preempted or multihost.reached_preemption(_step_number(step))

    def close(self) -> None:
        """Waits for all that is going on and refuses later saves.

        Raises:
          Exception: the failure of a save, once.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.wait_until_finished()
        finally:
            self._native.close()
            self._items.close()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        steps = self._native.steps() or self._foreign.steps()
        return f"CheckpointManager({self._url!r}, steps={steps})"

    # --- items

    def _save_args(self, items: Any, kwargs: Mapping[str, Any] | None, args: Any | None) -> Any:
        if items is not None and args is None and checkpoint_args.is_args(items):
            items, args = None, items
        if items is None and args is None:
            raise ValueError("Must provide `args` for `save`.")
        if args is None:
            args = self._legacy(items, kwargs, SAVE, None)
        if not checkpoint_args.is_args(args):
            raise ValueError(
                f"Expected args of type `CheckpointArgs`; found {type(args)}. "
                "Wrap it: args=StandardSave(tree)"
            )
        if self._default is None:
            self._default = not isinstance(args, Composite)
        self._check_mode(args)
        return args

    def _legacy(
        self, values: Any, kwargs: Mapping[str, Any] | None, which: int, opened: Any | None
    ) -> Any:
        """Returns args for values and keywords, of the one item or by item."""
        infos = {} if opened is None else opened.items

        def args_of(name: str, value: Any, more: Mapping[str, Any] | None) -> Any:
            return self._items.legacy_args(name, which, value, more or {}, infos.get(name))

        if self._default is not False:
            return args_of(DEFAULT_ITEM_NAME, values, kwargs)
        values, kwargs = values or {}, kwargs or {}
        names = sorted({*values, *kwargs})
        return CompositeArgs(**{n: args_of(n, values.get(n), kwargs.get(n)) for n in names})

    def _check_mode(self, args: Any) -> None:
        if self._default and isinstance(args, Composite):
            raise ValueError(
                "this manager saves and restores one thing: give its args, no Composite of items"
            )
        if not self._default and not isinstance(args, Composite):
            raise ValueError(
                "this manager saves and restores items by name: give a Composite of their args"
            )

    def _save_items(
        self, args: Any, together: mp.Together | None
    ) -> tuple[_bridge.PreparedItems, dict[str, Any]]:
        """Returns the native items, and the handler of each."""
        with declining(together):
            named = {DEFAULT_ITEM_NAME: args} if self._default else dict(args.items())
            pairs = {n: (self._items.for_save(n, a), a) for n, a in named.items() if a is not None}
        handlers = {name: handler for name, (handler, _) in pairs.items()}
        return _bridge.items_of(pairs, together), handlers

    # --- saves and steps

    def _save_step(
        self, step: int, args: Any, metrics: Any | None, force: bool, custom: dict[str, Any]
    ) -> None:
        is_written = metrics is not None and not self._options.prevent_write_metrics
        numbers = _metrics.add(custom, metrics) if is_written else {}
        prepared, handlers = self._save_items(args, self._native.together)
        try:
            with declining(self._native.together):
                mode = self._options.file_options.path_permission_mode
                _manager_setup.create_run(self._url, mode)
            handle = self._native.save(
                step,
                items=prepared.items,
                item_metadata=prepared.item_metadata,
                metrics=numbers,
                metadata=custom,
                force=True,
                priority="foreground" if force or not self._is_async else "background",
            )
        except BaseException:
            prepared.close()
            raise
        if metrics is not None and not is_written:
            self._policies.unwritten[step] = metrics
        self._items.settle(handlers.items())
        self._saves.follow(handle, step, metrics, prepared.close, wait=not self._is_async)
        if not self._is_async and not self._options.enable_background_delete:
            self._native.wait()

    def _save_alone(
        self, path: Any, given: tuple, metrics: Any | None, force: bool, custom: Any | None
    ) -> bool:
        """Saves a checkpoint that is no step; `given` are items, their keywords and args."""
        if isinstance(path, str) and path.strip().lstrip("+-").isdigit():
            raise ValueError(f"a step is a number; this is text. step=`{path!r}`")
        if self._options.read_only:
            return False
        url = url_of(path)
        together = _manager_setup.meeting(url, self._options, self._timeout) or None
        with declining(together):
            args = self._save_args(*given)
        with declining(together, is_old=True):
            self._saves.check()
        with declining(together):
            _place_of_checkpoint.destination(path, force)
            metadata = _metrics.beside(custom)
            numbers = {} if metrics is None else _metrics.add(metadata, _metrics.plain(metrics))
        prepared, handlers = self._save_items(args, together)
        try:
            handle = mp.save_async(
                url,
                together=together or False,
                items=prepared.items,
                item_metadata=prepared.item_metadata,
                metrics=numbers,
                metadata=metadata,
                overwrite=force,
                **_options.storage(self._options),
            )
        except BaseException:
            prepared.close()
            raise
        self._items.settle(handlers.items())
        wait, timeout = not self._is_async, self._timeout
        self._saves.follow(handle, url, None, prepared.close, wait=wait, timeout=timeout)
        return True

    def _open(self, step: int | None) -> tuple[Any | None, Any | None]:
        """Opens a step of ours, or finds another library's."""
        if step is None and self._listing is not None:
            step = self.latest_step()
        return _manager_foreign.open_step(self._native.open, self._foreign, step)

    def _opened(self, step: Any, directory: Any | None) -> tuple[Any | None, Any | None]:
        """As `_open`, also of another run, or of a checkpoint that stands alone."""
        if isinstance(step, (str, os.PathLike)):
            self._saves.wait()
            found, _ = _place_of_checkpoint.opened(step)
            is_foreign = _place_of_checkpoint.is_foreign(found)
            return (None, found) if is_foreign else (found, None)
        step = None if step is None else _step_number(step)
        if directory is None:
            return self._open(step)
        url = url_of(directory)

        def elsewhere(step: int | None) -> mp.Checkpoint:
            return mp.open(url, step=step)

        return _manager_foreign.open_step(elsewhere, ForeignSteps(url, None), step)

    def _check_names(self, keywords: Mapping[str, Any]) -> None:
        """Refuses to write to a run that names its steps otherwise than the caller says."""
        if self._options.read_only or not _options.is_named(self._options):
            return
        wanted = (keywords["step_prefix"], keywords["step_width"])
        if tuple(self._native.step_format) != wanted:
            prefix, width = self._native.step_format
            self._native.close()
            raise mp.Invalid(
                f"the run names its steps otherwise: like `{prefix}{12:0{width}d}`, not "
                f"`{wanted[0]}{12:0{wanted[1]}d}`. run=`{self._url}`; a run has one "
                "format: save to another directory, or name steps as the run does"
            )


def _step_number(step: Any) -> int:
    """Returns a step of Python, numpy or jax as a whole number."""
    try:
        number = operator.index(step)
    except TypeError:
        kind = type(step).__name__
        raise TypeError(f"a step is a whole number. step=`{step!r}`, type=`{kind}`") from None
    if number < 0:
        raise ValueError(f"a step is not negative. step=`{number}`")
    return number


def _foreign_prefix(options: CheckpointManagerOptions, keywords: Mapping[str, Any]) -> str | None:
    """Returns the prefix of another library's steps; None, all names, where the caller names
    none."""
    return keywords["step_prefix"] if _options.is_named(options) else None
