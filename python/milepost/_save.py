"""Saving a checkpoint that stands alone, and the handle of any save."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Generator, Mapping
from typing import Any, Literal, TypedDict, Unpack

from . import _milepost
from ._arrays import Capture
from ._errors import Forked, Invalid, MilepostError, SaveTimeout
from ._items import payload
from ._place import Engine, Url, local_path, place
from ._progress import shown
from ._together import Together, before_jax_ends, declining, resolve

class StorageOptions(TypedDict, total=False):
    """How arrays are stored: the keywords of every save."""

    compression: str | None
    """``"none"`` (default), ``"zstd"``, ``"zstd:LEVEL"``, ``"gzip:LEVEL"``, ``"blosc:lz4:5:shuffle"``."""
    chunk_bytes: int | None
    """Decoded bytes of a chunk, about; default 4 MiB."""
    shard_bytes: int | None
    """Decoded bytes of a stored object of several chunks, about."""
    portable: bool
    """Data types that stock Zarr readers lack are stored as integers, with the type in the attributes."""
    consolidate: Literal["auto", "never"]
    """Consolidated metadata, where every reader would know all of it."""
    durability: Literal["durable", "published"]
    """When a save counts as done: synced to the disk, or visible."""


class SaveKeywords(StorageOptions, total=False):
    """The keywords of `milepost.save` beside its own; as in `milepost.save_async`."""

    items: Mapping[str, Any] | None
    metadata: Mapping[str, Any] | None
    item_metadata: Mapping[str, Any] | None
    metrics: Mapping[str, float] | None
    overwrite: bool
    capture: Literal["auto", "copy"]
    handover: bool
    together: Together | bool | None
    engine: Engine | None


_STORAGE = tuple(StorageOptions.__annotations__)


def save_options(storage: Mapping[str, Any], overwrite: bool = False):
    """The engine's options of the keywords that every save takes."""
    unknown = sorted(set(storage) - set(_STORAGE))
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; storage options are {', '.join(_STORAGE)}")
    given = {name: value for name, value in storage.items() if value is not None}
    return _milepost.SaveOptions(overwrite=overwrite, **given)


def capture_of(capture: str, handover: bool, together: bool = False) -> Capture:
    """How a save takes over what it is given, from its keywords."""
    if capture not in ("auto", "copy"):
        raise Invalid(f"capture={capture!r}", hint='give "auto" or "copy"')
    if capture == "copy" and handover:
        raise Invalid('capture="copy" and handover=True are given', hint="one copies what the other holds")
    return Capture(copy=capture == "copy", handover=handover, together=together)


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a save has committed. Sizes in bytes: decoded, and as stored; stages in seconds."""

    url: str
    step: int | None
    data_bytes: int
    stored_bytes: int
    stages: dict[str, float]
    record: dict[str, Any] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A save that was not made, on purpose; false in a condition."""

    step: int
    reason: str

    def __bool__(self) -> bool:
        return False


