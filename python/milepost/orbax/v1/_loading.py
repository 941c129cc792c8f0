"""`load` and its kin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from milepost._errors import ItemNotFound
from milepost.orbax.v1 import _items, _tree_load
from milepost.orbax.v1._context import get_context
from milepost.orbax.v1._metadata import CheckpointMetadata
from milepost.orbax.v1._operation import AsyncResponse, in_background
from milepost.orbax.v1._saving import check_context
from milepost.orbax.v1._source import Source, open_source, ordered, tree_name
from milepost.orbax.v1.path import PathLike

PLACEHOLDER = ...


def load(
    path: PathLike,
    abstract_state: Any = None,
    *,
    checkpointable_name: str | None = _items.AUTO,
) -> Any:
    """Loads a pytree.

    Args:
      path: A checkpoint (not the run it is a step of): ours, or Orbax's, which its own library
        reads; with `ctx.checkpoint_layout = 'safetensors'` a file or directory of such.
      abstract_state: A tree whose leaves say what the loaded ones shall be (see `tree`), or what
        `metadata` returned. None: as saved, with dicts (text keys) and lists as containers.
      checkpointable_name: The item. AUTO: `state`, else the first tree by name. None: the only
        tree of a checkpoint without named ones.

    Returns:
      The tree, in the containers of `abstract_state`.

    Raises:
      InvalidLayoutError: (ValueError) no checkpoint, or no such tree, is there.
      TreeMismatch: (ValueError) the abstract tree and the checkpoint differ; all differences by
        key path, before a leaf is read.
      TypeError: A leaf of the abstract tree describes none.
      Corrupt: A stored chunk is not what was saved.
    """
    source, name, abstract = _prepared(path, abstract_state, checkpointable_name)
    return source.load(name, abstract, get_context())


def load_async(
    path: PathLike,
    abstract_state: Any = None,
    *,
    checkpointable_name: str | None = _items.AUTO,
) -> AsyncResponse[Any]:
    """Loads a pytree in the background; works for every layout. See `load`.

    What is at `path` is looked up before this returns; reading goes on in the background.
    """
    source, name, abstract = _prepared(path, abstract_state, checkpointable_name)
    context = get_context()
    return in_background(
        f"load from {source.location}", lambda: source.load(name, abstract, context)
    )


def _prepared(path: PathLike, abstract: Any, name: str | None) -> tuple[Source, str, Any]:
    context = get_context()
    check_context(context, saving=False)
    if name is not None and name != _items.AUTO:
        _items.check_name(name)
    abstract = unwrapped(abstract)
    if abstract is not None:
        _tree_load.check_abstract(abstract)
    source = open_source(path, context)
    return source, tree_name(source, name), abstract


def unwrapped(abstract: Any) -> Any:
    """Returns the tree in a `CheckpointMetadata`, anything else as it is."""
    return abstract.metadata if isinstance(abstract, CheckpointMetadata) else abstract


def load_checkpointables(
    path: PathLike,
    abstract_checkpointables: Mapping[str, Any] | CheckpointMetadata[Any] | None = None,
) -> dict[str, Any]:
    """Loads several items of a checkpoint.

    Args:
      path: See `load`.
      abstract_checkpointables: What to load, by name: an abstract object for the item's handler
        (for a tree as in `load`), or None: as saved. Items that are not named are not loaded.
        None or empty: all items as saved.

    Raises:
      InvalidLayoutError: No checkpoint with named items is there.
      KeyError: The checkpoint lacks a named item; the message lists those it has.
      ValueError: A name is empty or reserved.
    """
    source, wanted = _prepared_several(path, abstract_checkpointables)
    return _load_several(source, wanted, get_context())


def load_checkpointables_async(
    path: PathLike,
    abstract_checkpointables: Mapping[str, Any] | CheckpointMetadata[Any] | None = None,
) -> AsyncResponse[dict[str, Any]]:
    """Loads several items in the background. See `load_checkpointables` and `load_async`."""
    source, wanted = _prepared_several(path, abstract_checkpointables)
    context = get_context()
    return in_background(
        f"load from {source.location}", lambda: _load_several(source, wanted, context)
    )


def _prepared_several(path: PathLike, abstract: Any) -> tuple[Source, dict[str, Any]]:
    context = get_context()
    check_context(context, saving=False)
    abstract = unwrapped(abstract)
    if abstract is not None:
        _items.check_names(abstract, "abstract_checkpointables")
    source = open_source(path, context)
    return source, wanted_items(source, abstract)


def wanted_items(source: Source, abstract: Any) -> dict[str, Any]:
    """Returns what is to be loaded, by name: what `abstract` names, else all.

    Raises:
      KeyError: The source lacks one of them; the message lists those it has.
      ValueError: A name is empty or reserved.
    """
    if abstract is not None:
        _items.check_names(abstract, "abstract_checkpointables")
    names = source.names()
    if not abstract:
        return {name: None for name in ordered(names)}
    missing = [name for name in abstract if name not in names]
    if missing:
        raise missing_items(missing, source.location, names)
    return dict(abstract)


def missing_items(missing: list[str], path: Any, names: list[str]) -> KeyError:
    """Returns the error that says which items a checkpoint lacks, and which it has."""
    return ItemNotFound(
        f"Requested checkpointables {missing} were not found in the checkpoint. Available "
        f"checkpointables: {sorted(names)}",
        context={"store": str(path)},
    )


def _load_several(source: Source, wanted: Mapping[str, Any], context: Any) -> dict[str, Any]:
    return {name: source.load(name, abstract, context) for name, abstract in wanted.items()}
