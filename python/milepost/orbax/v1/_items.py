"""Checkpointables on one side, the items of a Milepost checkpoint on the other.

```text
  PyTreeHandler    ──▶ tree item      no files of its own
  JsonHandler      ──▶ json item
  any other        ──▶ opaque item    the files that it writes into a scratch directory
```

An opaque item remembers its handler's class by name; loading asks the registry for that name.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np

import milepost as mp
from milepost import _structure
from milepost.orbax import _leaf_types
from milepost.orbax._leaf_requests import is_jax_array, is_prng_key
from milepost.orbax._shared_items import share_items
from milepost.orbax.v1._context import Context
from milepost.orbax.v1._flat_tree import FlatTree, flat
from milepost.orbax.v1._operation import Loop
from milepost.orbax.v1._storage import jax_keys, leaf_options, save_keywords
from milepost.orbax.v1.handlers import _registry
from milepost.orbax.v1.handlers._json import JsonHandler, MetricsHandler
from milepost.orbax.v1.handlers._protocol import typestr
from milepost.orbax.v1.handlers._pytree import PyTreeHandler, check_leaves
from milepost.orbax.v1.path import path_of

STATE = "state"
AUTO = "AUTO"
METRICS = "metrics"
RESERVED = frozenset({METRICS, AUTO})
# Where a tree that a custom handler passes on is, in the handler's directory.
NESTED = "pytree.milepost"


@dataclasses.dataclass
class Prepared:
    """One item, ready to be saved: a native item and its metadata."""

    item: Any
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


class Directory:
    """A handler's directory, made when it is first awaited (a `PathAwaitingCreation`)."""

    def __init__(self, path: Any):
        self._path = path

    @property
    def path(self) -> Any:
        return self._path

    def __truediv__(self, other: Any) -> "Directory":
        return Directory(self._path / other)

    async def await_creation(self) -> Any:
        os.makedirs(self._path, exist_ok=True)
        return self._path


def check_names(checkpointables: Any, argument: str) -> None:
    """Checks that a dict of checkpointables has names that items may have.

    Raises:
      ValueError: It is no dict, or has a name that is empty, reserved or no text.
    """
    if not isinstance(checkpointables, dict):
        raise ValueError(
            f"`{argument}` must be a dict of checkpointable names to objects, but got "
            f"{type(checkpointables)}"
        )
    for name in checkpointables:
        check_name(name)


def check_name(name: Any) -> None:
    """Checks the name of one checkpointable; see `check_names`."""
    if not isinstance(name, str):
        raise ValueError(f"a checkpointable name must be text, not {name!r}")
    if name == "":
        raise ValueError(
            "Empty string is not supported as a checkpointable name. Each checkpointable name "
            "must be a valid non-empty string name."
        )
    if name in RESERVED:
        raise ValueError(f"Provided reserved checkpointable keys: {{{name!r}}}.")


def tree_item(tree: Any, context: Context) -> Prepared:
    """Returns the tree item of a pytree, with what loading needs to know besides.

    Raises:
      UnregisteredTypeError: Leaves that cannot be stored.
      Invalid: Keys that cannot.
    """
    structure, leaves = _structure.flatten(tree)
    check_leaves(structure, leaves)
    # A list of the leaves has them in the same order as the tree.
    metadata = _leaf_types.recorded(leaves)
    if not context.array.saving.enable_write_sharding_file:
        metadata.pop("shardings", None)
    rich = context.pytree.saving.pytree_metadata_options
    if getattr(rich, "support_rich_types", False):
        metadata["rich_types"] = True
    options = leaf_options(context, structure, leaves)
    return Prepared(flat(structure, leaves, options, typestr(PyTreeHandler)), metadata)


def hold(prepared: Prepared) -> Prepared:
    """Returns a tree item that later changes of the caller's arrays do not reach.

    Needed only where a save begins after the caller has gone on. Host arrays are copied; of a
    `jax.Array` the host's view is taken, which keeps its buffer from being donated.
    """
    item = prepared.item
    if not isinstance(item, FlatTree):
        return prepared
    held = [_held(leaf) for leaf in item.tree]
    return Prepared(dataclasses.replace(item, tree=held), prepared.metadata)


def _held(leaf: Any) -> Any:
    if is_jax_array(leaf) and leaf.is_fully_addressable and not is_prng_key(leaf):
        return np.asarray(leaf)
    if isinstance(leaf, np.ndarray):
        return leaf.copy()
    return leaf