class SaveHandle:
    """A save on its way; true in a condition, and awaitable. Dropping it does not cancel the save."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._told = False
        _in_flight.add(self)

    @property
    def step(self) -> int | None:
        """The step, where it is one."""
        return self._inner.step

    def done(self) -> bool:
        """Whether it has ended, well or badly."""
        return self._inner.done()

    def cancel(self) -> None:
        """Asks it to stop: nothing becomes visible, unless it is being published already."""
        self._inner.cancel()
        self._told = True  # its caller knows how it ends

    def progress(self) -> dict[str, Any]:
        """The counters as they stand: bytes, chunks and leaves, seconds."""
        return self._inner.progress()

    def result(self, timeout: float | None = None) -> Saved:
        """Waits until it has ended and returns what was saved; every call has the same outcome.

        Raises what the save failed with, and `SaveTimeout` where ``timeout`` seconds were not enough: it goes on then.
        """
        saved = self._wait(timeout)
        return Saved(**saved)

    def _wait(self, timeout: float | None) -> dict[str, Any]:
        try:
            saved = self._inner.wait(timeout)
        except SaveTimeout:
            self._told = self._inner.done()
            raise
        except MilepostError:
            self._told = True
            raise
        self._told = True
        return saved

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits as `result` does; the exception that it failed with, None where it was saved."""
        try:
            self.result(timeout)
        except MilepostError as error:
            if not self._inner.done():
                raise
            return error
        return None

    def _is_saved(self) -> bool:
        """Whether it has ended well; who asks here is told of no failure."""
        try:
            self._inner.wait(0)
        except MilepostError:
            return False
        return True

    def add_done_callback(self, callback: Callable[[SaveHandle], Any]) -> None:
        """Calls ``callback(handle)`` when it has ended, on a thread of its own."""

        def wait() -> None:
            try:
                self._inner.wait(None)
            except MilepostError:
                pass
            callback(self)

        if is_ended():
            return wait()
        threading.Thread(target=wait, name="milepost-callback").start()

    def __await__(self) -> Generator[Any, None, Saved]:
        return self._finished().__await__()

    async def _finished(self) -> Saved:
        import asyncio  # a third of the package's import time

        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        self.add_done_callback(lambda _: _wake(loop, ended))
        await ended.wait()
        return self.result(0)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        step = "" if self.step is None else f"step {self.step}, "
        if not self.done():
            now = self.progress()
            return f"<SaveHandle {step}{now['bytes_done']} of {now['bytes_total']} bytes>"
        error = self.exception(0)
        return f"<SaveHandle {step}{'saved' if error is None else f'failed: {error}'}>"


def _wake(loop: Any, ended: Any) -> None:
    # A loop that was closed meanwhile has nobody to wake.
    if not loop.is_closed():
        loop.call_soon_threadsafe(ended.set)


def captured(handle: SaveHandle, capture: Capture) -> SaveHandle:
    """Returns the handle of a started save once all is captured; where that is interrupted, the save is cancelled."""
    try:
        capture.finish(handle.done)
    except BaseException:
        handle.cancel()
        handle._told = True
        raise
    return handle


_in_flight: weakref.WeakSet[SaveHandle] = weakref.WeakSet()
_kept: set[SaveHandle] = set()


def keep_until_done(handle: SaveHandle) -> SaveHandle:
    """Keeps a handle that its caller may drop, so that the end of the process waits for the save."""
    wait_if_ended(handle)
    for done in [kept for kept in list(_kept) if _is_done(kept)]:  # other threads add to it
        if done._told or done._is_saved():
            _kept.discard(done)
    _kept.add(handle)
    return handle


def is_ended() -> bool:
    """Whether the wait at the end of the process is over: nobody waits for what begins now, and no thread comes back."""
    return _ended


def wait_if_ended(handle: SaveHandle) -> None:
    """Waits for a save that begins in an exit hook after ours; raises what it failed with, which nobody may ask for."""
    if _ended:
        handle.result()


_ended = False
_POLL_SECONDS = 0.02


def _is_done(handle: SaveHandle) -> bool:
    try:
        return handle.done()
    except MilepostError:  # forked: it is the parent's
        return False


@before_jax_ends
def _wait_quietly() -> None:
    """Waits for every save in flight; how they ended is told at the exit."""
    for handle in list(_in_flight):
        with contextlib.suppress(MilepostError):  # forked: it is the parent's
            while not handle.done():
                time.sleep(_POLL_SECONDS)


def wait_at_exit() -> None:
    """Waits for every save in flight, and says on stderr how those failed that nobody asked for."""
    global _ended
    _ended = True
    for handle in list(_in_flight):
        try:
            told = handle._told
            handle.result()
        except MilepostError as error:
            if not told and not isinstance(error, Forked):
                where = "" if handle.step is None else f" of step {handle.step}"
                print(f"milepost: a save{where} failed and nobody asked: {error}", file=sys.stderr)
        except BaseException:
            traceback.print_exc()
            return
    _kept.clear()


# The last registered runs first: no other thread comes back to Python once all is saved.
atexit.register(_milepost.ending)
atexit.register(wait_at_exit)


