"""Operations in two parts: what the caller waits for, and what goes on in the background.

```text
  caller ── foreground(coroutine) ──▶ loop thread: handler.save(…)  returns an awaitable
     │                                       │
     └◀── Response ◀── in_background(fn) ── worker thread: awaits it there, saves, commits
```

Both parts run on one event loop in a thread of its own, so that handlers may keep tasks from the
first part for the second, and so that a notebook's running loop is not in the way. The worker is
not a daemon: the interpreter's exit waits for it.

**Invariant:** a `Response` always gets a result or an exception.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

from milepost._errors import Cancelled

T = TypeVar("T")
# How long Ctrl-C waits for a cancelled operation to sweep its files.
CANCEL_SECONDS_MAX = 30.0


class AsyncResponse(Protocol[T]):
    """What the `…_async` functions return."""

    def result(self, timeout: float | None = None) -> T:
        """Waits until the operation is done and returns its result, or raises its error.

        Args:
          timeout: Seconds to wait; None: without limit. The operation goes on after a timeout.

        Raises:
          TimeoutError: It is not done in time.
        """
        ...

    def on_complete(self, callback: Callable[[T], None]) -> None:
        """Calls `callback(result)` once the operation has succeeded; at once if it has."""
        ...


class Cancellation:
    """How an operation is stopped, known before it is started.

    As a context manager, it stops the operation where Ctrl-C ends the block, wherever in it that
    happens, and leaves the block once the operation has ended.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: list[Callable[[], Any]] = []
        self.is_asked = False
        self.future: concurrent.futures.Future[Any] | None = None
        self.committed = threading.Event()
        """Of a save: it is known whether it is committed."""

    def add(self, step: Callable[[], Any]) -> None:
        """Has `cancel` call a function; at once if it was called already."""
        with self._lock:
            self._steps.append(step)
            asked = self.is_asked
        if asked:
            step()

    def cancel(self) -> None:
        """Asks the operation to stop."""
        with self._lock:
            self.is_asked = True
            steps = list(self._steps)
        for step in steps:
            step()

    def __enter__(self) -> "Cancellation":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.cancel()
            if self.future is not None:
                concurrent.futures.wait([self.future], timeout=CANCEL_SECONDS_MAX)


class Response(Generic[T]):
    """An operation in the background: an `AsyncResponse` that can be awaited, too."""

    def __init__(self, what: str, cancellation: Cancellation | None = None) -> None:
        self._what = what
        self.cancellation = Cancellation() if cancellation is None else cancellation
        self._future: concurrent.futures.Future[T] = concurrent.futures.Future()
        # Running, so that who stops waiting for it (asyncio.wait_for) does not take its outcome away.
        self._future.set_running_or_notify_cancel()
        self._told = False

    def result(self, timeout: float | None = None) -> T:
        """See `AsyncResponse.result`."""
        try:
            return self._future.result(timeout)
        except concurrent.futures.TimeoutError as error:
            if self._future.done():
                raise
            raise TimeoutError(f"{self._what} is not done after {timeout} s; it goes on") from error
        finally:
            self._told = self._told or self._future.done()

    def cancel(self) -> None:
        """Asks the operation to stop: `result` then raises, unless it is being committed."""
        self.cancellation.cancel()

    def done(self) -> bool:
        """Returns whether `result()` would return, or raise, at once."""
        return self._future.done()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits as `result` does; returns the error of the operation, None where it succeeded."""
        error = self._future.exception(timeout)
        self._told = True
        return error

    def was_cancelled(self) -> bool:
        """Returns whether it has ended by a cancellation; nobody is told by that."""
        return self.done() and isinstance(self._future.exception(), Cancelled)

    def wait_until_done(self) -> None:
        """Waits; an error is left for whoever asks."""
        concurrent.futures.wait([self._future])

    def mapped(self, what: Callable[[T], Any]) -> "Response[Any]":
        """Returns a view of the same operation with another result; errors are told through it."""
        return _Mapped(self, what)

    def check(self) -> None:
        """Waits, and raises the error of the operation if nobody was told of it."""
        error = self._future.exception()
        if error is not None and not self._told:
            self._told = True
            raise error

    def on_complete(self, callback: Callable[[T], None]) -> None:
        """See `AsyncResponse.on_complete`."""

        def call(future: concurrent.futures.Future[T]) -> None:
            if not future.cancelled() and future.exception() is None:
                callback(future.result())

        self._future.add_done_callback(call)

    def __await__(self) -> Any:
        self._told = True
        return asyncio.wrap_future(self._future).__await__()

    def __repr__(self) -> str:
        state = "running"
        if self._future.done():
            state = "failed" if self._future.exception() is not None else "done"
        return f"<Response of {self._what}: {state}>"


class _Mapped(Response[Any]):
    """See `Response.mapped`."""

    def __init__(self, inner: Response[Any], what: Callable[[Any], Any]) -> None:
        super().__init__(inner._what, inner.cancellation)
        self._inner = inner
        self._map = what
        # Last: where the operation has ended already, this calls it now.
        inner._future.add_done_callback(self._ended)

    def _ended(self, future: concurrent.futures.Future[Any]) -> None:
        try:
            value = self._map(future.result())
        except BaseException as error:  # the waiter must get it, whatever it is
            self._future.set_exception(error)
        else:
            self._future.set_result(value)

    @property
    def _told(self) -> bool:
        return self._inner._told if hasattr(self, "_inner") else False

    @_told.setter
    def _told(self, value: bool) -> None:
        if hasattr(self, "_inner"):
            self._inner._told = value


def in_background(
    what: str, work: Callable[[], T], cancellation: Cancellation | None = None
) -> Response[T]:
    """Runs `work` in a thread, in a copy of the caller's context variables.

    Args:
      what: Names the operation.
      cancellation: How it is stopped; `work` may add to it.
    """
    response: Response[T] = Response(what, cancellation)
    response.cancellation.future = response._future
    context = contextvars.copy_context()

    def run() -> None:
        try:
            value = context.run(work)
        except BaseException as error:  # the waiter must get it, whatever it is
            response._future.set_exception(error)
        else:
            response._future.set_result(value)

    threading.Thread(target=run, name="milepost-" + what.split(" ")[0], daemon=False).start()
    return response


class Loop:
    """An event loop in a thread of its own, for the coroutines of one operation."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon: an operation that was given up on must not keep the interpreter from exiting.
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="milepost-handlers", daemon=True
        )
        self._thread.start()

    def run(
        self, coroutine: Coroutine[Any, Any, T] | Awaitable[T], timeout: float | None = None
    ) -> T:
        """Runs an awaitable to its end, in the caller's context variables.

        Raises:
          TimeoutError: It is not done after `timeout` seconds; it is cancelled.
        """

        async def main() -> T:
            return await coroutine

        future = asyncio.run_coroutine_threadsafe(main(), self._loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def cancel(self) -> None:
        """Cancels what is running on the loop: `run` then raises `CancelledError`."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel_tasks)

    def _cancel_tasks(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    def close(self) -> None:
        """Ends the loop; what is still running on it is cancelled."""

        def stop() -> None:
            self._cancel_tasks()
            self._loop.call_soon(self._loop.stop)

        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> "Loop":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()
