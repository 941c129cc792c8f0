"""A checkpoint of Orbax (or Flax) as a source: read where it is, never written to."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from milepost import _foreign
from milepost._foreign import orbax_reader
from milepost.orbax import _leaf_args, _leaf_requests
from milepost.orbax._targets import flatten_target
from milepost.orbax.v1 import _tree_load
from milepost.orbax.v1._context import Context
from milepost.orbax.v1._items import STATE
from milepost.orbax.v1.arrays import ArrayMetadata, NumpyMetadata


class ForeignSource:
    """A checkpoint that another library wrote.

    One that is itself one tree has the item `state`.
    """

    has_names = True

    def __init__(self, location: str, found: Any):
        self.location = location
        self._found = found
        self._items = {name or STATE: item for name, item in found.items.items()}

    @property
    def custom_metadata(self) -> dict[str, Any] | None:
        return self._found.metadata or None

    @property
    def init_timestamp_nsecs(self) -> int | None:
        return self._recorded("init_timestamp_nsecs")

    @property
    def commit_timestamp_nsecs(self) -> int | None:
        return self._found.committed_ns

    def _recorded(self, member: str) -> int | None:
        try:
            with open(os.path.join(self.location, "_CHECKPOINT_METADATA"), "rb") as file:
                return json.load(file).get(member)
        except (OSError, ValueError):
            return None

    def names(self) -> list[str]:
        return [name for name, item in self._items.items() if item.kind != "metrics"]

    def is_tree(self, name: str) -> bool:
        return self._items[name].kind in ("tree", "array")

    def load(self, name: str, abstract: Any, context: Context) -> Any:
        item = self._items[name]
        if item.kind == "files":
            return self._by_handler(name, item, abstract, context)
        arguments: dict[str, Any] = {}
        if abstract is not None and item.kind == "tree" and self._found.kind == "orbax":
            _tree_load.check_abstract(abstract)
            arguments = {
                "target": abstract,
                "restore_args": restore_args(abstract, context),
                "options": {"partial_restore": context.pytree.loading.partial_load},
            }
        elif abstract is not None:
            arguments = {"target": abstract}
        return _foreign.restore(self._found, item=item.name, strict=False, **arguments)

    def _by_handler(self, name: str, item: Any, abstract: Any, context: Context) -> Any:
        """Loads what a custom handler wrote, with the handler that is registered for it."""
        from milepost.orbax.v1._operation import Loop
        from milepost.orbax.v1.handlers import _registry

        handler = _registry.resolve_for_load(
            context.checkpointables.registry, abstract, name, item.handler
        )
        with Loop() as loop:
            return loop.run(loop.run(handler.load(context.file.path_class(item.path), abstract)))

    def describe(self, name: str, context: Context) -> Any:
        if not self.is_tree(name):
            return None
        item = self._items[name]
        stored = None
        if self._found.kind == "orbax" and item.kind == "tree":
            stored = orbax_reader._metadata(orbax_reader.installed(item.path), item)
        if stored is None:
            stored = self.load(name, None, context)
        tree = flatten_target(stored, stop=_is_described)
        return tree.rebuild({path: _described(leaf) for path, leaf in tree.leaves.items()})


def _is_described(value: Any) -> bool:
    """Whether a value is what Orbax's reader says of one leaf, or a leaf itself."""
    if value is None:
        return False
    return hasattr(value, "dtype") or type(value).__name__.endswith("Metadata")


def _described(leaf: Any) -> Any:
    kind = type(leaf).__name__
    if kind == "StringMetadata" or isinstance(leaf, str):
        return "string"
    if kind == "ScalarMetadata":
        code = np.dtype(leaf.dtype).kind if leaf.dtype is not None else "f"
        return {"i": int, "u": int, "b": bool}.get(code, float)(0)
    if not hasattr(leaf, "shape"):
        return leaf
    try:
        sharding = _leaf_requests.as_sharding(getattr(leaf, "sharding", None))
    except ValueError:  # saved on devices that are not here
        sharding = None
    if sharding is None:
        return NumpyMetadata(tuple(leaf.shape), leaf.dtype)
    return ArrayMetadata(tuple(leaf.shape), leaf.dtype, sharding)


def restore_args(abstract: Any, context: Context) -> Any:
    """Returns Orbax's RestoreArgs for an abstract tree, leaf by leaf."""
    flat = flatten_target(abstract, stop=_tree_load.is_abstract_leaf)
    strict = not context.array.loading.enable_padding_and_truncation
    return flat.rebuild({path: _argument(leaf, strict) for path, leaf in flat.leaves.items()})


def _argument(leaf: Any, strict: bool) -> Any:
    if leaf is ...:
        return _leaf_args.RestoreArgs()
    if isinstance(leaf, type):
        return _leaf_args.RestoreArgs(restore_type=leaf)
    if hasattr(leaf, "sharding") and not isinstance(leaf, np.ndarray):
        return _leaf_args.ArrayRestoreArgs(
            dtype=leaf.dtype,
            sharding=_tree_load._concrete(leaf.sharding),
            global_shape=None if leaf.shape is None else tuple(leaf.shape),
            strict=strict,
        )
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not isinstance(leaf, np.generic):
        return _leaf_args.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return _leaf_args.RestoreArgs(restore_type=type(leaf))
