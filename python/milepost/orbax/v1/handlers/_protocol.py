"""What a handler, and an object that saves itself, must offer."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol, TypeVar, runtime_checkable

from milepost.orbax.v1.path import PathAwaitingCreation

_Checkpointable = TypeVar("_Checkpointable")
_AbstractCheckpointable = TypeVar("_AbstractCheckpointable")


class Checkpointable:
    """Whatever can be saved as one item; an annotation only."""


class AbstractCheckpointable:
    """What describes a checkpointable to be loaded; an annotation only."""


@runtime_checkable
class StatefulCheckpointable(Protocol):
    """An object that saves and loads its own state, such as a data iterator.

    Both methods are coroutines that do what must be done before the caller goes on, and return an
    awaitable that does the rest in the background.
    """

    async def save(self, directory: PathAwaitingCreation) -> Awaitable[None]: ...

    async def load(self, directory: Any) -> Awaitable[None]: ...


class CheckpointableHandler(Protocol[_Checkpointable, _AbstractCheckpointable]):
    """Saves and loads one kind of checkpointable in a directory of its own.

    `save` and `load` are coroutines: what they do before they return happens on the caller's time,
    the awaitable that they return is awaited in the background. A handler must not commit anything
    itself; Milepost publishes the whole checkpoint once all handlers are done. Handlers are made
    without arguments.
    """

    async def save(
        self, directory: PathAwaitingCreation, checkpointable: _Checkpointable
    ) -> Awaitable[None]:
        """Saves `checkpointable` below `directory`."""
        ...

    async def load(
        self, directory: Any, abstract_checkpointable: _AbstractCheckpointable | None = None
    ) -> Awaitable[_Checkpointable]:
        """Loads what is below `directory`, as `abstract_checkpointable` says (None: as saved)."""
        ...

    async def metadata(self, directory: Any) -> _AbstractCheckpointable:
        """Returns what describes the checkpointable below `directory`."""
        ...

    def is_handleable(self, checkpointable: Any) -> bool:
        """Returns whether `save` takes this object."""
        ...

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Returns whether `load` takes this description; None where it takes none at all."""
        ...


def typestr(handler_type: type) -> str:
    """Returns the name under which a checkpoint remembers a handler class."""
    return f"{handler_type.__module__}.{handler_type.__qualname__}"
