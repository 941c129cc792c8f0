"""A save on its way for a checkpointer: one at a time, with a deadline and what comes after it.

```text
  idle ──start──▶ in flight ──▶ committed ──▶ mode, barrier, callback ──▶ ended ──wait──▶ idle
                      └──deadline: cancelled──▶ failed ──▶ ended; told once ──▶ idle
```
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from milepost._errors import AlreadyExists, Cancelled, MilepostError, SaveTimeout, forked
from milepost._together import before_jax_ends


class InFlight:
    """The one save of an AsyncCheckpointer."""

    def __init__(self, timeout_secs: float) -> None:
        if timeout_secs <= 0:
            raise ValueError(f"Timeout must be positive, but got {timeout_secs} seconds.")
        self._timeout_secs = timeout_secs
        self._lock = threading.Lock()
        self._ended: threading.Event | None = None
        self._handle: Any = None
        self._error: BaseException | None = None
        self._process = os.getpid()
        _known.add(self)

    def start(
        self,
        handle: Any,
        finish: Callable[[str], None],
        taken: Callable[[], BaseException],
    ) -> None:
        """Follows a save. The one before must have ended.

        Args:
            handle: Its `SaveHandle`.
            finish: Called with its url once it is committed.
            taken: Makes the error of a destination that another writer has taken meanwhile.
        """
        self._check_process()
        ended = threading.Event()
        with self._lock:
            assert self._ended is None or self._ended.is_set()
            self._ended, self._handle = ended, handle
        begun = time.monotonic()

        def run() -> None:
            try:
                left = self._timeout_secs - (time.monotonic() - begun)
                finish(self._result(handle, max(left, 0.0)).url)
            except AlreadyExists:
                self._fail(taken())
            except BaseException as error:
                self._fail(error)
            finally:
                ended.set()

        threading.Thread(target=run, name="milepost-checkpointer", daemon=True).start()

    def _result(self, handle: Any, left: float) -> Any:
        try:
            return handle.result(left)
        except SaveTimeout:
            handle.cancel()
        # It may have been publishing already: then it is saved, and late is not lost.
        try:
            return handle.result(None)
        except MilepostError:
            progress = handle.progress()
            raise SaveTimeout(
                f"the save did not end within {self._timeout_secs} seconds and was cancelled: "
                f"{progress.get('bytes_done')} of {progress.get('bytes_total')} bytes were written",
                hint="give AsyncCheckpointer a larger timeout_secs",
            ) from None

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = error
            _untold.add(self)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            # The thread that would set the event lives in the parent.
            raise forked()

    def wait(self) -> None:
        """Waits until the save has ended and raises its error, once.

        Raises:
            Forked: The checkpointer came through a fork.
        """
        self._wait()
        self.check()

    def wait_for_next(self) -> None:
        """As `wait`, where the next save is about to begin: of one that another process has
        cancelled, that one tells."""
        self._wait()
        error = self._taken_error()
        if error is not None and not isinstance(error, Cancelled):
            raise error

    def _wait(self) -> None:
        self._check_process()
        ended = self._ended
        if ended is not None:
            ended.wait()

    def check(self) -> None:
        """Raises the error of a save that has ended, once."""
        error = self._taken_error()
        if error is not None:
            raise error

    def cancel(self) -> None:
        """Cancels the save, and waits until what it wrote is gone."""
        self._check_process()
        with self._lock:
            handle, ended = self._handle, self._ended
        if handle is None or ended is None or ended.is_set():
            return
        handle.cancel()
        ended.wait()
        self._taken_error()

    def _taken_error(self) -> BaseException | None:
        with self._lock:
            error, self._error = self._error, None
            _untold.discard(self)
        return error

    def is_any(self) -> bool:
        """Whether a save is on its way."""
        ended = self._ended
        return ended is not None and not ended.is_set()

    def end(self) -> None:
        """Waits at the end of the process, and says on stderr what failed and nobody asked for."""
        if os.getpid() != self._process:
            return
        try:
            self.wait()
        except BaseException as error:
            print(f"milepost: a save failed and nobody asked: {error}", file=sys.stderr)


_known: weakref.WeakSet[InFlight] = weakref.WeakSet()
_untold: set[InFlight] = set()


def _end_all() -> None:
    for in_flight in {*_known, *_untold}:
        in_flight.end()


atexit.register(_end_all)
before_jax_ends(_end_all)
