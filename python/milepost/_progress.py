"""Progress bars: tqdm on a terminal or in a notebook, for what takes longer than half a second."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

DELAY_SECONDS = 0.5
INTERVAL_SECONDS = 0.1


def _wanted(progress: bool | None) -> bool:
    if progress is not None:
        return progress
    if "ipykernel" in sys.modules:
        return True
    return sys.stderr is not None and sys.stderr.isatty()


@contextlib.contextmanager
def shown(what: str, counters: Callable[[], dict[str, Any]], progress: bool | None) -> Iterator[None]:
    """Shows the counters of an operation while it runs.

    ``progress``: True always, False never, None on a terminal or in a notebook. Without tqdm nothing is shown, unless it
    was asked for: then ImportError.
    """
    if not _wanted(progress):
        yield
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if progress:
            raise
        yield
        return
    ended = threading.Event()

    def draw() -> None:
        if not progress and ended.wait(DELAY_SECONDS):
            return
        with tqdm(desc=what, unit="B", unit_scale=True, leave=bool(progress)) as bar:
            going = True
            while going:
                going = not ended.wait(INTERVAL_SECONDS)
                now = counters()
                bar.total = now["bytes_total"]
                bar.update(now["bytes_done"] - bar.n)

    thread = threading.Thread(target=draw, name="milepost-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
