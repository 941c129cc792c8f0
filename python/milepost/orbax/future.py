"""Futures, as handlers return them from `async_save`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, runtime_checkable

__all__ = ["ChainedFuture", "CommitFuture", "Future", "NoopFuture"]


@runtime_checkable
class Future(Protocol):
    """Anything with a `result`."""

    def result(self, timeout: float | None = None) -> Any:
        """Waits at most `timeout` seconds and returns the outcome, or raises it."""


class NoopFuture:
    """A future that is done."""

    def result(self, timeout: float | None = None) -> Any:
        """None, at once."""
        return None


class ChainedFuture:
    """Several futures, and a callback after the last.

    Raises:
        TimeoutError: From `result`: not all were done in time; the others go on.
    """

    def __init__(self, futures: Sequence[Any], cb: Callable[[], None]) -> None:
        self._futures = futures
        self._callback = cb

    def result(self, timeout: float | None = None) -> Any:
        """Waits for all, then calls back."""
        end = None if timeout is None else time.monotonic() + timeout
        for done, future in enumerate(self._futures):
            left = None if end is None else max(end - time.monotonic(), 0.0)
            try:
                future.result(left) if left is not None else future.result()
            except TimeoutError as error:
                raise TimeoutError(
                    f"{done} of {len(self._futures)} futures were done when {timeout:.2f} seconds "
                    "had passed"
                ) from error
        self._callback()


class CommitFuture:
    """A coroutine that runs on a thread of its own from the moment it is made.

    Args:
        coro: What runs.
        name: The thread's name.
    """

    def __init__(self, coro: Coroutine[Any, Any, Any], name: str | None = None) -> None:
        self._error: BaseException | None = None
        self._value: Any = None
        self._thread = threading.Thread(target=self._run, args=(coro,), name=name, daemon=True)
        self._thread.start()

    def _run(self, coro: Coroutine[Any, Any, Any]) -> None:
        try:
            self._value = asyncio.run(coro)
        except BaseException as error:
            self._error = error

    def result(self, timeout: float | None = None) -> Any:
        """Waits for the coroutine.

        Raises:
            TimeoutError: It was not done in `timeout` seconds; it goes on.
        """
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"{self._thread.name} was not done within {timeout} seconds")
        if self._error is not None:
            raise self._error
        return self._value


CommitFutureAwaitingContractedSignals = CommitFuture
"""Orbax's name; the signals that it awaits (directories being made) are not needed here."""
