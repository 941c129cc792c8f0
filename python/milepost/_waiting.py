"""A wait that may take longer than who asked for it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ._save import is_ended


class Waiting:
    """A call that waits, on a thread of its own: it may take longer than who asked. In an exit hook after ours no thread
    comes back: there it has ended when it is made."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self.failure: BaseException | None = None
        # No daemon: at the end of the process these lose the interpreter inside a call.
        self._thread = threading.Thread(target=self._wait, name="milepost-wait")
        if is_ended():
            self._wait()
        else:
            self._thread.start()

    def _wait(self) -> None:
        try:
            self._call()
        except BaseException as error:  # who joins raises it
            self.failure = error

    def ended(self, timeout: float | None) -> bool:
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()
