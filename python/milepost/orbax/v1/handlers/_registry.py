"""Registries of handlers: which class saves and loads which checkpointable.

An entry is a handler class, with a name (then only for the checkpointable of that name) or without
(for whatever it says it can handle). Entries keep their order; where several would do, the one
registered last is chosen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from milepost.orbax.v1.handlers._protocol import StatefulCheckpointable, typestr

_LOG = logging.getLogger("milepost.orbax.v1")

HandlerType = type[Any]
RegistryEntry = tuple[HandlerType, "str | None"]


class AlreadyExistsError(ValueError):
    """The registry has an entry for this name or class."""


class NoEntryError(KeyError):
    """No handler in the registry fits."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class NotHandleableError(ValueError):
    """A handler cannot handle what it was given."""


class CheckpointableHandlerRegistry(Protocol):
    """What a registry offers."""

    def add(
        self,
        handler_type: HandlerType,
        *,
        checkpointable_name: str | None = None,
        secondary_typestrs: Sequence[str] | None = None,
    ) -> "CheckpointableHandlerRegistry": ...

    def get(self, checkpointable_name: str) -> HandlerType: ...

    def has(self, checkpointable_name: str) -> bool: ...

    def get_all_entries(self) -> Sequence[RegistryEntry]: ...

    def get_secondary_typestrs(self, handler_type: HandlerType) -> Sequence[str]: ...


class DefaultRegistry:
    """A registry that can be added to."""

    def __init__(self, other_registry: CheckpointableHandlerRegistry | None = None):
        self._entries: list[RegistryEntry] = []
        self._typestrs: dict[HandlerType, Sequence[str]] = {}
        if other_registry is not None:
            self.add_all(other_registry)

    def add(
        self,
        handler_type: HandlerType,
        *,
        checkpointable_name: str | None = None,
        secondary_typestrs: Sequence[str] | None = None,
    ) -> "DefaultRegistry":
        """Adds a class; returns the registry.

        Args:
          handler_type: The class; it must be constructible without arguments.
          checkpointable_name: Only for the checkpointable of this name. None: for all it handles.
          secondary_typestrs: Other names of the class that checkpoints may carry.

        Raises:
          ValueError: `handler_type` is not a class.
          AlreadyExistsError: The name is taken, or the class is registered already (no name).
        """
        if not isinstance(handler_type, type):
            raise ValueError(
                f"The `handler_type` must be a type, but got {handler_type!r}: pass the class, "
                "not an object of it."
            )
        if checkpointable_name is not None and self.has(checkpointable_name):
            raise AlreadyExistsError(
                f"Entry for checkpointable_name={checkpointable_name} already exists in the "
                "registry."
            )
        if checkpointable_name is None and any(kind is handler_type for kind, _ in self._entries):
            raise AlreadyExistsError(
                f"Handler type {handler_type} already exists in the registry."
            )
        self._entries.append((handler_type, checkpointable_name))
        if secondary_typestrs is not None:
            self._typestrs[handler_type] = tuple(secondary_typestrs)
        return self

    def add_all(self, other: CheckpointableHandlerRegistry) -> None:
        """Adds every entry of another registry, in its order."""
        for handler_type, name in other.get_all_entries():
            self.add(
                handler_type,
                checkpointable_name=name,
                secondary_typestrs=other.get_secondary_typestrs(handler_type),
            )

    def get(self, checkpointable_name: str) -> HandlerType:
        """Returns the class registered for a name; `NoEntryError` where there is none."""
        for handler_type, name in self._entries:
            if name == checkpointable_name:
                return handler_type
        raise NoEntryError(
            f"No entry for checkpointable_name={checkpointable_name} in the registry; it has "
            f"{[name for _, name in self._entries if name is not None]}"
        )

    def has(self, checkpointable_name: str) -> bool:
        """Returns whether a class is registered for a name."""
        return any(name == checkpointable_name for _, name in self._entries)

    def get_all_entries(self) -> Sequence[RegistryEntry]:
        """Returns (class, name or None) in order of registration."""
        return tuple(self._entries)

    def get_secondary_typestrs(self, handler_type: HandlerType) -> Sequence[str]:
        """Returns the other names that a class goes by."""
        return self._typestrs.get(handler_type, ())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self._entries)})"


class ReadOnlyCheckpointableHandlerRegistry(DefaultRegistry):
    """A view of another registry that cannot be added to."""

    def __init__(self, registry: CheckpointableHandlerRegistry):
        super().__init__(registry)

    def add(self, handler_type: HandlerType, **keywords: Any) -> "DefaultRegistry":
        if not getattr(self, "_sealed", False):
            return super().add(handler_type, **keywords)
        raise NotImplementedError(
            "Adding not implemented for read-only registry: assign your own, made by "
            "`handlers.local_registry()`, to `ctx.checkpointables.registry`."
        )

    def add_all(self, other: CheckpointableHandlerRegistry) -> None:
        super().add_all(other)
        self._sealed = True


