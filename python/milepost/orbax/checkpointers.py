"""Checkpointers: one path, one checkpoint, atomic; at once or in the background.

Each save is one standalone Milepost checkpoint. A checkpointer with one handler saves the item
``default``, one with a CompositeCheckpointHandler the items of its args.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Mapping
from typing import Any

import milepost as mp
from milepost._errors import AlreadyExists, MilepostError
from milepost._save import cancel_and_wait, may_hold
from milepost._together import declining

from . import _bridge, _manager_foreign, _place_of_checkpoint, checkpoint_args, metadata, multihost
from ._background import InFlight
from ._composite import CompositeResults
from ._manager_saves import Finish
from ._run_path import url_of
from .handlers import CompositeCheckpointHandler, PyTreeCheckpointHandler, StandardCheckpointHandler
from .handlers import base
from .handlers.pytree import StandardRestoreArgs, StandardSaveArgs, compression_of
from .options import (
    AsyncOptions,
    AtomicityMode,
    AtomicityOptions,
    FileOptions,
    MultiprocessingOptions,
)

__all__ = [
    "AbstractCheckpointer",
    "AsyncCheckpointer",
    "Checkpointer",
    "PyTreeCheckpointer",
    "StandardCheckpointer",
    "construct_checkpoint_args",
]


class AbstractCheckpointer:
    """What every checkpointer does."""

    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        """Saves to a path."""
        raise NotImplementedError

    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Restores from a path."""
        raise NotImplementedError

    def metadata(self, directory: Any) -> Any:
        """What a checkpoint says of itself."""
        raise NotImplementedError

    def structure(self, directory: Any) -> Any:
        """The saved tree with None for each leaf's value."""
        raise NotImplementedError

    def close(self) -> None:
        """Frees what it holds."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def construct_checkpoint_args(handler: Any, for_save: bool, *args: Any, **kwargs: Any) -> Any:
    """Args for a handler from a call in any of Orbax's styles.

    ``(…, args=StandardSave(tree))``; the args alone; ``(tree, save_args=…)``; for a handler without
    registered args whatever was given, kept as it is. An args object without an item, beside an
    item, gets it.
    """
    given = kwargs.get("args")
    if not checkpoint_args.is_args(given) and not isinstance(given, Mapping):
        given = None
    if given is None and args and checkpoint_args.is_args(args[0]):
        given, args = args[0], args[1:]
    if given is not None:
        rest = {name: value for name, value in kwargs.items() if name != "args"}
        return _with_item(given, args, rest) if args or rest else given
    if isinstance(handler, base.NativeHandler):
        return handler.args_classes()[0 if for_save else 1](*args, **kwargs)
    if checkpoint_args.has_registered_args(handler):
        classes = checkpoint_args.get_registered_args_cls(handler)
        return classes[0 if for_save else 1](*args, **kwargs)
    return base.LegacyCall(args, kwargs)


def _with_item(given: Any, args: tuple[Any, ...], rest: dict[str, Any]) -> Any:
    """Args that lack an item, with the one that is given beside them."""
    item = args[0] if len(args) == 1 else rest.get("item")
    alone = len(args) + len(rest) == 1 and item is not None
    if not alone or getattr(given, "item", item) is not None:
        raise ValueError(
            f"{type(given).__name__} is given as args=, and more arguments beside it: "
            f"{[type(one).__name__ for one in args]} {sorted(rest)}"
        )
    given = copy.copy(given)
    given.item = item
    return given


class Checkpointer(AbstractCheckpointer):
    """Saves and restores with any handler, and returns when it is done.

    Args:
        handler: What saves and restores: ours, or your own (see `handlers.base`).
        multiprocessing_options: See `options`.
        file_options: `path_permission_mode` is set on the checkpoint's directories.
        atomicity_options: A checkpoint is published by one rename (local) or one conditional put
            (object stores); a mode that asks for the other one is refused.
        checkpoint_metadata_store, temporary_path_class: Orbax's ways to replace its own parts. Only
            None.
        compression: Of all that is saved: ``"none"`` (the default; Orbax: zstd), ``"zstd"``,
            ``"zstd:LEVEL"``, …

    Raises:
        ValueError: An option that can have no meaning here.
    """

    def __init__(
        self,
        handler: Any,
        *,
        multiprocessing_options: MultiprocessingOptions | None = None,
        file_options: FileOptions | None = None,
        atomicity_options: AtomicityOptions | None = None,
        checkpoint_metadata_store: Any = None,
        temporary_path_class: Any = None,
        compression: str | None = None,
    ) -> None:
        _check_parts(atomicity_options, checkpoint_metadata_store, temporary_path_class)
        self._handler = handler
        self._multiprocessing_options = multiprocessing_options or MultiprocessingOptions()
        self._file_options = file_options or FileOptions()
        self._atomicity_options = atomicity_options or AtomicityOptions()
        self._compression = compression

    @property
    def handler(self) -> Any:
        """The handler."""
        return self._handler

    def save(
        self,
        directory: Any,
        *args: Any,
        force: bool = False,
        custom_metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves to a path and returns when the checkpoint is durable.

        Args:
            directory: A path, relative or absolute, or a url.
            args, kwargs: What to save: ``args=StandardSave(tree)``, or the older ``tree,
                save_args=…``.
            force: Replace what is there. The old checkpoint stays until the new one is whole.
            custom_metadata: A JSON object to keep with the checkpoint.

        Raises:
            ValueError: Something is at the path and `force` is False; args of another handler.
            TypeError: `custom_metadata` is not JSON.
        """
        handle, url = self._begin(directory, args, kwargs, force, custom_metadata, "foreground")
        try:
            saved = handle.result()
        except AlreadyExists:
            raise _place_of_checkpoint.exists(url) from None
        except MilepostError:
            raise
        except BaseException:
            cancel_and_wait(handle)
            raise
        self._finish()(None, saved.url)

    def _begin(
        self,
        directory: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        force: bool,
        custom_metadata: dict[str, Any] | None,
        priority: str,
    ) -> tuple[Any, str]:
        url = url_of(directory)
        processes = self._multiprocessing_options
        together = multihost.together(
            url,
            processes.primary_host,
            processes.active_processes,
            getattr(self, "_timeout_secs", None),
        )
        with declining(together or None, is_old=True):
            self._end_save_before()
        with declining(together or None):
            if custom_metadata is not None:
                json.dumps(custom_metadata)
            _place_of_checkpoint.destination(directory, force)
            self._check_atomicity(url)
            given = construct_checkpoint_args(self._handler, True, *args, **kwargs)
            pairs = self._pairs(given)
        prepared = _bridge.items_of(pairs, together or None)
        try:
            handle = mp.save_async(
                url,
                items=prepared.items,
                item_metadata=prepared.item_metadata,
                metadata=custom_metadata,
                overwrite=force,
                priority="foreground" if force else priority,
                compression=self._compression,
                # The synchronous one returns when all is written.
                handover=priority == "foreground" and may_hold(self._compression),
                together=together,
            )
        except AlreadyExists:
            raise _place_of_checkpoint.exists(url) from None
        finally:
            prepared.close()
        return handle, url

    def _pairs(self, args: Any) -> dict[str, tuple[Any, Any]]:
        """The handler and args of each item."""
        if isinstance(self._handler, CompositeCheckpointHandler):
            return self._handler.pairs_of(args)
        return {_bridge.DEFAULT_ITEM: (self._handler, args)}

    def _end_save_before(self) -> None:
        """Waits for a save on its way and raises its error."""

    def _finish(self) -> Finish:
        return Finish(mode=self._mode())

    def _mode(self) -> int | None:
        """The mode of directories, where this process sets it."""
        commits = multihost.is_committer(self._multiprocessing_options.primary_host)
        return self._file_options.path_permission_mode if commits else None

    def _check_atomicity(self, url: str) -> None:
        own = AtomicityMode.COMMIT_FILE if "://" in url else AtomicityMode.ATOMIC_RENAME
        mode = self._atomicity_options.mode
        if mode not in (AtomicityMode.AUTO, own):
            raise ValueError(
                f"{mode} is not how a checkpoint at {url} becomes visible: it is {own}; leave "
                "atomicity_options out"
            )

    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Restores from a path: a checkpoint, or an item's path in one.

        Args:
            directory: A path, relative or absolute, or a url.
            args, kwargs: How: ``args=StandardRestore(target)``, or the older ``item=…,
                restore_args=…``; nothing: as saved, in nested dicts and lists.

        Raises:
            FileNotFoundError: No checkpoint is there.
            TreeMismatch: A ValueError: the target does not fit; `.mismatches` lists every
                difference.
        """
        given = None
        if args or kwargs:
            given = construct_checkpoint_args(self._handler, False, *args, **kwargs)
        checkpoint, item = _place_of_checkpoint.opened(directory)
        composite = isinstance(self._handler, CompositeCheckpointHandler)
        if _place_of_checkpoint.is_foreign(checkpoint):
            return self._restored_foreign(checkpoint, given, composite)
        if composite:
            if item is not None:
                raise ValueError(f"{directory} is one item: restore it with the item's handler")
            return self._handler.restore_from(checkpoint, given)
        name = item or _place_of_checkpoint.only_item(checkpoint)
        return _bridge.restored(self._handler, given, checkpoint, name)

    def _restored_foreign(self, checkpoint: Any, given: Any, composite: bool) -> Any:
        one_thing = _manager_foreign.is_default(checkpoint)
        if composite and one_thing:
            restored = _manager_foreign.restore(checkpoint, None, True)
            return CompositeResults(**{_bridge.DEFAULT_ITEM: restored})
        return _manager_foreign.restore(checkpoint, given, default=not composite)

    def metadata(self, directory: Any) -> metadata.StepMetadata:
        """What a checkpoint says of itself; no leaf is read.

        With one handler `item_metadata` is that item's; with a CompositeCheckpointHandler it has
        all.

        Raises:
            FileNotFoundError: No checkpoint is there.
        """
        checkpoint, item = _place_of_checkpoint.opened(directory)
        if _place_of_checkpoint.is_foreign(checkpoint):
            from . import _foreign_metadata

            return _foreign_metadata.step_metadata(checkpoint)
        if isinstance(self._handler, CompositeCheckpointHandler):
            return self._handler.metadata_from(checkpoint)
        name = item or _place_of_checkpoint.only_item(checkpoint)
        info = _bridge.item_info(checkpoint, name)
        described = _bridge.metadata_of(self._handler, checkpoint, name)
        return metadata.step_metadata(checkpoint, described, _bridge.recorded_handler(info))

    def structure(self, directory: Any) -> Any:
        """The saved tree with None for each leaf's value: nested dicts and lists."""
        described = self.metadata(directory).item_metadata
        return getattr(described, "tree", described)

    def close(self) -> None:
        """Closes the handler."""
        close = getattr(self._handler, "close", None)
        if close is not None:
            close()


