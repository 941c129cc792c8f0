"""Items of an open checkpoint, to be saved again as they are."""

from __future__ import annotations

from typing import Any

import milepost as mp
from milepost._restore import Want, read
from milepost.orbax.v1._flat_tree import flat


def item_of(checkpoint: Any, name: str, directory: str) -> Any:
    """Returns the native item that saves an item again.

    Args:
      checkpoint: An open checkpoint.
      name: The item.
      directory: An empty directory for the files of an opaque item; keep it until the save.
    """
    info = checkpoint.items[name]
    if info.kind in ("tree", "array"):
        index = checkpoint.index(name)
        values = read(index, [Want(n) for n in range(len(index.leaves))], progress=False)
        if info.kind == "array":
            return mp.Array(values[0], handler=info.handler)
        options = [mp.LeafOptions(chunk_shape=_chunks(one)) for one in index.leaves]
        return flat(index.structure, values, options, info.handler)
    if info.kind == "json":
        return mp.Json(checkpoint.json(name), handler=info.handler)
    if info.kind == "bytes":
        return mp.Bytes(checkpoint.bytes(name), handler=info.handler)
    checkpoint.extract(name, directory)
    return mp.Files(directory, handler=info.handler)


def _chunks(one: Any) -> tuple[int, ...] | None:
    return tuple(one.chunk_shape) if one.kind == "array" and one.shape else None


def values_and_structure(checkpoint: Any, name: str) -> tuple[Any, list[Any]]:
    """Returns the structure and the leaves of a tree item."""
    index = checkpoint.index(name)
    return index.structure, read(index, [Want(n) for n in range(len(index.leaves))], progress=False)
