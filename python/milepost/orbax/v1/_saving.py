"""`save` and its kin: checkpointables become items, one commit publishes them all.

```text
  caller's thread   validate → resolve handlers → their first part → capture
  background        their second part → write → commit → callbacks → Response
```

**Invariant:** an existing checkpoint is never deleted before its replacement is committed.
"""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import milepost as mp
from milepost._save import may_hold
from milepost._together import declining
from milepost.orbax import multihost
from milepost.orbax.v1 import _budget, _items
from milepost.orbax.v1._context import Context, get_context
from milepost.orbax.v1._operation import AsyncResponse, Cancellation, Response, in_background
from milepost.orbax.v1._storage import save_keywords
from milepost.orbax.v1.errors import DestinationExistsError
from milepost.orbax.v1.options import CheckpointLayout
from milepost.orbax.v1.path import PathLike, is_local, locate

# Starts a native save: keywords of `milepost.save` -> SaveHandle.
Submit = Callable[..., Any]


def save(
    path: PathLike,
    state: Any,
    *,
    checkpointable_name: str = _items.STATE,
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
) -> None:
    """Saves a pytree at `path` and returns once it is committed.

    Args:
      path: Where the checkpoint will be; relative paths are taken from the working directory.
      state: Any pytree of arrays, numbers, text, bytes and PRNG keys; also a bare leaf.
      checkpointable_name: Name of the item.
      overwrite: Replace what is at `path`: it stays until the new checkpoint takes its place.
      custom_metadata: A dict of JSON values, to be had back from `metadata`.

    Raises:
      DestinationExistsError: (also ValueError and FileExistsError) `path` exists.
      ValueError: A leaf, or the name, cannot be stored.
      TimeoutError: It took longer than `ctx.asynchronous.timeout_secs`; nothing is visible.
    """
    with Cancellation() as stop:
        _start(path, {checkpointable_name: state}, overwrite, custom_metadata, stop).result()


def save_async(
    path: PathLike,
    state: Any,
    *,
    checkpointable_name: str = _items.STATE,
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
) -> AsyncResponse[None]:
    """Saves a pytree; returns once it is captured.

    The caller may change or donate its arrays at once. `result()` of the response waits for the
    commit and raises what went wrong. See `save`.
    """
    return _start(path, {checkpointable_name: state}, overwrite, custom_metadata)


def save_checkpointables(
    path: PathLike,
    checkpointables: dict[str, Any],
    *,
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
) -> None:
    """Saves several objects, each as an item of one checkpoint.

    Args:
      checkpointables: Objects by name. Each goes to the handler that the context's registry has
        for its name or its type. `metrics` and `AUTO` are reserved names.

    See `save` for the rest.

    Raises:
      NoEntryError: (a KeyError) No handler takes an object.
    """
    _check_given(checkpointables)
    with Cancellation() as stop:
        _start(path, checkpointables, overwrite, custom_metadata, stop).result()


def save_checkpointables_async(
    path: PathLike,
    checkpointables: dict[str, Any],
    *,
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
) -> AsyncResponse[None]:
    """Saves several objects; returns once they are captured. See `save_checkpointables`."""
    _check_given(checkpointables)
    return _start(path, checkpointables, overwrite, custom_metadata)


def _check_given(checkpointables: Any) -> None:
    if not checkpointables:
        raise ValueError(
            f"`checkpointables` must be a dict that is not empty, but got {checkpointables!r}"
        )


def _start(
    path: PathLike,
    checkpointables: dict[str, Any],
    overwrite: bool,
    custom_metadata: Mapping[str, Any] | None,
    stop: Cancellation | None = None,
) -> Response[None]:
    """Starts a save; one that the caller waits for has a `stop` and goes before others."""
    _items.check_names(checkpointables, "checkpointables")
    location, context = locate(path), get_context()
    check_context(context, saving=True)
    meeting = together(location, context) or None
    with declining(meeting):
        if not overwrite and is_local(location) and os.path.lexists(location):
            raise _exists(location)
        metadata = check_metadata(custom_metadata)

    priority = "background" if stop is None else "foreground"

    def submit(**keywords: Any) -> Any:
        if stop is not None:  # the caller waits until all is written
            held = may_hold(keywords.get("compression"))
            keywords["handover"] = keywords.get("handover", False) or held
        keywords["together"] = meeting or False
        return mp.save_async(location, overwrite=overwrite, priority=priority, **keywords)

    return start(
        f"save to {location}",
        checkpointables,
        submit,
        context,
        location=location,
        cancellation=stop,
        meeting=meeting,
        metadata=metadata,
    )


def together(location: str, context: Context) -> Any:
    """Returns with whom this process saves at a place."""
    processes = context.multiprocessing
    timeout = context.asynchronous.timeout_secs
    return multihost.together(location, processes.primary_host, processes.active_processes, timeout)


def check_metadata(custom_metadata: Any) -> dict[str, Any] | None:
    """Returns custom metadata as a dict.

    Raises:
      TypeError: It is no dict.
    """
    if custom_metadata is None:
        return None
    if not isinstance(custom_metadata, Mapping):
        raise TypeError(
            f"custom_metadata must be a dict of JSON values, not {type(custom_metadata).__name__}"
        )
    return dict(custom_metadata)


def _exists(location: str) -> DestinationExistsError:
    return DestinationExistsError(
        f"Destination {location} already exists.",
        context={"store": location},
        hint="pass overwrite=True to replace it, or save to another path",
    )


