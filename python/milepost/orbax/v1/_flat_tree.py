"""A tree that is flattened already, as a native item.

The caller's tree is walked once: its leaves are checked, described and captured from one list. A
tree read back from a checkpoint keeps its containers by their recorded names this way, whether or
not their types are loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import milepost as mp
from milepost import _milepost, _structure
from milepost._arrays import leaf


@dataclasses.dataclass(frozen=True)
class FlatTree(mp.Tree):
    """A tree item; `tree` holds the leaves in order, `leaf_options` one member a leaf or None."""

    structure: Any = None

    def _item(self, capture: Any) -> Any:
        options: Any = self.leaf_options or [None] * len(self.tree)
        made = []
        for number, value in enumerate(self.tree):
            try:
                made.append(leaf(value, "", capture, options[number]))
            except mp.MilepostError as error:
                path = _structure.text(_structure.key_paths(self.structure)[number])
                where = {**error.context, "leaf": path or "(root)"}
                raise type(error)(error.message, context=where, hint=error.hint) from error.__cause__
        return _milepost.Item.tree(self.structure, made)


def flat(
    structure: Any, leaves: Sequence[Any], leaf_options: Any = None, handler: str | None = None
) -> FlatTree:
    """Returns the item of a flattened tree."""
    return FlatTree(leaves, leaf_options, handler, structure)
