"""Which checkpoints go after a save: pure, so that a plan can be compared with Flax's on any
history.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .._errors import Invalid


@dataclass(frozen=True)
class Retention:
    """The options of a save that say what stays.

    `keep`: so many of the last ones; 0 and infinity keep all. `keep_every`: of those before, each
    that is at least so far from the last one kept, counted from the first; one at step 0 is never
    kept by this, as with Flax. `overwrite`: later ones than the saved one go.
    """

    keep: int | float = 1
    overwrite: bool = False
    keep_every: float | None = None

    def __post_init__(self) -> None:
        is_whole = self.keep == math.inf or hasattr(self.keep, "__index__")
        if not is_whole or self.keep < 0:
            raise Invalid(f"keep is a number of checkpoints, 0 (all) or more. keep=`{self.keep}`")
        if self.keep_every is not None and not self.keep_every >= 0:
            raise Invalid(
                f"keep_every_n_steps is a distance in steps. keep_every_n_steps=`{self.keep_every}`"
            )

    def later(self, names: Sequence[str], saved: str) -> list[str]:
        """The names, of all in ascending order, that are later than the saved one and go."""
        if not self.overwrite or saved not in names:
            return []
        return list(names[names.index(saved) + 1 :])

    def older(self, steps: Sequence[tuple[str, int | float | None]]) -> list[str]:
        """The names, of all that are left in ascending order with their steps, that are too old and
        go.
        """
        if self.keep == 0 or len(steps) <= self.keep:
            return []
        gone, last_kept = [], -math.inf
        for name, step in steps[: len(steps) - int(self.keep)]:
            if self.keep_every and step and step - last_kept >= self.keep_every:
                last_kept = step
            else:
                gone.append(name)
        return gone
