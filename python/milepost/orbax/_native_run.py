"""The native manager as the drop-in drives it."""

from __future__ import annotations

from typing import Any

import milepost as mp


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

    @property
    def step_format(self) -> tuple[str, int]:
        """How new steps are named: a prefix, and the digits that numbers are padded to."""
        prefix, width = self._inner.write_format()
        return prefix, width
