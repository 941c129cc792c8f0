"""The handler of objects that save and load themselves."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from milepost.orbax.v1.handlers._protocol import CheckpointableHandler, StatefulCheckpointable
from milepost.orbax.v1.path import PathAwaitingCreation


class StatefulCheckpointableHandler(CheckpointableHandler[Any, Any]):
    """Calls `save` and `load` of the object itself; `load` changes the object that is passed."""

    async def save(self, directory: PathAwaitingCreation, checkpointable: Any) -> Awaitable[None]:
        return await checkpointable.save(directory)

    async def load(
        self, directory: Any, abstract_checkpointable: Any = None
    ) -> Awaitable[Any]:
        if abstract_checkpointable is None:
            raise ValueError(
                "To restore a `StatefulCheckpointable`, you must pass an instance of the object: "
                "its `load` puts the saved state into it."
            )
        rest = await abstract_checkpointable.load(directory)

        async def finish() -> Any:
            await rest
            return abstract_checkpointable

        return finish()

    async def metadata(self, directory: Any) -> Any:
        raise NotImplementedError(
            "Metadata retrieval is not supported for objects implementing "
            "`StatefulCheckpointable`."
        )

    def is_handleable(self, checkpointable: Any) -> bool:
        return isinstance(checkpointable, StatefulCheckpointable)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        return isinstance(abstract_checkpointable, StatefulCheckpointable)
