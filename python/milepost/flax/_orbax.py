"""Checkpointers that the caller brings: ours (`milepost.orbax`) or Orbax's own.

They save whole by themselves; what is superfluous is deleted here, but only once the new checkpoint
is there. One that saves in the background cannot say when that is without taking its errors from
the caller, so its path is looked at: a commit is a rename, which gives the path another inode.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .._together import Together, resolve

_POLL_SECONDS = 0.05


class _Pending(NamedTuple):
    """A save on its way, and what is to be done after it."""

    checkpointer: Any
    path: str
    before: int | None
    clean: Callable[[], None]

    def is_committed(self) -> bool:
        """Whether something new is at the path."""
        return _inode(self.path) not in (None, self.before)

    def has_failed(self) -> bool:
        """Whether it has ended, as far as the checkpointer says, and there is nothing new."""
        in_progress = getattr(self.checkpointer, "is_saving_in_progress", None)
        return in_progress is not None and not in_progress() and not self.is_committed()


_pending: list[_Pending] = []
_lock = threading.Lock()


def wait(checkpointer: Any) -> None:
    """Waits for a save in the background, raises its error, and does what was to be done after it.
    """
    if (finish := getattr(checkpointer, "wait_until_finished", None)) is None:
        return
    try:
        finish()
    finally:
        with _lock:
            own = [p for p in _pending if p.checkpointer is checkpointer]
            _pending[:] = [p for p in _pending if p not in own]
    for pending in own:
        if pending.is_committed() or (not _is_ours(checkpointer) and os.path.exists(pending.path)):
            pending.clean()


def save(
    checkpointer: Any, path: str, target: Any, overwrite: bool, clean: Callable[[], None]
) -> None:
    """Saves with a checkpointer; `clean` runs after the commit."""
    before = _inode(path)
    checkpointer.save(path, target, force=overwrite)
    if not hasattr(checkpointer, "wait_until_finished"):
        clean()
        return
    with _lock:
        _pending.append(_Pending(checkpointer, path, before, clean))
        is_first = len(_pending) == 1
    if is_first:
        threading.Thread(target=_watch, name="milepost-flax-commits", daemon=True).start()


def meeting(checkpointer: Any, path: str) -> Together | None:
    """The processes that a checkpointer of ours saves a path with; None: alone, or not known."""
    return resolve(None, path) if _is_ours(checkpointer) else None


def restore(
    checkpointer: Any, path: str, target: Any, transforms: dict[str, Any] | None
) -> Any:
    """Restores with a checkpointer, Orbax's default one of ours where there is none."""
    from .. import orbax as ocp
    from . import orbax_utils

    if checkpointer is None:
        checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    options: dict[str, Any] = {}
    if target is not None:
        options["restore_args"] = orbax_utils.restore_args_from_target(target)
    if transforms is not None:
        options["transforms"] = transforms
    return checkpointer.restore(path, item=target, **options)


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def _is_ours(checkpointer: Any) -> bool:
    """Whether it exchanges names on a commit. Orbax's own deletes first: the new inode may be the
    old one.
    """
    return any(cls.__module__.startswith("milepost.") for cls in type(checkpointer).__mro__)


def _clean_committed() -> bool:
    """Does what is due; whether anything is still pending."""
    with _lock:
        due = [p for p in _pending if p.is_committed()]
        _pending[:] = [p for p in _pending if p not in due and not p.has_failed()]
        # Under the lock: the end of the process waits for it.
        for pending in due:
            pending.clean()
        return bool(_pending)


def _watch() -> None:
    while _clean_committed():
        time.sleep(_POLL_SECONDS)


def _clean_at_exit() -> None:
    """Waits for saves that can be asked whether they have ended; a failure is told by whoever
    saves.
    """
    while any(getattr(p.checkpointer, "is_saving_in_progress", bool)() for p in list(_pending)):
        time.sleep(_POLL_SECONDS)
    _clean_committed()


atexit.register(_clean_at_exit)
