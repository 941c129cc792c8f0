"""The handler of protocol buffer messages; needs `google.protobuf` only when it is used."""

from __future__ import annotations

import pathlib
import sys
import typing
from collections.abc import Awaitable
from typing import Any

from milepost.orbax.v1.handlers._protocol import CheckpointableHandler
from milepost.orbax.v1.path import PathAwaitingCreation


def _message_class() -> type | None:
    """Returns `google.protobuf.message.Message` where something has loaded it."""
    module = sys.modules.get("google.protobuf.message")
    return getattr(module, "Message", None)


@typing.final
class ProtoHandler(CheckpointableHandler[Any, Any]):
    """Saves a message as text format in one file.

    Args:
      filename: Name of the file in the item.
    """

    def __init__(self, filename: str = "proto.pbtxt"):
        self._filename = filename

    async def save(self, directory: PathAwaitingCreation, checkpointable: Any) -> Awaitable[None]:
        from google.protobuf import text_format

        text = text_format.MessageToString(checkpointable)  # now: the message may change later

        async def write() -> None:
            parent = await directory.await_creation()
            pathlib.Path(parent, self._filename).write_text(text, encoding="utf-8")

        return write()

    async def load(self, directory: Any, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        if abstract_checkpointable is None:
            raise ValueError(
                "abstract_checkpointable must be provided to restore as a Proto: pass the "
                "message's class"
            )

        async def read() -> Any:
            from google.protobuf import text_format

            text = pathlib.Path(directory, self._filename).read_text(encoding="utf-8")
            return text_format.Parse(text, abstract_checkpointable())

        return read()

    async def metadata(self, directory: Any) -> Any:
        raise NotImplementedError("a message's class is not in the checkpoint")

    def is_handleable(self, checkpointable: Any) -> bool:
        message = _message_class()
        return message is not None and isinstance(checkpointable, message)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        message = _message_class()
        return (
            message is not None
            and isinstance(abstract_checkpointable, type)
            and issubclass(abstract_checkpointable, message)
        )
