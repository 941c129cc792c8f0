"""Loggers of what a CheckpointManager does: `CheckpointManager(…, logger=…)`."""

from __future__ import annotations

import abc
import logging
from typing import Any

__all__ = ["AbstractLogger", "CompositeLogger", "StandardLogger"]


class AbstractLogger(abc.ABC):
    """A logger of your own: implement `log_entry`."""

    @abc.abstractmethod
    def log_entry(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Takes one entry: a dict with ``event_type``, ``step`` and times in seconds, or a text."""


class StandardLogger(AbstractLogger):
    """Logs to Python's logger ``milepost.orbax`` at level INFO. Orbax uses absl's."""

    def log_entry(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Logs one entry."""
        logging.getLogger("milepost.orbax").info(msg, *args, **kwargs)


class CompositeLogger(AbstractLogger):
    """Several loggers, each of which gets every entry.

    Raises:
        TypeError: One is not a logger, or is composite itself. Orbax leaves it out with a warning.
    """

    def __init__(self, *loggers: AbstractLogger) -> None:
        for logger in loggers:
            if isinstance(logger, CompositeLogger) or not hasattr(logger, "log_entry"):
                raise TypeError(f"not a logger for a CompositeLogger: {logger!r}")
        self._loggers = loggers

    def log_entry(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Gives the entry to all."""
        for logger in self._loggers:
            logger.log_entry(msg, *args, **kwargs)
