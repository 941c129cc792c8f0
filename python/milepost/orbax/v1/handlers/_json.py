"""Handlers of JSON values.

As an item of their own JSON values are not files: Milepost keeps them in the item's own document
(see `items`). The files below are what a custom handler gets that passes a directory on to these.
"""

from __future__ import annotations

import json
import pathlib
import typing
from collections.abc import Awaitable
from typing import Any

from milepost.orbax.v1.handlers._protocol import CheckpointableHandler
from milepost.orbax.v1.path import PathAwaitingCreation

_DATA_FILENAME = "data.json"
# The name that Orbax's v0 handler gave its file.
_LEGACY_FILENAME = "metadata"


@typing.final
class JsonHandler(CheckpointableHandler[Any, None]):
    """Saves what `json.dumps` takes.

    Args:
      filename: Name of the file; by default `data.json`.
    """

    def __init__(self, filename: str | None = None):
        self._filename = filename or _DATA_FILENAME

    async def save(self, directory: PathAwaitingCreation, checkpointable: Any) -> Awaitable[None]:
        text = json.dumps(checkpointable)  # now: the value may change later

        async def write() -> None:
            parent = await directory.await_creation()
            pathlib.Path(parent, self._filename).write_text(text, encoding="utf-8")

        return write()

    async def load(self, directory: Any, abstract_checkpointable: None = None) -> Awaitable[Any]:
        del abstract_checkpointable

        async def read() -> Any:
            names = (self._filename, _DATA_FILENAME, _LEGACY_FILENAME)
            for name in names:
                file = pathlib.Path(directory, name)
                if file.exists():
                    return json.loads(file.read_text(encoding="utf-8"))
            raise FileNotFoundError(
                f"Unable to find a JSON file in {directory}: looked for {sorted(set(names))}"
            )

        return read()

    async def metadata(self, directory: Any) -> None:
        return None

    def is_handleable(self, checkpointable: Any) -> bool:
        try:
            json.dumps(checkpointable)
        except (TypeError, ValueError, RecursionError):
            return False
        return True

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        return None


@typing.final
class MetricsHandler(CheckpointableHandler[Any, None]):
    """Saves metrics: JSON values in a file `metrics`."""

    def __init__(self) -> None:
        self._handler = JsonHandler("metrics")

    async def save(self, directory: PathAwaitingCreation, checkpointable: Any) -> Awaitable[None]:
        return await self._handler.save(directory, checkpointable)

    async def load(self, directory: Any, abstract_checkpointable: None = None) -> Awaitable[Any]:
        return await self._handler.load(directory)

    async def metadata(self, directory: Any) -> None:
        return None

    def is_handleable(self, checkpointable: Any) -> bool:
        return self._handler.is_handleable(checkpointable)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        return None