def check_context(context: Context, *, saving: bool) -> None:
    """Checks the options that would have to be refused.

    Raises:
      NotImplementedError: Pathways, or saving as safetensors.
      ValueError: A timeout that is not positive, or this process is not an active one.
    """
    if context.pathways.checkpointing_impl is not None:
        raise NotImplementedError(
            "ctx.pathways.checkpointing_impl: Milepost has no Pathways array handlers; unset it"
        )
    if saving and context.checkpoint_layout is CheckpointLayout.SAFETENSORS:
        raise NotImplementedError(
            "Saving to Safetensors format is not supported: save a checkpoint and export it with "
            "`milepost export`"
        )
    timeout = context.asynchronous.timeout_secs
    if timeout is not None and timeout <= 0:
        raise ValueError(f"Timeout must be positive, but got {timeout} seconds.")
    active = context.multiprocessing.active_processes
    if active is not None:
        from milepost.orbax.v1.multihost import process_index

        if process_index() not in active:
            raise ValueError(
                f"process {process_index()} is not in ctx.multiprocessing.active_processes "
                f"({sorted(active)}): only these may call save and load"
            )


def start(
    what: str,
    checkpointables: Mapping[str, Any],
    submit: Submit,
    context: Context,
    *,
    location: str,
    cancellation: Cancellation | None = None,
    meeting: mp.Together | None = None,
    **record: Any,
) -> Response[Any]:
    """Starts a save: what of it is the caller's time is done when this returns.

    Args:
      what: Names the operation in errors.
      submit: Begins the native save; gets the items, their metadata and the storage keywords.
      location: Of the checkpoint, for permissions of its directories.
      cancellation: How the save is stopped; None: one of its own.
      meeting: The processes that save it together. Handlers are then waited for here: what is saved
        next must not come between.
      record: More keywords for `submit`, such as `metadata` and `metrics`.

    Returns a response whose result is None.
    """
    check_context(context, saving=True)
    begun = time.monotonic()
    if cancellation is None:
        cancellation = Cancellation()
    with declining(meeting):
        batch = _items.Batch(checkpointables, context)
        cancellation.add(batch.cancel)
        regulator = _budget.regulated(context)
    try:
        with declining(meeting):
            keywords = {**save_keywords(context), **record}
            engine = _budget.for_save(context)
            if engine is not None:
                keywords["engine"] = engine
            captured = _Captured(batch, context)
            if meeting is not None:
                batch.finish(_left(context, begun))
        if meeting is not None:
            batch.share(meeting)
        handle = None
        if not batch.is_waiting:
            handle = submit(**batch.arguments(), **keywords)
            cancellation.add(handle.cancel)
            captured.report_transfers()
    except BaseException as error:
        batch.close()
        regulator.close()
        raise_translated(error, location)

    def work() -> None:
        try:
            left = _left(context, begun)
            running = handle
            if running is None:
                batch.finish(left)
                if cancellation.is_asked:
                    raise mp.Cancelled(f"{what} was cancelled")
                running = submit(**batch.arguments(), **keywords)
                cancellation.add(running.cancel)
                captured.report_transfers()
            _wait(running, _left(context, begun), what)
            cancellation.committed.set()
            _set_permissions(location, context)
            captured.report_writes()
            callback = context.asynchronous.post_finalization_callback
            if callback is not None:
                callback()
        except concurrent.futures.CancelledError as error:
            raise mp.Cancelled(f"{what} was cancelled") from error
        except BaseException as error:
            raise_translated(error, location)
        finally:
            cancellation.committed.set()
            batch.close()
            regulator.close()

    return in_background(what, work, cancellation)


def raise_translated(error: BaseException, location: str) -> NoReturn:
    """Raises `error`; of a commit that found its place taken, what v1's callers know."""
    if isinstance(error, mp.AlreadyExists) and not isinstance(error, ValueError):
        raise _exists(location) from error
    raise error


def _left(context: Context, begun: float) -> float | None:
    """Seconds until the timeout; at least a moment, so that waiting raises the usual error."""
    timeout = context.asynchronous.timeout_secs
    return None if timeout is None else max(timeout - (time.monotonic() - begun), 1e-3)


def _wait(handle: Any, timeout: float | None, what: str) -> None:
    try:
        handle.result(timeout)
    except TimeoutError as error:
        if handle.done():
            raise
        handle.cancel()
        raise TimeoutError(
            f"{what}: timed out and was cancelled, nothing became visible; "
            "ctx.asynchronous.timeout_secs sets the limit"
        ) from error


def _set_permissions(location: str, context: Context) -> None:
    mode = context.file.path_permission_mode
    if mode is None or not is_local(location):
        return
    if not multihost.is_committer(context.multiprocessing.primary_host):
        return
    for directory, _, _ in os.walk(location):
        os.chmod(directory, mode)


class _Captured:
    """Tells a `serialization_status_callback` how far each leaf is."""

    def __init__(self, batch: _items.Batch, context: Context):
        self._callback = context.memory.serialization_status_callback
        self._paths = batch.key_paths() if self._callback is not None else []

    def report_transfers(self) -> None:
        for path in self._paths:
            self._callback.on_transfer_end(path)

    def report_writes(self) -> None:
        for path in self._paths:
            self._callback.on_write_end(path)