def _check_parts(atomicity: Any, store: Any, temporary_path_class: Any) -> None:
    if store is not None:
        raise ValueError("checkpoint_metadata_store: a checkpoint has one record; leave it None")
    if temporary_path_class is not None:
        raise ValueError(
            "temporary_path_class: how a checkpoint becomes visible is the engine's; leave it None"
        )


class AsyncCheckpointer(Checkpointer):
    """Saves in the background: `save` returns once the state is captured. One save at a time.

    Args:
        handler: As `Checkpointer`.
        timeout_secs: A save that takes longer is cancelled, and `wait_until_finished` raises a
            TimeoutError. None: `async_options.timeout_secs` (1200).
        async_options: `barrier_sync_fn` and `post_finalization_callback` are called after each
            commit.
        Others: As `Checkpointer`.

    Raises:
        ValueError: A timeout that is not positive.
    """

    def __init__(
        self,
        handler: Any,
        timeout_secs: float | None = None,
        *,
        async_options: AsyncOptions | None = None,
        **options: Any,
    ) -> None:
        super().__init__(handler, **options)
        self._async_options = async_options or AsyncOptions()
        limit = self._async_options.timeout_secs if timeout_secs is None else timeout_secs
        self._in_flight = InFlight(limit)
        self._timeout_secs = limit
        self._one_at_a_time = threading.Lock()

    def save(
        self,
        directory: Any,
        *args: Any,
        force: bool = False,
        custom_metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Waits for the save before, captures the state and returns; the rest is in the background.

        With `force` the save runs at foreground priority. Args and errors as `Checkpointer.save`;
        the error of the save before is raised here, if nobody has waited for it.
        """
        with self._one_at_a_time:
            handle, url = self._begin(directory, args, kwargs, force, custom_metadata, "background")
            finish = self._finish()
            self._in_flight.start(
                handle, lambda saved: finish(url, saved), lambda: _place_of_checkpoint.exists(url)
            )

    def _finish(self) -> Finish:
        options = self._async_options
        barrier = None
        if options.barrier_sync_fn is not None:
            milliseconds = int(self._timeout_secs * 1000)
            prefix = self._multiprocessing_options.barrier_sync_key_prefix
            head = f"{prefix}_" if prefix else ""

            def barrier(url: Any) -> None:
                key = f"{head}async_commit_complete.{url}"
                options.barrier_sync_fn(key=key, timeout_ms=milliseconds)

        callback = options.post_finalization_callback
        return Finish(mode=self._mode(), barrier=barrier, callback=callback)

    def _end_save_before(self) -> None:
        self._in_flight.wait_for_next()

    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Waits for a save on its way, then restores as `Checkpointer.restore`."""
        self._in_flight.wait()
        return super().restore(directory, *args, **kwargs)

    def metadata(self, directory: Any) -> metadata.StepMetadata:
        """Waits for a save on its way, then as `Checkpointer.metadata`."""
        self._in_flight.wait()
        return super().metadata(directory)

    def wait_until_finished(self) -> None:
        """Waits for the save on its way and raises its error, once."""
        self._in_flight.wait()

    def check_for_errors(self) -> None:
        """Raises the error of a save that has ended, once."""
        self._in_flight.check()

    def is_saving_in_progress(self) -> bool:
        """Whether a save is on its way."""
        return self._in_flight.is_any()

    def cancel(self) -> None:
        """Cancels the save on its way: nothing becomes visible, unless it is being published."""
        self._in_flight.cancel()

    def close(self) -> None:
        """Waits for the save on its way, raises its error, and closes the handler."""
        try:
            self._in_flight.wait()
        finally:
            super().close()


class PyTreeCheckpointer(Checkpointer):
    """A Checkpointer with a PyTreeCheckpointHandler.

    Args:
        primary_host: See `options.MultiprocessingOptions`.
        use_ocdbt, use_zarr3, use_compression, compression: See `PyTreeCheckpointHandler`.
    """

    def __init__(
        self,
        primary_host: int | None = 0,
        use_ocdbt: bool = True,
        use_zarr3: bool = False,
        use_compression: bool | None = None,
        *,
        compression: str | None = None,
    ) -> None:
        chosen = compression_of(use_compression, compression, use_zarr3=use_zarr3)
        super().__init__(
            PyTreeCheckpointHandler(use_ocdbt=use_ocdbt, use_zarr3=use_zarr3, compression=chosen),
            multiprocessing_options=MultiprocessingOptions(primary_host=primary_host),
        )


class StandardCheckpointer(AsyncCheckpointer):
    """An AsyncCheckpointer with a StandardCheckpointHandler.

    Args:
        async_options, multiprocessing_options, file_options, atomicity_options,
            checkpoint_metadata_store, temporary_path_class, compression: As `AsyncCheckpointer`.
        options: As `StandardCheckpointHandler`.
    """

    def __init__(
        self,
        *,
        async_options: AsyncOptions | None = None,
        multiprocessing_options: MultiprocessingOptions | None = None,
        file_options: FileOptions | None = None,
        atomicity_options: AtomicityOptions | None = None,
        checkpoint_metadata_store: Any = None,
        temporary_path_class: Any = None,
        compression: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            StandardCheckpointHandler(multiprocessing_options=multiprocessing_options, **options),
            async_options=async_options,
            multiprocessing_options=multiprocessing_options,
            file_options=file_options,
            atomicity_options=atomicity_options,
            checkpoint_metadata_store=checkpoint_metadata_store,
            temporary_path_class=temporary_path_class,
            compression=compression,
        )

    def save(  # type: ignore[override]
        self,
        directory: Any,
        state: Any = None,
        *,
        save_args: Any = None,
        force: bool = False,
        custom_metadata: dict[str, Any] | None = None,
        args: Any = None,
    ) -> None:
        """Saves a pytree in the background; returns once it is captured.

        Args:
            directory: A path, relative or absolute, or a url.
            state: The pytree, or `args.StandardSave`.
            save_args: A tree of SaveArgs.
            force: Replace what is there, safely.
            custom_metadata: A JSON object to keep with the checkpoint.
            args: `args.StandardSave` in place of `state`.
        """
        given = args if args is not None else state
        if checkpoint_args.is_args(given):
            if args is not None and state is not None and args.item is None:
                given = _with_item(args, (state,), {})
        else:
            given = StandardSaveArgs(state, save_args)
        super().save(directory, args=given, force=force, custom_metadata=custom_metadata)

    def restore(  # type: ignore[override]
        self, directory: Any, target: Any = None, *, strict: bool = True, args: Any = None
    ) -> Any:
        """Waits for a save on its way, then restores.

        Args:
            directory: A path, relative or absolute, or a url.
            target: The target, or `args.StandardRestore`; None: nested dicts and lists.
            strict: False truncates or pads arrays of another shape with zeros.
            args: `args.StandardRestore` in place of `target`.
        """
        given = args if args is not None else target
        if not checkpoint_args.is_args(given):
            given = StandardRestoreArgs(target, strict=strict)
        return super().restore(directory, args=given)