_GLOBAL = DefaultRegistry()


def global_registry() -> CheckpointableHandlerRegistry:
    """Returns the registry that every default context sees."""
    return _GLOBAL


def local_registry(
    other_registry: CheckpointableHandlerRegistry | None = None,
    *,
    include_global_registry: bool = True,
) -> CheckpointableHandlerRegistry:
    """Returns a new registry with the entries of the global one, then of `other_registry`."""
    registry = DefaultRegistry(_GLOBAL if include_global_registry else None)
    if other_registry is not None:
        registry.add_all(other_registry)
    return registry


ClassT = TypeVar("ClassT", bound=HandlerType)


def register_handler(
    cls: ClassT,
    *,
    checkpointable_name: str | None = None,
    secondary_typestrs: Sequence[str] | None = None,
) -> ClassT:
    """Adds a class to the global registry and returns it: also a class decorator."""
    _GLOBAL.add(
        cls, checkpointable_name=checkpointable_name, secondary_typestrs=secondary_typestrs
    )
    return cls


def make(handler_type: HandlerType, name: str | None = None) -> Any:
    """Returns a handler of a class.

    Raises:
      ValueError: The class needs arguments.
    """
    try:
        return handler_type()
    except TypeError as error:
        raise ValueError(
            f"The handler {handler_type.__qualname__} for checkpointable {name!r} could not be "
            f"default-constructed ({error}): give its constructor defaults."
        ) from error


def _able(
    registry: CheckpointableHandlerRegistry, question: Callable[[Any], Any]
) -> list[Any]:
    """Returns a handler of each unnamed entry that says yes, in order."""
    unnamed = [make(kind) for kind, name in registry.get_all_entries() if name is None]
    return [handler for handler in unnamed if question(handler)]


def resolve_for_save(
    registry: CheckpointableHandlerRegistry, checkpointable: Any, name: str
) -> Any:
    """Returns the handler that saves a checkpointable.

    The one registered for the name, else the last that can handle the object; an object with its
    own `save` and `load` keeps them even where its name has a handler.

    Raises:
      ValueError: The checkpointable is None.
      NoEntryError: No handler fits.
    """
    if checkpointable is None:
        raise ValueError(
            f"checkpointable must not be None for saving: leave {name!r} out, or save {{}}"
        )
    stateful = isinstance(checkpointable, StatefulCheckpointable)
    if registry.has(name) and not stateful:
        return make(registry.get(name), name)
    able = _able(registry, lambda handler: handler.is_handleable(checkpointable))
    if able:
        return able[-1]
    if registry.has(name):
        return make(registry.get(name), name)
    kinds = [kind.__qualname__ for kind, _ in registry.get_all_entries()]
    raise NoEntryError(
        f'Could not identify a valid handler for the checkpointable: "{name}" and checkpointable '
        f"type={type(checkpointable)}. Register a CheckpointableHandler whose `is_handleable` "
        f"says yes to it (`handlers.register_handler`, or a local registry in the context). "
        f"Registered: {kinds}"
    )


def resolve_for_load(
    registry: CheckpointableHandlerRegistry,
    abstract: Any,
    name: str,
    saved_typestr: str | None,
) -> Any:
    """Returns the handler that loads a checkpointable.

    In this order, each if it can take `abstract` (None: any can): for an object with its own
    `load` the class that saved it; the one registered for the name; the class that saved it; the
    last unnamed one that can take `abstract`; the one registered for the name after all.

    Raises:
      NoEntryError: No handler fits.
    """
    named = make(registry.get(name), name) if registry.has(name) else None
    saver = _by_typestr(registry, saved_typestr)
    if saved_typestr and saver is None:
        _LOG.warning(
            "no handler is registered for %r, which saved item %r: another one may load it "
            "differently",
            saved_typestr,
            name,
        )

    def takes(handler: Any) -> bool:
        return handler is not None and (
            abstract is None or bool(handler.is_abstract_handleable(abstract))
        )

    if isinstance(abstract, StatefulCheckpointable) and takes(saver):
        return saver
    for handler in (named, saver):
        if takes(handler):
            return handler
    if abstract is not None:
        able = _able(registry, lambda handler: handler.is_abstract_handleable(abstract))
        if able:
            return able[-1]
    if named is not None:
        return named
    raise NoEntryError(
        f"No entry for checkpointable={name} in the registry, using handler_typestr="
        f"{saved_typestr} and abstract_checkpointable={type(abstract).__name__}. Registered: "
        f"{[kind.__qualname__ for kind, _ in registry.get_all_entries()]}"
    )


def _by_typestr(registry: CheckpointableHandlerRegistry, wanted: str | None) -> Any:
    if not wanted:
        return None
    for kind, name in reversed(registry.get_all_entries()):
        if typestr(kind) == wanted or wanted in registry.get_secondary_typestrs(kind):
            return make(kind, name)
    return None
