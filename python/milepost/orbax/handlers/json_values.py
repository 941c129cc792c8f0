"""JsonCheckpointHandler: a JSON value as a JSON item."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import milepost as mp

from ..checkpoint_args import CheckpointArgs, register_with_handler
from . import base


class JsonCheckpointHandler(base.NativeHandler):
    """Saves and restores a JSON value; NaN and infinities are kept.

    Args:
        filename: Named Orbax's file. The item's name is ours; an empty text is refused.
        multiprocessing_options: `options.MultiprocessingOptions`.
    """

    kinds = ("json",)

    def __init__(
        self, filename: str | None = None, *, multiprocessing_options: Any = None
    ) -> None:
        if filename == "":
            raise ValueError("filename must not be empty")
        self.multiprocessing_options = multiprocessing_options

    def to_item(self, args: Any) -> tuple[Any, dict[str, Any] | None]:
        """The JSON item, as `json` would write and read it: tuples are lists, keys are texts.

        Raises:
            TypeError: The value holds what JSON does not know.
        """
        return mp.Json(json.loads(json.dumps(args.item))), None

    def from_item(self, checkpoint: Any, info: Any, args: Any) -> Any:
        """The value."""
        self.check_kind(checkpoint, info)
        return checkpoint.json(info.name)


@register_with_handler(JsonCheckpointHandler, for_save=True)
@dataclasses.dataclass
class JsonSaveArgs(CheckpointArgs):
    """What JsonCheckpointHandler saves.

    Attributes:
        item: The value.
    """

    item: Any


@register_with_handler(JsonCheckpointHandler, for_restore=True)
@dataclasses.dataclass
class JsonRestoreArgs(CheckpointArgs):
    """How JsonCheckpointHandler restores.

    Attributes:
        item: Orbax has the slot and does not read it; nor do we.
    """

    item: Any = None


base.register_kind("json", JsonCheckpointHandler)
