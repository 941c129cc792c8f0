"""Composite: several things by name, as args of a save or restore and as its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .checkpoint_args import CheckpointArgs


class NoSuchItem(AttributeError, KeyError):
    """A composite has no such item; both errors, as it is read both ways."""

    __str__ = AttributeError.__str__


class Composite(Mapping[str, Any]):
    """Immutable; items are read by ``composite["state"]`` and ``composite.state``.

    Raises:
        ValueError: A name that begins with two underscores.
    """

    __items__: Mapping[str, Any]

    def __init__(self, **items: Any) -> None:
        reserved = sorted(name for name in items if name.startswith("__"))
        if reserved:
            raise ValueError(f"Composite keys cannot start with '__'. Got: {reserved}")
        super().__setattr__("__items__", dict(items))

    def __getitem__(self, key: str) -> Any:
        if key not in self.__items__:
            raise KeyError(f"Unknown key: {key}. Available keys: {list(self.__items__)}")
        return self.__items__[key]

    def __getattr__(self, key: str) -> Any:
        items = self.__dict__.get("__items__")
        if items is not None and key in items:
            return items[key]
        raise NoSuchItem(f"Unknown key: {key}. Available keys: {list(items or ())}")

    def __setattr__(self, key: str, value: Any) -> None:
        raise ValueError("Composite is immutable after initialization.")

    def __setitem__(self, key: str, value: Any) -> None:
        raise ValueError("Composite is immutable after initialization.")

    def __contains__(self, key: object) -> bool:
        return key in self.__items__

    def __iter__(self) -> Iterator[str]:
        return iter(self.__items__)

    def __len__(self) -> int:
        return len(self.__items__)

    def __or__(self, other: Mapping[str, Any]) -> Composite:
        """Both; where both have a name, the other's."""
        return type(self)(**{**self.__items__, **dict(other)})

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Composite):
            return self.__items__ == other.__items__
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        body = ", ".join(f"{name}={value!r}" for name, value in self.__items__.items())
        return f"{type(self).__name__}({body})"

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__items__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "__items__", state)

    def __copy__(self) -> Composite:
        return type(self)(**self.__items__)


class CompositeArgs(Composite, CheckpointArgs):
    """Args (and, of a restore, results) of several items by name."""


CompositeResults = CompositeArgs
