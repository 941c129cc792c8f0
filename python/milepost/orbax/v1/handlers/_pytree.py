"""The handler of pytrees.

As an item of its own a tree is not files: it becomes a native tree item (see `items`), one Zarr
array a leaf. A custom handler may pass its directory on to this class: the tree is then a whole
checkpoint of its own below that directory.
"""

from __future__ import annotations

import os
import pathlib
import typing
from collections.abc import Awaitable
from typing import Any

import numpy as np

from milepost import _structure
from milepost._errors import Invalid
from milepost.orbax._leaf_requests import is_jax_array
from milepost.orbax.v1.handlers._protocol import CheckpointableHandler
from milepost.orbax.v1.path import PathAwaitingCreation

# How many leaves an error names.
NAMED_MAX = 20
_PLAIN = (bool, int, float, complex, str, bytes, np.ndarray, np.generic)


class UnregisteredTypeError(ValueError):
    """A tree has leaves that cannot be stored."""


def is_storable(leaf: Any) -> bool:
    """Returns whether a leaf can be stored; `...` is none that can."""
    return isinstance(leaf, _PLAIN) or is_jax_array(leaf)


def check_leaves(structure: Any, leaves: list[Any]) -> None:
    """Checks that every leaf of a flattened tree can be stored.

    Raises:
      UnregisteredTypeError: Names those that cannot, by key path.
    """
    wrong = [number for number, leaf in enumerate(leaves) if not is_storable(leaf)]
    if wrong:
        paths = _structure.key_paths(structure)
        listed = "; ".join(
            f"{_structure.text(paths[n]) or '(root)'}: {type(leaves[n]).__name__}"
            for n in wrong[:NAMED_MAX]
        )
        raise UnregisteredTypeError(
            f"Unsupported leaf type for saving: {listed}. Leaves are arrays, numbers, text, bytes "
            "and PRNG keys; register a CheckpointableHandler for an object of another type and "
            "save it with save_checkpointables"
        )


@typing.final
class PyTreeHandler(CheckpointableHandler[Any, Any]):
    """Saves and loads trees of arrays, numbers, text and bytes.

    Args:
      context: Whose options count; None: those of the context that is active at each call.
    """

    def __init__(self, *, context: Any = None):
        self._context = context

    def _options(self) -> Any:
        from milepost.orbax.v1._context import get_context

        return self._context if self._context is not None else get_context()

    async def save(self, directory: PathAwaitingCreation, checkpointable: Any) -> Awaitable[None]:
        from milepost.orbax.v1 import _items

        held = _items.hold(_items.tree_item(checkpointable, self._options()))
        keywords = _items.save_keywords(self._options())

        async def write() -> None:
            import milepost as mp

            # Into a directory of its own: the handler's may hold files of the caller.
            place = pathlib.Path(await directory.await_creation(), _items.NESTED)
            mp.save(
                os.fspath(place),
                items={_items.STATE: held.item},
                item_metadata={_items.STATE: held.metadata},
                progress=False,
                together=False,
                **keywords,
            )

        return write()

    async def load(self, directory: Any, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        from milepost.orbax.v1 import _items, _tree_load

        context = self._options()
        if abstract_checkpointable is not None:
            _tree_load.check_abstract(abstract_checkpointable)

        async def read() -> Any:
            checkpoint, name = _items.nested(directory)
            info = checkpoint.items[name]
            return _tree_load.load_tree(
                checkpoint.index(name), abstract_checkpointable, info.metadata, context
            )

        return read()

    async def metadata(self, directory: Any) -> Any:
        from milepost.orbax.v1 import _items, _tree_load

        checkpoint, name = _items.nested(directory)
        info = checkpoint.items[name]
        return _tree_load.describe_tree(checkpoint.index(name), info.metadata, self._options())

    def is_handleable(self, checkpointable: Any) -> bool:
        try:
            _, leaves = _structure.flatten(checkpointable)
        except Invalid:
            return True  # a tree with impossible keys: saving it says which
        return all(is_storable(leaf) for leaf in leaves)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        from milepost.orbax.v1 import _tree_load

        try:
            _tree_load.check_abstract(abstract_checkpointable)
        except TypeError:
            return False
        return True
