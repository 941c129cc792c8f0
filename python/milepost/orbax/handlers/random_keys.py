"""Random keys of JAX and NumPy, each as one item."""

from __future__ import annotations

import dataclasses
from typing import Any

import milepost as mp

from .. import _leaf_requests, _leaf_types, _pytree
from ..checkpoint_args import CheckpointArgs, register_with_handler
from . import base


class _RandomKeyHandler(base.NativeHandler):
    kinds = ("tree", "array")

    def __init__(self, key_name: str | None = None) -> None:
        if key_name == "":
            raise ValueError("key_name must not be empty")


class JaxRandomKeyCheckpointHandler(_RandomKeyHandler):
    """Saves a PRNG key, typed (with its implementation) or raw (an array of uint32).

    Args:
        key_name: Named Orbax's directory. The item's name is ours; an empty text is refused.
    """

    def to_item(self, args: Any) -> tuple[Any, dict[str, Any] | None]:
        """A tree item that is one leaf."""
        if not _leaf_requests.is_jax_array(args.item):
            raise TypeError(f"Unsupported type: {type(args.item)}.")
        return _pytree.tree_item(args.item, args.save_args), _leaf_types.recorded(args.item)

    def from_item(self, checkpoint: Any, info: Any, args: Any) -> Any:
        """The key, typed if it was."""
        self.check_kind(checkpoint, info)
        restore_args = None if args is None else args.restore_args
        index = checkpoint.index(info.name)
        return _pytree.restore_tree(index, None, restore_args, metadata=info.metadata)


class NumpyRandomKeyCheckpointHandler(_RandomKeyHandler):
    """Saves the state of NumPy's generator: `np.random.get_state()`, the tuple or the dict.

    Args:
        key_name: Named Orbax's directory. The item's name is ours; an empty text is refused.
    """

    def to_item(self, args: Any) -> tuple[Any, dict[str, Any] | None]:
        """A tree item."""
        if not isinstance(args.item, (tuple, dict)):
            raise TypeError(f"Unsupported type: {type(args.item)}.")
        return mp.Tree(args.item), None

    def from_item(self, checkpoint: Any, info: Any, args: Any) -> Any:
        """The tuple or dict, as it was."""
        self.check_kind(checkpoint, info)
        return _pytree.restore_tree(checkpoint.index(info.name), exact=True)


@register_with_handler(JaxRandomKeyCheckpointHandler, for_save=True)
@dataclasses.dataclass
class JaxRandomKeySaveArgs(CheckpointArgs):
    """What JaxRandomKeyCheckpointHandler saves.

    Attributes:
        item: The key.
        save_args: SaveArgs of its data.
    """

    item: Any
    save_args: Any = None


@register_with_handler(JaxRandomKeyCheckpointHandler, for_restore=True)
@dataclasses.dataclass
class JaxRandomKeyRestoreArgs(CheckpointArgs):
    """How JaxRandomKeyCheckpointHandler restores.

    Attributes:
        restore_args: RestoreArgs of a raw key's data.
    """

    restore_args: Any = None


@register_with_handler(NumpyRandomKeyCheckpointHandler, for_save=True)
@dataclasses.dataclass
class NumpyRandomKeySaveArgs(CheckpointArgs):
    """What NumpyRandomKeyCheckpointHandler saves.

    Attributes:
        item: The state.
    """

    item: Any


@register_with_handler(NumpyRandomKeyCheckpointHandler, for_restore=True)
@dataclasses.dataclass
class NumpyRandomKeyRestoreArgs(CheckpointArgs):
    """How NumpyRandomKeyCheckpointHandler restores: there is nothing to say."""
