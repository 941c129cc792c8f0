"""How far a conversion is: told to a function, drawn by tqdm, or printed a line a step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .. import Saved
    from .found import ForeignStep


@dataclass(frozen=True)
class Progress:
    """After one step: `done` of `total`; `saved` is None where the step was there already."""

    step: int
    done: int
    total: int
    source: ForeignStep
    saved: Saved | None

    def __str__(self) -> str:
        if self.saved is None:
            return f"step {self.step}: there already ({self.done}/{self.total})"
        size = self.saved.data_bytes / 1e6
        return (
            f"step {self.step}: {self.source.kind}, {size:,.1f} MB → {self.saved.url} "
            f"({self.done}/{self.total})"
        )


def reporter(
    progress: bool | Callable[[Progress], None] | None, total: int
) -> Callable[[int, ForeignStep, Saved | None], None]:
    """A function that is told each step as it is done."""
    show: Callable[[Progress], Any]
    if callable(progress):
        show = progress
    elif progress:
        show = _print
    else:
        show = _silent
    done = 0

    def tell(step: int, source: ForeignStep, saved: Saved | None) -> None:
        nonlocal done
        done += 1
        show(Progress(step, done, total, source, saved))

    return tell


def _print(progress: Progress) -> None:
    print(progress, file=sys.stderr, flush=True)


def _silent(progress: Progress) -> None:
    del progress
