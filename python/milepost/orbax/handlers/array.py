"""ArrayCheckpointHandler: one array or scalar as an array item."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import milepost as mp

from .. import _leaf_requests, _leaf_types, _pytree
from ..checkpoint_args import CheckpointArgs, register_with_handler
from . import base


class ArrayCheckpointHandler(base.NativeHandler):
    """Saves and restores one array, Python or NumPy scalar.

    Args:
        checkpoint_name: Named Orbax's file. The item's name is ours; an empty text is refused.
        compression: ``"none"``, ``"zstd"``, ``"zstd:LEVEL"``, …
    """

    kinds = ("array", "tree")

    def __init__(
        self, checkpoint_name: str | None = None, *, compression: str | None = None
    ) -> None:
        if checkpoint_name == "":
            raise ValueError("checkpoint_name must not be empty")
        self.compression = compression

    def to_item(self, args: Any) -> tuple[Any, dict[str, Any] | None]:
        """The array item."""
        value = args.item
        if not isinstance(value, (int, float, complex, np.generic)) and not hasattr(value, "shape"):
            raise TypeError(f"Unsupported type: {type(value)}.")
        if _leaf_requests.is_prng_key(value):
            return _pytree.tree_item(value), None
        save_args = args.save_args
        options = mp.LeafOptions(
            dtype=getattr(save_args, "dtype", None),
            chunk_bytes=getattr(save_args, "chunk_byte_size", None),
            reshard_axes=tuple(getattr(save_args, "shard_axes", ()) or ()) or None,
            compression=self.compression,
        )
        return mp.Array(value, leaf_options=options), _leaf_types.recorded(value)

    def from_item(self, checkpoint: Any, info: Any, args: Any) -> Any:
        """The array; as it was saved where there are no restore args."""
        self.check_kind(checkpoint, info)
        restore_args = None if args is None else args.restore_args
        item = None if args is None else args.item
        index = checkpoint.index(info.name)
        return _pytree.restore_tree(index, item, restore_args, metadata=info.metadata)

    def metadata_from(self, checkpoint: Any, info: Any) -> Any:
        """The array's metadata."""
        index = checkpoint.index(info.name)
        return _pytree.tree_metadata(index, info.metadata, str(checkpoint.url))


@register_with_handler(ArrayCheckpointHandler, for_save=True)
@dataclasses.dataclass
class ArraySaveArgs(CheckpointArgs):
    """What ArrayCheckpointHandler saves.

    Attributes:
        item: The array or scalar.
        save_args: Its SaveArgs.
    """

    item: Any
    save_args: Any = None


@register_with_handler(ArrayCheckpointHandler, for_restore=True)
@dataclasses.dataclass
class ArrayRestoreArgs(CheckpointArgs):
    """How ArrayCheckpointHandler restores.

    Attributes:
        item: An array whose sharding is wanted; its shape does not count.
        restore_args: RestoreArgs or `type_handlers.ArrayRestoreArgs`.
    """

    item: Any = None
    restore_args: Any = None


base.register_kind("array", ArrayCheckpointHandler)
