"""The native manager as the drop-in drives it."""

from __future__ import annotations

from typing import Any

import milepost as mp
from milepost._manager import step_number


class NativeRun(mp.CheckpointManager):
    """The native manager without its own eye for other libraries' steps.

    Natively, a run with steps of another library takes no save. Behind a changed import line it
    does, beside them: the training goes on. The drop-in lists, restores and protects these steps
    itself.
    """

    def _foreign_steps(self) -> list[Any]:
        return []

    def _check_names(self, run: Any, prefix: str | None, width: int | None) -> None:
        """Passes: the drop-ins look at `step_format` themselves, for they know several formats."""

    def delete(self, step: int) -> None:
        """Deletes a step. In several processes all call it, when no save is under way: the first
        one deletes, and it is gone in all of them when this returns."""
        together = self.together
        if together is None:
            super().delete(step)
            return
        number = step_number(step)
        # Not before all have heard that it was committed.
        together.first(lambda: self._inner.delete(number), after_all=True)
        if together.index > 0:
            self.reload()

    def wait(self, timeout: Any = None) -> None:
        """As the native one; after it, what the first of several processes deletes by the policy is
        not listed."""
        super().wait(timeout)
        self.forget_deleted()

    def list_as_first(self, together: mp.Together) -> None:
        """Lists the steps that the first of several processes lists, until they list again; all
        call it.

        Raises:
            milepost.Unavailable: The store does not show a step here that it shows there.
        """
        theirs = set(together.first(self.steps))
        if together.index == 0:
            return
        if theirs - set(self._inner.steps()):
            self.reload()
        own = set(self._inner.steps())
        self._deleted = own - theirs
        if theirs - own:
            raise mp.Unavailable(
                "the store does not show all steps here that it shows another process",
                context={"steps": ", ".join(map(str, sorted(theirs - own)))},
            )

    @property
    def step_format(self) -> tuple[str, int]:
        """How new steps are named: a prefix, and the digits that numbers are padded to."""
        prefix, width = self._inner.write_format()
        return prefix, width
