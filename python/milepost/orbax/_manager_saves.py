"""The saves of a manager that are on their way, and how they ended.

```text
  started ──▶ committed ──▶ directories' mode, barrier, callback ──▶ ended
         └──▶ failed ────────────────────────────────────▶ ended; told once
```
"""

from __future__ import annotations

import atexit
import dataclasses
import datetime
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import milepost as mp
from milepost._save import cancel_and_wait

from .checkpoint_managers.policy_checkpoint_info import CheckpointInfo
from ._run_path import is_local


@dataclasses.dataclass
class Finish:
    """What is done after each commit, in the background.

    Attributes:
      mode: the mode of the step's and its items' directories; None leaves them, as all processes
        but one do.
      barrier: called with the step.
      callback: called without anything.
    """

    mode: int | None = None
    barrier: Callable[[Any], None] | None = None
    callback: Callable[[], None] | None = None

    def __call__(self, step: Any, url: str) -> None:
        if self.mode is not None and is_local(url):
            _set_mode(url, self.mode)
        if self.barrier is not None:
            self.barrier(step)
        if self.callback is not None:
            self.callback()


_all: weakref.WeakSet[Saves] = weakref.WeakSet()


@atexit.register
def _wait_at_exit() -> None:
    """What follows a commit happens on threads that the interpreter does not wait for."""
    for saves in list(_all):
        saves.wait()
        for error in saves.untold():
            print(f"milepost: a save failed and nobody asked: {error}", file=sys.stderr)


def _forget_in_child() -> None:
    """After a fork the saves are the parent's: nobody ends them here."""
    for saves in list(_all):
        saves.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


class _Failure:
    """An error, and the threads that were told of it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.told: set[int] = set()


class _Save:
    def __init__(self, info: CheckpointInfo | None, what: Any, handle: Any) -> None:
        self.info = info
        self.handle = handle
        self.what = what
        self.committed = threading.Event()  # or failed
        self.ended = threading.Event()
        self.timer: threading.Timer | None = None
        self.is_late = False
        self.error: BaseException | None = None
        self.url = ""

    def limit(self, timeout: float) -> None:
        """Has it cancelled when it takes too long."""

        def late() -> None:
            self.is_late = True
            self.handle.cancel()

        self.timer = threading.Timer(timeout, late)
        self.timer.daemon = True
        self.timer.start()

    def late_error(self) -> mp.SaveTimeout:
        """Returns what is raised of one that was cancelled because it took too long."""
        return mp.SaveTimeout(
            "the save did not end in time and was cancelled",
            context={"checkpoint": str(self.what)},
            hint="give AsyncOptions a larger timeout_secs",
        )


class Saves:
    """Saves in flight. A failure is told once to each thread that asks, until the next save
    begins."""

    def __init__(self, finish: Finish) -> None:
        self._finish = finish
        self._lock = threading.Lock()
        self._flying: list[_Save] = []
        self._failures: list[_Failure] = []
        self._grumble: BaseException | None = None
        _all.add(self)

    def follow(
        self,
        handle: Any,
        what: Any,
        metrics: Any | None,
        close: Callable[[], None],
        *,
        wait: bool,
        timeout: float | None = None,
    ) -> None:
        """Follows a native save until it has ended; `close` is called then, in any case.

        With `wait` that is now, and its error is raised. `timeout`: seconds after which it is
        cancelled; None where the engine sees to that.
        """
        info = None
        if isinstance(what, int):
            now = datetime.datetime.now(tz=datetime.timezone.utc)
            info = CheckpointInfo(what, now, metrics)
        save = _Save(info, what, handle)
        with self._lock:
            self._failures = [failure for failure in self._failures if not failure.told]
            self._flying.append(save)
        if timeout is not None:
            save.limit(timeout)
        if not wait:
            handle.add_done_callback(lambda done: self._ended(save, done, close))
            return
        try:
            handle.exception()
        except BaseException:
            # Ctrl-C: what nobody waits for is not saved.
            cancel_and_wait(handle)
            self._gone(save)
            close()
            raise
        self._ended(save, handle, close)
        self._finished(save)

    def infos(self) -> list[CheckpointInfo]:
        """Returns the steps in flight as policies see them."""
        with self._lock:
            return [save.info for save in self._flying if save.info is not None]

    def is_any(self) -> bool:
        """Tells whether a save is on its way."""
        with self._lock:
            return bool(self._flying)

    def forget(self) -> None:
        """Knows of nothing any more."""
        self._lock = threading.Lock()
        self._flying, self._failures, self._grumble = [], [], None

    def settle(self) -> None:
        """Waits for what follows saves that have ended, so that their errors are known."""
        with self._lock:
            flying = list(self._flying)
        for save in flying:
            if save.handle.done():
                save.ended.wait()

    def wait(self) -> None:
        """Waits for all saves that are on their way now."""
        with self._lock:
            flying = list(self._flying)
        for save in flying:
            save.ended.wait()

    def wait_committed(self) -> None:
        """Waits until it is known of each save whether it is committed, not for what follows."""
        with self._lock:
            flying = list(self._flying)
        for save in flying:
            save.committed.wait()

    def steps(self) -> list[int]:
        """Returns the steps of which that is not known."""
        with self._lock:
            flying = [save for save in self._flying if not save.committed.is_set()]
        return [save.info.step for save in flying if save.info is not None]

    def _finished(self, save: _Save) -> None:
        """Raises the error of a save that has ended."""
        if save.error is not None:
            with self._lock:
                self._failures = [f for f in self._failures if f.error is not save.error]
            raise save.error

    def fail(self, error: BaseException) -> None:
        """Has an error told that happened in the background."""
        with self._lock:
            self._failures.append(_Failure(error))

    def grumble(self, error: BaseException) -> None:
        """Has an error told that costs no step: where one waits, and not where one saves."""
        with self._lock:
            self._grumble = error

    def check_all(self) -> None:
        """As `check`, and raises what cost no step."""
        self.check()
        with self._lock:
            error, self._grumble = self._grumble, None
        if error is not None:
            raise error

    def check(self) -> None:
        """Raises the oldest error of a save that this thread was not told of."""
        thread = threading.get_ident()
        with self._lock:
            untold = [failure for failure in self._failures if thread not in failure.told]
            for failure in untold[:1]:
                failure.told.add(thread)
        if untold:
            raise untold[0].error

    def untold(self) -> list[BaseException]:
        """Returns the errors that nobody was told of."""
        with self._lock:
            return [failure.error for failure in self._failures if not failure.told]

    def _ended(self, save: _Save, handle: Any, close: Callable[[], None]) -> None:
        try:
            try:
                save.url = handle.result().url
            finally:
                save.committed.set()
                close()
            self._finish(save.what, save.url)
        except mp.Cancelled as error:
            # Of several processes another one tells why where it saves, this one where it waits.
            save.error = save.late_error() if save.is_late else error
            (self.fail if save.is_late else self.grumble)(save.error)
        except BaseException as error:
            save.error = save.late_error() if save.is_late else error
            self.fail(save.error)
        finally:
            self._gone(save)

    def _gone(self, save: _Save) -> None:
        if save.timer is not None:
            save.timer.cancel()
        with self._lock:
            self._flying.remove(save)
        save.committed.set()
        save.ended.set()


def _set_mode(url: str, mode: int) -> None:
    with os.scandir(url) as entries:
        directories = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    for directory in [*directories, url]:
        os.chmod(directory, mode)
