"""The named parts of a checkpoint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, Union

from . import _milepost
from ._arrays import Capture, LeafOptions, leaf
from ._errors import Invalid, MilepostError
from ._structure import flatten, key_paths, text

LeafChoice = Union[LeafOptions, Callable[[str, Any], "LeafOptions | None"], None]


@dataclasses.dataclass(frozen=True)
class Tree:
    """A pytree of arrays and scalars.

    ``leaf_options`` are the options of all its leaves, or a function of the key path's text and the leaf.
    """

    tree: Any
    leaf_options: LeafChoice = None
    handler: str | None = None

    def _item(self, capture: Capture):
        structure, leaves = flatten(self.tree)
        paths = _Paths(structure)
        made = []
        for number, value in enumerate(leaves):
            options = self.leaf_options
            if callable(options):
                options = options(paths.text(number), value)
            try:
                made.append(leaf(value, "", capture, options))
            except MilepostError as error:
                raise placed(error, leaf=paths.text(number) or "(root)") from error.__cause__
        return _milepost.Item.tree(structure, made)


class _Paths:
    """Key paths as text, made when one is asked for."""

    def __init__(self, structure: Any) -> None:
        self._structure = structure
        self._paths: list | None = None

    def text(self, number: int) -> str:
        if self._paths is None:
            self._paths = key_paths(self._structure)
        return text(self._paths[number])


def placed(error: MilepostError, **where: str) -> MilepostError:
    """The same error, with where it happened."""
    return type(error)(error.message, context={**error.context, **where}, hint=error.hint)


@dataclasses.dataclass(frozen=True)
class Array:
    """A single array, or a scalar."""

    value: Any
    leaf_options: LeafChoice = None
    handler: str | None = None

    def _item(self, capture: Capture):
        options = self.leaf_options
        if callable(options):
            options = options("", self.value)
        return _milepost.Item.array(leaf(self.value, "", capture, options))


@dataclasses.dataclass(frozen=True)
class Json:
    """A JSON value; NaN and infinities are kept."""

    value: Any
    handler: str | None = None

    def _item(self, capture: Capture):
        return _milepost.Item.json(self.value)


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Bytes."""

    data: Any
    handler: str | None = None

    def _item(self, capture: Capture):
        return _milepost.Item.bytes(self.data)


@dataclasses.dataclass(frozen=True)
class Files:
    """A file, or all files below a directory: a tokenizer, a configuration, the state of a data iterator.

    They are copied before `save` returns. ``handler`` names what made them and can restore them; ``metadata`` is a JSON
    value that is read without them.
    """

    path: str | os.PathLike
    handler: str | None = None
    metadata: Any = None

    def _item(self, capture: Capture):
        return _milepost.Item.files(os.fspath(self.path))


Item = Union[Tree, Array, Json, Bytes, Files]
_ITEMS = (Tree, Array, Json, Bytes, Files)

DEFAULT_ITEM = "state"


def payload(
    tree: Any,
    items: Mapping[str, Any] | None,
    *,
    metadata: Mapping[str, Any] | None,
    item_metadata: Mapping[str, Any] | None,
    metrics: Mapping[str, float] | None,
    capture: Capture,
) -> dict[str, Any]:
    """What the engine saves: items, and what is said of them. A value that is no item is a tree; ``...``: none is given."""
    if items is None:
        if tree is ...:
            raise Invalid("there is nothing to save", hint="give a tree, or items=")
        items = {DEFAULT_ITEM: tree}
    elif tree is not None and tree is not ...:
        raise Invalid("a tree and items are given", hint="give the tree as one of the items")
    made, handlers, said = {}, {}, _members("item_metadata", item_metadata)
    for name, value in _members("items", items).items():
        item = value if isinstance(value, _ITEMS) else Tree(value)
        try:
            made[name] = item._item(capture)
        except MilepostError as error:
            raise placed(error, item=name) from error.__cause__
        if item.handler is not None:
            handlers[name] = item.handler
        if isinstance(item, Files) and item.metadata is not None:
            said.setdefault(name, item.metadata)
    return {
        "items": made,
        "handlers": handlers,
        "item_metadata": said,
        "metadata": _members("metadata", metadata),
        "metrics": {name: _metric(name, value) for name, value in _members("metrics", metrics).items()},
    }


def _members(what: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise Invalid(f"{what} is a {type(given).__name__}", hint="give a dict with names as keys")
    odd = [name for name in given if not isinstance(name, str)]
    if odd:
        raise Invalid(f"a name in {what} is no string: {odd[0]!r}", hint="give a dict with strings as keys")
    return dict(given)


def _metric(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise Invalid(
            f"a metric is no number: {error}",
            context={"metric": str(name)},
            hint="everything else goes into metadata",
        ) from error
