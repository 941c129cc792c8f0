"""CheckpointArgs: what is to be saved or restored, and which handler does it.

A library that imports the installed Orbax registers its args and handlers there. They are found, where
Orbax is loaded; args of Orbax's own classes mean ours of the same name.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = [
    "CheckpointArgs",
    "get_registered_args_cls",
    "get_registered_handler_cls",
    "has_registered_args",
    "register_with_handler",
]


@dataclasses.dataclass
class CheckpointArgs:
    """Base of all argument classes: one for saving and one for restoring, a handler each."""


Args = TypeVar("Args", bound=type)

_save_handlers: dict[type, type] = {}
_restore_handlers: dict[type, type] = {}


def is_args(value: Any) -> bool:
    """Whether a value is an args object, ours or the installed Orbax's."""
    return is_args_class(type(value))


def is_args_class(cls: type) -> bool:
    """Whether a class is one of args, ours or the installed Orbax's."""
    return issubclass(cls, CheckpointArgs) or any(
        base.__name__ == "CheckpointArgs" for base in cls.__mro__
    )


def _loaded_orbax() -> Any | None:
    """The installed Orbax's module of the same name, where something has imported it."""
    module = sys.modules.get("orbax.checkpoint.checkpoint_args")
    return None if module is None or module.__name__ == __name__ else module


def _own(cls: type) -> type:
    """Our class for one of Orbax's own; any other class as it is."""
    if not cls.__module__.startswith("orbax.checkpoint."):
        return cls
    known = [*_save_handlers, *_restore_handlers]
    return next((args for args in known if args.__name__ == cls.__name__), cls)


def register_with_handler(
    handler_cls: type, for_save: bool = False, for_restore: bool = False
) -> Callable[[Args], Args]:
    """Decorates an args class: it is saved, restored or both by `handler_cls`.

    Raises:
        ValueError: Neither `for_save` nor `for_restore`.
        TypeError: The class is no CheckpointArgs.
    """
    if not for_save and not for_restore:
        raise ValueError("`for_save` and `for_restore` cannot both be False.")

    def decorate(cls: Args) -> Args:
        if not issubclass(cls, CheckpointArgs):
            raise TypeError(f"{cls} must subclass `CheckpointArgs` in order to be registered.")
        if for_save:
            _save_handlers[cls] = handler_cls
        if for_restore:
            _restore_handlers[cls] = handler_cls
        return cls

    return decorate


def get_registered_handler_cls(arg: Any) -> type:
    """The handler class of args or of their class.

    Raises:
        TypeError: Not a CheckpointArgs.
        ValueError: No handler is registered for them.
    """
    cls = _own(arg if inspect.isclass(arg) else type(arg))
    if not issubclass(cls, CheckpointArgs):
        if is_args_class(cls) and _loaded_orbax() is not None:
            return _loaded_orbax().get_registered_handler_cls(cls)
        raise TypeError(f"{cls} must be a subclass of `CheckpointArgs`.")
    handler = _save_handlers.get(cls) or _restore_handlers.get(cls)
    if handler is None:
        raise ValueError(
            f"Unable to find registered `CheckpointHandler` for {cls}. Use `register_with_handler`."
        )
    return handler


def get_registered_args_cls(handler: Any) -> tuple[type, type]:
    """The (save, restore) args classes of a handler or of its class.

    Raises:
        ValueError: One of them is missing.
    """
    cls = handler if inspect.isclass(handler) else type(handler)
    save = next((args for args, kind in _save_handlers.items() if kind is cls), None)
    restore = next((args for args, kind in _restore_handlers.items() if kind is cls), None)
    if save is None and restore is None and _loaded_orbax() is not None:
        return _loaded_orbax().get_registered_args_cls(cls)
    if save is None or restore is None:
        which = "saving" if save is None else "restoring"
        raise ValueError(
            f"Unable to find registered `CheckpointArgs` for {which} for {cls}. Use "
            "`register_with_handler`."
        )
    return save, restore


def has_registered_args(handler: Any) -> bool:
    """Whether a handler has args classes for saving and restoring."""
    try:
        get_registered_args_cls(handler)
    except ValueError:
        return False
    return True


def registered_handlers() -> list[type]:
    """Every handler class with registered args, newest last."""
    return list(dict.fromkeys([*_save_handlers.values(), *_restore_handlers.values()]))
