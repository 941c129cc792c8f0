"""What a manager's logger is told: the entries of Orbax's step statistics, as dicts.

Times are Unix times, durations seconds. What does not exist here is None: old steps are planned and
deleted in the background.
"""

from __future__ import annotations

import time
from typing import Any


class SaveLog:
    """Clocks one save."""

    def __init__(self, step: int, directory: str, previous: float | None) -> None:
        """`previous` is when the save before this one began."""
        self._entry: dict[str, Any] = {
            "step": step,
            "event_type": "save",
            "directory": directory,
            "reached_preemption": False,
            "preemption_received_at": None,
            "synchronous": False,
            "wait_for_prev_start_time": None,
            "wait_for_prev_duration_secs": None,
            "time_between_consecutive_saves_sec": None,
            "checkpointer_blocking_start_time": None,
            "checkpointer_blocking_duration_secs": None,
            "get_old_steps_start_time": None,
            "get_old_steps_duration_secs": None,
            "checkpoint_manager_blocking_start_time": time.time(),
            "checkpoint_manager_blocking_duration_secs": None,
        }
        if previous is not None:
            self._entry["time_between_consecutive_saves_sec"] = time.time() - previous

    def waiting(self) -> None:
        """Says that the save before is waited for, and then captured."""
        now = time.time()
        self._entry["wait_for_prev_start_time"] = now
        self._entry["checkpointer_blocking_start_time"] = now

    def ended(self, *, synchronous: bool, preempted: bool) -> dict[str, Any]:
        """Returns the entry of a save that returns to its caller."""
        now, entry = time.time(), self._entry
        blocking = now - entry["checkpointer_blocking_start_time"]
        # The engine does both in one call.
        entry["wait_for_prev_duration_secs"] = blocking
        entry["checkpointer_blocking_duration_secs"] = blocking
        begun = entry["checkpoint_manager_blocking_start_time"]
        entry["checkpoint_manager_blocking_duration_secs"] = now - begun
        entry["synchronous"], entry["reached_preemption"] = synchronous, preempted
        entry["preemption_received_at"] = begun if preempted else None
        return entry


def restore_entry(
    step: int | None, directory: str, started: float, opened: float
) -> dict[str, Any]:
    """Returns the entry of a restore that began at `started` and had its step at `opened`."""
    now = time.time()
    return {
        "step": step,
        "event_type": "restore",
        "directory": directory,
        "checkpointer_start_time": opened,
        "checkpointer_duration_secs": now - opened,
        "checkpoint_manager_start_time": started,
        "checkpoint_manager_duration_secs": now - started,
    }
