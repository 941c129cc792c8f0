"""A named part of another library's checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ItemKind = Literal["tree", "array", "json", "metrics", "random_key", "files"]


@dataclass(frozen=True)
class ForeignItem:
    """One item; `handler` is the name of Orbax's class as the checkpoint has it, never imported."""

    name: str
    kind: ItemKind
    path: str
    handler: str | None = None
