"""What tracks saves that run while training goes on."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from .._errors import Invalid

_LOG = logging.getLogger("milepost.flax")


class AsyncManager:
    """Tracks one save at a time: `save_checkpoint(…, async_manager=manager)` returns once the state
    is captured.

    Use one manager for all saves of a directory, so that `keep` and `overwrite` see each other's
    work. An error of a save is raised once, by whatever waits for it next; Flax's loses it where
    the save ended before anybody waited. One that nobody waited for is told when the process ends.

    Args:
        max_workers: threads that wait for saves. The next save waits for the one before, whatever
            this is.
    """

    def __init__(self, max_workers: int = 1) -> None:
        if max_workers < 1:
            raise Invalid(f"max_workers is at least 1, not {max_workers}")
        self._max_workers = max_workers
        self.save_future: Future[Any] | None = None
        self._is_told = True
        self._start()
        atexit.register(_tell_at_exit, weakref.ref(self))

    def _start(self) -> None:
        self._pid = os.getpid()
        self.executor = ThreadPoolExecutor(self._max_workers, thread_name_prefix="milepost-flax")

    def wait_previous_save(self) -> None:
        """Waits until the previous save has ended, and raises its error once."""
        future = self.save_future
        if future is None or self._is_told:
            return
        if self._pid != os.getpid():
            # A fork's child has neither the threads nor the save, which is the parent's.
            self.save_future, self._is_told = None, True
            return
        try:
            future.exception()
        finally:
            self._is_told = future.done()
        future.result()

    def save_async(self, task: Callable[[], Any]) -> None:
        """Runs what is left of a save on a thread, after the previous one has ended; `save_future`
        is its future.
        """
        self.wait_previous_save()
        if self._pid != os.getpid():
            self._start()
        self.save_future = self.executor.submit(task)
        self._is_told = False


def _tell_at_exit(reference: weakref.ref[AsyncManager]) -> None:
    manager = reference()
    if manager is None:
        return
    try:
        manager.wait_previous_save()
    except BaseException as error:  # noqa: BLE001 - nobody is left to catch it
        _LOG.error("the last save has failed, and nobody waited for it: %s", error)


class GlobalAsyncCheckpointManager:
    """`gda_manager=` of `save_checkpoint_multiprocess` and `restore_checkpoint`: what JAX's of the
    same name is to Flax.

    A save of Milepost's commits all leaves at once, so nothing is written beside the checkpoint and
    there is nothing left to wait for when a call has returned. JAX's own manager is taken as well.

    Args:
        timeout_secs: seconds that a save may take until it is committed; then it is cancelled, and
            `SaveTimeout` raised.
    """

    def __init__(self, timeout_secs: float = 300) -> None:
        if not timeout_secs > 0:
            raise Invalid(f"timeout_secs is a positive number of seconds, not {timeout_secs}")
        self.timeout_secs = timeout_secs

    def check_for_errors(self) -> None:
        """Passes: errors are raised by the call that has them."""

    def wait_until_finished(self) -> None:
        """Passes: a save through this manager has ended when its call returns."""
