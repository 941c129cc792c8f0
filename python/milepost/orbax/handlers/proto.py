"""ProtoCheckpointHandler: a protocol buffer message as a bytes item."""

from __future__ import annotations

import dataclasses
from typing import Any

import milepost as mp

from ..checkpoint_args import CheckpointArgs, register_with_handler
from . import base


class ProtoCheckpointHandler(base.NativeHandler):
    """Saves a message in its binary form (Orbax: its text form) and restores it.

    Args:
        filename: Named Orbax's file. The item's name is ours; an empty text is refused.
        multiprocessing_options: `options.MultiprocessingOptions`.
    """

    kinds = ("bytes",)

    def __init__(
        self, filename: str = "proto.pbtxt", *, multiprocessing_options: Any = None
    ) -> None:
        if filename == "":
            raise ValueError("filename must not be empty")
        self.multiprocessing_options = multiprocessing_options

    def to_item(self, args: Any) -> tuple[Any, dict[str, Any] | None]:
        """The bytes item."""
        if not hasattr(args.item, "SerializeToString"):
            raise TypeError(f"not a protocol buffer message: {type(args.item).__name__}")
        return mp.Bytes(args.item.SerializeToString()), None

    def from_item(self, checkpoint: Any, info: Any, args: Any) -> Any:
        """A message of the class that the args name.

        Raises:
            ValueError: No args: the class of a message is never loaded because a checkpoint names
                it.
        """
        self.check_kind(checkpoint, info)
        if args is None or args.item is None:
            raise ValueError("Must provide `item` (the message's class) to restore a proto.")
        return args.item.FromString(bytes(checkpoint.bytes(info.name)))


@register_with_handler(ProtoCheckpointHandler, for_save=True)
@dataclasses.dataclass
class ProtoSaveArgs(CheckpointArgs):
    """What ProtoCheckpointHandler saves.

    Attributes:
        item: The message.
    """

    item: Any


@register_with_handler(ProtoCheckpointHandler, for_restore=True)
@dataclasses.dataclass
class ProtoRestoreArgs(CheckpointArgs):
    """How ProtoCheckpointHandler restores.

    Attributes:
        item: The message's class.
    """

    item: Any = None