class Batch:
    """The items of one save, and the handlers that are still writing files for some of them.

    Args:
      checkpointables: By name.
      context: Whose registry and options count.
    """

    def __init__(self, checkpointables: Mapping[str, Any], context: Context):
        self._context = context
        self._loop: Loop | None = None
        self._scratch: str | None = None
        self._waiting: list[tuple[str, Any, Awaitable[Any]]] = []
        self.prepared: dict[str, Prepared] = {}
        registry = context.checkpointables.registry
        try:
            chosen = {
                name: _registry.resolve_for_save(registry, value, name)
                for name, value in checkpointables.items()
            }
            for name, handler in chosen.items():
                self._prepare(name, checkpointables[name], handler)
            if self._waiting:
                self.prepared = {name: hold(one) for name, one in self.prepared.items()}
        except BaseException:
            self.close()
            raise

    @property
    def is_waiting(self) -> bool:
        """Whether `finish` has handlers to wait for."""
        return bool(self._waiting)

    def _prepare(self, name: str, value: Any, handler: Any) -> None:
        if isinstance(handler, PyTreeHandler):
            self.prepared[name] = tree_item(value, self._context)
        elif isinstance(handler, (JsonHandler, MetricsHandler)):
            # A copy: the caller may change the value once we return.
            item = mp.Json(copy.deepcopy(value), handler=typestr(type(handler)))
            self.prepared[name] = Prepared(item)
        else:
            if self._loop is None:
                self._loop = Loop()
                self._scratch = tempfile.mkdtemp(prefix="milepost-handlers-")
            directory = self._context.file.path_class(self._scratch) / name
            os.makedirs(directory)
            rest = self._loop.run(handler.save(Directory(directory), value))
            self._waiting.append((name, handler, rest))

    def finish(self, timeout: float | None) -> None:
        """Waits for the handlers; afterwards `prepared` has all items.

        Raises:
          TimeoutError: They are not done after `timeout` seconds.
        """
        for name, handler, rest in self._waiting:
            assert self._loop is not None and self._scratch is not None
            if rest is not None:
                self._loop.run(rest, timeout)
            path = os.path.join(self._scratch, name)
            self.prepared[name] = Prepared(mp.Files(path, handler=typestr(type(handler))))
        self._waiting = []

    def share(self, together: mp.Together) -> None:
        """Makes the items those that this process saves together with others; after `finish`."""
        given = self.arguments()
        items, metadata = given["items"], given["item_metadata"]
        share_items(together, items, metadata)
        self.prepared = {
            name: Prepared(item, metadata.get(name, {})) for name, item in items.items()
        }

    def cancel(self) -> None:
        """Cancels the handlers that are still writing: `finish` raises."""
        if self._loop is not None and self._waiting:
            self._loop.cancel()

    def arguments(self) -> dict[str, Any]:
        """Returns `items` and `item_metadata` for `milepost.save` and the manager's `save`."""
        return {
            "items": {name: one.item for name, one in self.prepared.items()},
            "item_metadata": {
                name: one.metadata for name, one in self.prepared.items() if one.metadata
            },
        }

    def key_paths(self) -> list[tuple[Any, ...]]:
        """Returns the key paths of all tree leaves as `jax.tree_util` has them."""
        found: list[tuple[Any, ...]] = []
        for one in self.prepared.values():
            if isinstance(one.item, FlatTree):
                paths = _structure.key_paths(one.item.structure)
                found.extend(jax_keys(keys) for keys in paths)
        return found

    def close(self) -> None:
        """Removes scratch files and ends the handlers' loop."""
        if self._loop is not None:
            self._loop.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


def nested(directory: Any) -> tuple[Any, str]:
    """Returns checkpoint and item of the tree that a handler's directory stands for.

    That is the checkpoint that `PyTreeHandler.save` made below it, or the tree item that it names.
    """
    path = pathlib.Path(directory)
    if (path / NESTED).is_dir():
        return mp.open(os.fspath(path / NESTED)), STATE
    checkpoint = mp.open(os.fspath(path.parent))
    if path.name not in checkpoint.items:
        raise mp.ItemNotFound(
            f"no tree is below `{directory}`",
            context={"store": os.fspath(path.parent), "item": path.name},
        )
    return checkpoint, path.name


def with_directory(
    checkpoint: Any, name: str, context: Context, use: Callable[[Any], Any]
) -> Any:
    """Calls `use` with a directory that has the files of an item, and returns what it returns.

    Files of an opaque item are unpacked to a scratch directory; a tree or JSON item is named where
    it is, for handlers that pass the directory on to `PyTreeHandler`.
    """
    info = checkpoint.items[name]
    if info.kind != "opaque":
        return use(path_of(f"{checkpoint.url}/{name}", context.file.path_class))
    scratch = tempfile.mkdtemp(prefix="milepost-handlers-")
    try:
        target = os.path.join(scratch, name)
        checkpoint.extract(name, target)
        return use(context.file.path_class(target))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


__all__ = [
    "AUTO",
    "Batch",
    "Directory",
    "METRICS",
    "NESTED",
    "Prepared",
    "RESERVED",
    "STATE",
    "check_name",
    "check_names",
    "hold",
    "nested",
    "save_keywords",
    "tree_item",
    "with_directory",
]
