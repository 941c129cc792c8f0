"""The registry of handlers by item and args type."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from .. import checkpoint_args

Entries = dict[tuple[str | None, type], Any]


class AlreadyExistsError(ValueError):
    """The registry has an entry for the item and args type."""


class NoEntryError(KeyError):
    """The registry has no entry for the item and args type."""


@runtime_checkable
class CheckpointHandlerRegistry(Protocol):
    """What a registry of your own implements."""

    def add(self, item: str | None, args: Any, handler: Any = None) -> None:
        """Adds an entry; `item` None is any item."""

    def get(self, item: str | None, args: Any) -> Any:
        """The handler of an entry."""

    def has(self, item: str | None, args: Any) -> bool:
        """Whether there is an entry."""

    def get_all_entries(self) -> Entries:
        """All entries by (item, args type)."""


def _type_of(args: Any) -> type:
    return args if isinstance(args, type) else type(args)


class DefaultCheckpointHandlerRegistry:
    """Entries by (item, args type); the item None is any item without an entry of its own."""

    def __init__(self, other_registry: CheckpointHandlerRegistry | None = None) -> None:
        self._entries: Entries = {}
        if other_registry is not None:
            for (item, args), handler in other_registry.get_all_entries().items():
                self.add(item, args, handler)

    def add(self, item: str | None, args: Any, handler: Any = None) -> None:
        """Adds an entry.

        Args:
            item: The item's name; None: any.
            args: An args class, or args.
            handler: A handler, its class, or None: the class that the args are registered with.

        Raises:
            AlreadyExistsError: There is one.
            ValueError: No handler is registered for the args, or its class needs arguments.
        """
        kind = _type_of(args)
        if self.has(item, kind):
            raise AlreadyExistsError(
                f"Entry for item={item} and args_type={kind} already exists in the registry."
            )
        chosen = handler
        if handler is None:
            try:
                chosen = checkpoint_args.get_registered_handler_cls(kind)
            except ValueError as error:
                raise ValueError(
                    f"no handler is given for item={item} and args_type={kind}, and none is "
                    "registered for these args: give a handler, or use register_with_handler"
                ) from error
        if isinstance(chosen, type):
            try:
                chosen = chosen()
            except TypeError as error:
                raise ValueError(
                    f"{chosen.__name__} needs arguments: give an instance for item={item} and "
                    f"args_type={kind}"
                ) from error
        self._entries[(item, kind)] = chosen

    def get(self, item: str | None, args: Any) -> Any:
        """The handler of an entry.

        Raises:
            NoEntryError: There is none.
        """
        kind = _type_of(args)
        if not self.has(item, kind):
            raise NoEntryError(f"No entry for item={item} and args_ty={kind} in the registry.")
        return self._entries[(item, kind)]

    def has(self, item: str | None, args: Any) -> bool:
        """Whether there is an entry for exactly this item and args type."""
        return (item, _type_of(args)) in self._entries

    def get_all_entries(self) -> Entries:
        """All entries by (item, args type)."""
        return dict(self._entries)


def find(registry: CheckpointHandlerRegistry | None, item: str | None, args: Any) -> Any | None:
    """The handler of an item's args: its own entry, else that of any item, else None."""
    if registry is None or args is None:
        return None
    for name in (item, None):
        if registry.has(name, args):
            return registry.get(name, args)
    return None


def any_of_item(registry: CheckpointHandlerRegistry | None, item: str) -> Any | None:
    """Any handler registered for an item; None where there is none."""
    if registry is None:
        return None
    for (name, _), handler in registry.get_all_entries().items():
        if name == item:
            return handler
    return None


def create_default_handler_registry(**items_to_handlers: Any) -> DefaultCheckpointHandlerRegistry:
    """A registry that has each handler for its item, under all args classes of the handler.

    Raises:
        ValueError: A handler has no registered args.
    """
    registry = DefaultCheckpointHandlerRegistry()
    for item, handler in items_to_handlers.items():
        for args in dict.fromkeys(checkpoint_args.get_registered_args_cls(handler)):
            registry.add(item, args, handler)
    return registry