def _refuse_foreign(url: Url) -> None:
    """Raises `ForeignFormat` where another library's checkpoint is in the way, whatever may be overwritten."""
    path = local_path(url)
    if path is None or not os.path.exists(path) or os.path.exists(os.path.join(path, "zarr.json")):
        return
    from . import _foreign

    _foreign.refuse(path)


def save_async(
    url: Url,
    tree: Any = ...,
    *,
    items: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    item_metadata: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    overwrite: bool = False,
    capture: str = "auto",
    handover: bool = False,
    together: Together | bool | None = None,
    priority: str = "background",
    engine: Engine | None = None,
    **storage: Unpack[StorageOptions],
) -> SaveHandle:
    """Saves a checkpoint in the background; returns once the state is captured. As `save`; await or ask the handle."""
    meeting = resolve(together, url)
    with declining(meeting):
        _refuse_foreign(url)
        capturing = capture_of(capture, handover, meeting is not None)
        given = payload(
            tree,
            items,
            metadata=metadata,
            item_metadata=item_metadata,
            metrics=metrics,
            capture=capturing,
        )
        options = save_options(storage, overwrite)
        where = place(url, engine)
    inner = _milepost.start(where, given, options, priority, None if meeting is None else meeting._inner)
    return keep_until_done(captured(SaveHandle(inner), capturing))


def may_hold(compression: str | None) -> bool:
    """Whether a call that returns when all is written may read writable arrays where they are.

    Chunks are copied before they are summed, so a thread that writes to an array meanwhile gets a torn state, as it
    would from any copy. A compressor reads its input more than once: for it, arrays are copied.
    """
    return compression in (None, "none")


def save(
    url: Url,
    tree: Any = ...,
    *,
    progress: bool | None = None,
    priority: str = "foreground",
    **options: Unpack[SaveKeywords],
) -> Saved:
    """Saves a pytree as a checkpoint of its own and returns when it is durable.

    Args:
      url: a path, or ``file://``, ``s3://``, ``gs://``, ``az://``, ``memory://``.
      tree: the pytree, saved as the item ``state``; or
      items: several items by name: trees, `Tree`, `Array`, `Json`, `Bytes`, `Files`.
      metadata, item_metadata, metrics: what is said of the checkpoint, JSON values.
      overwrite: replaces a checkpoint that is there; the old one stays until the new one is whole.
      capture: ``"auto"`` holds immutable arrays and copies others; ``"copy"`` copies all.
      handover: nobody writes to the NumPy arrays until the save has ended, so they are not copied. Default: without
        compression, because this call returns only then; `save_async` copies.
      together: the processes that save this together, each what it holds: a `Together`; default: all processes of
        ``jax.distributed``, where it runs; False: this process alone. All of them make this call.
      progress: True shows a bar, False none, None one on a terminal or in a notebook.
      compression: ``"none"`` (default), ``"zstd"``, ``"zstd:LEVEL"``, ``"gzip:LEVEL"``, ``"blosc:lz4:5:shuffle"``.
      chunk_bytes, shard_bytes: decoded sizes; portable, consolidate, durability: see the format's documentation.

    Raises: `AlreadyExists`, `Conflict`, `Invalid` (naming the leaf), `Unavailable`, `ForeignFormat`.
    Ctrl-C cancels the save: nothing is visible then. The end of the process waits for saves in the background; in an exit
    hook that runs after ours, every save waits.
    """
    if options.get("capture", "auto") == "auto":
        options.setdefault("handover", may_hold(options.get("compression")))
    handle = save_async(url, tree, priority=priority, **options)
    return finished(handle, "save", progress)


def finished(handle: SaveHandle, what: str, progress: bool | None) -> Saved:
    """Waits for a save that nobody else has the handle of; where that is interrupted, the save is cancelled."""
    try:
        with shown(what, handle.progress, progress):
            return handle.result()
    except MilepostError:
        raise
    except BaseException:
        cancel_and_wait(handle)
        raise


def cancel_and_wait(handle: SaveHandle) -> None:
    """Cancels a save and waits until its files are swept; a further Ctrl-C does not wait."""
    handle.cancel()
    handle._told = True
    try:
        handle.exception(timeout=30.0)
    except (MilepostError, KeyboardInterrupt):
        pass
