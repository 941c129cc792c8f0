"""Whether a step is to be saved: the same answer in all processes.

What a clock or a function could answer differently, the first process decides for all. What follows
from the steps alone each decides for itself, so that a training loop does not meet at every step.
"""

from __future__ import annotations

from . import multihost
from ._manager_policies import Policies
from ._manager_saves import Saves
from ._native_run import NativeRun


class Due:
    """Asks the policies of a manager."""

    def __init__(self, native: NativeRun, policies: Policies, saves: Saves) -> None:
        self._native = native
        self._policies = policies
        self._saves = saves

    def is_due(self, step: int) -> bool:
        """Tells whether the policies want a step saved now; all processes ask for the same ones."""
        together = self._native.together
        if together is None:
            return self._here(step)
        if not self._policies.is_by_steps():
            return together.decide(lambda: self._here(step))
        wanted = self._here(step)
        flying = self._saves.steps()
        if flying and (wanted or step <= max(flying)):
            # How these end may be known in one process and not yet in another. A save waits anyway.
            self._saves.wait_committed()
            wanted = self._here(step)
        return wanted

    def _here(self, step: int) -> bool:
        is_preempted = not self._native._is_signalled() and multihost.reached_preemption(step)
        if is_preempted:
            self._native.preempt()
        try:
            wanted = self._native.should_save(step).save
        finally:
            if is_preempted:
                self._native.preempt(False)
        return bool(wanted) and self._policies.is_above_foreign(step)
