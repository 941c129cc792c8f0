"""What a `Checkpointer`'s logger is told."""

from __future__ import annotations

import time
from typing import Any


class Log:
    """Tells a logger of saves and restores; without one, nobody."""

    def __init__(self, logger: Any, directory: Any) -> None:
        self._logger = logger
        self._directory = directory

    def entry(self, event: str, step: int, begun: float, **more: float) -> None:
        """Takes one entry; `begun` is `time.monotonic()` of then, `more` are seconds by name."""
        if self._logger is not None:
            seconds = time.monotonic() - begun
            self._logger.log_entry(
                {
                    "event_type": event,
                    "step": step,
                    "directory": str(self._directory),
                    "checkpoint_manager_duration_secs": seconds,
                    **more,
                }
            )
