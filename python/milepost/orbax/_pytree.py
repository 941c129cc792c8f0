"""Pytrees between Orbax's arguments and a Milepost tree item.

`tree_item` makes the item that is saved, `restore_tree` gives the tree back by the rules of
StandardRestore or PyTreeRestore, `tree_metadata` describes it without reading a leaf.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import milepost as mp
from milepost import _structure
from milepost._errors import Mismatch
from milepost._restore import Want

from . import _compare, _leaf_requests
from ._leaf_requests import Request, Unfit
from ._leaf_types import LeafTypes
from ._reading import read
from ._targets import (
    FlatTree,
    Path,
    flatten_stored,
    flatten_target,
    is_restore_args,
    is_save_args,
    shown,
)

Restored = Any


def tree_item(
    tree: Any,
    save_args: Any = None,
    compression: str | None = None,
    chunk_bytes: int | None = None,
) -> mp.Tree:
    """The tree item of a pytree.

    Args:
        tree: Any pytree; a bare leaf and an empty tree, too.
        save_args: None, one SaveArgs for all leaves, or a tree of SaveArgs (None: no wish) of the
            same structure.
        compression: Of every leaf: ``"none"``, ``"zstd"``, ``"zstd:LEVEL"``, … None: the save's.
        chunk_bytes: Target size of chunks in bytes for leaves whose SaveArgs name none.

    Raises:
        TreeMismatch: `save_args` names leaves that the tree does not have, or lacks some.
    """
    by_path = None if save_args is None else _save_args_by_path(tree, save_args)
    if by_path is None and compression is None and chunk_bytes is None:
        return mp.Tree(tree)

    def options(path: str, leaf: Any) -> mp.LeafOptions | None:
        args = None if by_path is None else by_path.get(path)
        dtype = getattr(args, "dtype", None)
        return mp.LeafOptions(
            dtype=None if dtype is None or isinstance(leaf, (str, bytes)) else np.dtype(dtype),
            chunk_bytes=getattr(args, "chunk_byte_size", None) or chunk_bytes,
            reshard_axes=tuple(getattr(args, "shard_axes", ()) or ()) or None,
            compression=compression,
        )

    return mp.Tree(tree, leaf_options=options)


def _save_args_by_path(tree: Any, save_args: Any) -> dict[str, Any]:
    """SaveArgs by the text form of the leaf's path."""
    node, _ = _structure.flatten(tree)
    keys = _structure.key_paths(node)
    if is_save_args(save_args):
        return {_structure.text(path): save_args for path in keys}
    stored = flatten_stored(node)
    given = flatten_target(save_args, stop=lambda value: value is None)
    found = []
    for path in stored.leaves:
        if path not in given.leaves:
            found.append(Mismatch(shown(path), "save_args has nothing for this leaf"))
    for path, args in given.leaves.items():
        known = path in stored.leaves or path in stored.empties
        if not known and args is not None:
            found.append(Mismatch(shown(path), "save_args names a leaf that the tree lacks"))
    hint = "make save_args with jax.tree.map(lambda leaf: SaveArgs(…), tree)"
    _compare.raise_mismatches(found, hint=hint, context={})
    return {
        _structure.text(keys[number]): given.leaves[path] for path, number in stored.leaves.items()
    }


def was_jax(metadata: Mapping[str, Any] | None, leaves: int) -> Callable[[int], bool]:
    """Whether a leaf of this number was a `jax.Array`."""
    return LeafTypes(metadata, leaves).is_jax


def restore_tree(
    index: Any,
    item: Any = None,
    restore_args: Any = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    exact: bool = False,
    standard: bool = False,
    strict: bool = True,
    partial: bool = False,
    fallback_sharding: Any = None,
    support_layout: bool = False,
    transforms: Any = None,
    transforms_default_to_original: bool = True,
    legacy_transform_fn: Any = None,
    progress: bool | None = False,
) -> Restored:
    """Restores a tree item.

    Args:
        index: The item's `ItemIndex`.
        item: The target. None: nested dicts and lists, as Orbax gives; `...` skips a leaf or
            subtree.
        restore_args: A tree of RestoreArgs of the target's structure, or one for all leaves.
        metadata: The item's metadata, with what `_leaf_types.recorded` gave.
        exact: Without a target: the containers and key types that were saved.
        standard: The target's leaves are the request (type, shape, dtype, sharding). Otherwise they
            are placeholders: RestoreArgs are the request, the stored shape wins.
        strict: With `standard`: another shape is an error. False truncates or pads with zeros.
        partial: The target may lack what the checkpoint has, never the other way round.
        fallback_sharding: For leaves saved as `jax.Array` whose target names no sharding.
        support_layout: Take a target's memory layout (`Format`), not only its sharding.
        transforms, transforms_default_to_original, legacy_transform_fn: `transform_utils`.
        progress: As in `milepost.load`; Orbax shows none, so False.

    Raises:
        TreeMismatch: All differences, by key path, before a byte is read.
    """
    if transforms is not None or legacy_transform_fn is not None:
        from . import _transform_restore

        return _transform_restore.restore(
            index,
            item,
            restore_args,
            metadata=metadata,
            transforms=transforms,
            default_to_original=transforms_default_to_original,
            legacy_transform_fn=legacy_transform_fn,
        )
    stored = flatten_stored(index.structure)
    target = None if item is None else flatten_target(item)
    found: list[Mismatch] = []
    if target is not None:
        found = _differences(target, stored, index, standard, partial)
    door = _Door(
        index.leaves,
        LeafTypes(metadata, len(index.leaves)),
        target,
        arguments_by_path(restore_args, target or stored, found),
        standard=standard and target is not None and restore_args is None,
        strict=strict,
        exact=exact,
        fallback_sharding=fallback_sharding,
        support_layout=support_layout,
    )
    requests = _requests(stored if target is None else target, stored, door.request, found)
    hint = _compare.hint_for(found, standard=standard, partial=partial)
    _compare.raise_mismatches(found, hint=hint, context={})
    values = read(index, [one.want for one in requests.values()], progress=progress)
    done = {path: one.finish(value) for (path, one), value in zip(requests.items(), values)}
    if target is not None:
        return _rebuilt(target, stored, done)
    by_number = {stored.leaves[path]: value for path, value in done.items()}
    in_order = [by_number[number] for number in range(len(index.leaves))]
    if exact:
        return _structure.unflatten(index.structure, in_order)
    return plain(index.structure, in_order)


def _differences(
    target: FlatTree, stored: FlatTree, index: Any, standard: bool, partial: bool
) -> list[Mismatch]:
    leaves = index.leaves
    return _compare.differences(
        target,
        stored,
        lambda number: _leaf_requests.stored_as(leaves[number]),
        standard=standard,
        partial=partial,
    )


@dataclasses.dataclass
class _Door:
    """What each leaf of a restore is asked as: by its target, or by RestoreArgs."""

    leaves: Sequence[Any]
    types: LeafTypes
    target: FlatTree | None
    arguments: Callable[[Path], Any]
    standard: bool
    strict: bool
    exact: bool
    fallback_sharding: Any
    support_layout: bool

    def request(self, path: Path, number: int) -> Request:
        """The request of the leaf at a path of the target, stored under this number."""
        leaf, is_jax = self.leaves[number], self.types.is_jax(number)
        wanted = None if self.target is None else self.target.leaves.get(path)
        if self.standard:
            return _leaf_requests.of_target(
                leaf,
                number,
                wanted,
                was_jax=is_jax,
                strict=self.strict,
                fallback_sharding=self.types.sharding(number) or self.fallback_sharding,
                support_layout=self.support_layout,
            )
        args = self.arguments(path)
        if args is None and self.types.is_scalar(number):
            return Request(Want(number, like=np.generic), python_scalar=not self.exact)
        return _leaf_requests.of_arguments(
            leaf,
            number,
            args,
            wanted,
            was_jax=is_jax,
            fallback_sharding=self.types.sharding(number) or self.fallback_sharding,
        )


def plain(node: Any, leaves: list[Any]) -> Any:
    """Nested dicts with text keys and lists around leaves, as Orbax restores without a target.

    An empty tuple stays one; another empty container that is neither list nor dict is None.
    """
    if node is None or isinstance(node, int):
        return None if node is None else leaves[node]
    if not node.children:
        return _empty_value(node.kind)
    children = [plain(child, leaves) for child in node.children]
    if all(isinstance(key, _structure.Index) for key in node.keys):
        return children
    return dict(zip(map(_structure.key_text, node.keys), children))


def _requests(
    target: FlatTree,
    stored: FlatTree,
    request: Callable[[Path, int], Request],
    found: list[Mismatch],
) -> dict[Path, Request]:
    requests: dict[Path, Request] = {}
    for path, leaf in target.leaves.items():
        number = stored.leaves.get(path)
        if leaf is ... or number is None:
            continue
        try:
            requests[path] = request(path, number)
        except Unfit as error:
            found.append(Mismatch(shown(path), str(error)))
    return requests


def _rebuilt(target: FlatTree, stored: FlatTree, done: Mapping[Path, Any]) -> Any:
    """The target's containers with the restored leaves, `...` where it had that."""
    values: dict[Path, Any] = {}
    for path, leaf in target.leaves.items():
        if path in done:
            values[path] = done[path]
        elif leaf is ...:
            values[path] = ...
        else:
            values[path] = _empty_value(stored.empties[path])
    return target.rebuild(values)


def _empty_value(kind: str) -> Any:
    """What stands for an empty node where the target has a leaf: Orbax gives the same."""
    return {"dict": {}, "list": [], "tuple": ()}.get(kind)


def arguments_by_path(
    restore_args: Any, shape: FlatTree, found: list[Mismatch]
) -> Callable[[Path], Any | None]:
    """RestoreArgs by path; what the tree of them lacks is noted as a mismatch."""
    if restore_args is None:
        return lambda path: None
    if is_restore_args(restore_args):
        return lambda path: restore_args
    given = flatten_target(restore_args, stop=lambda value: value is None)
    for path, leaf in shape.leaves.items():
        if leaf is not ... and path not in given.leaves:
            found.append(Mismatch(shown(path), "restore_args has nothing for this leaf"))
    return given.leaves.get


def tree_metadata(
    index: Any, metadata: Mapping[str, Any] | None = None, directory: Any = None
) -> Any:
    """The item's tree with an ArrayMetadata, ScalarMetadata or StringMetadata for each leaf."""
    from . import metadata as described

    types = LeafTypes(metadata, len(index.leaves))
    values = [
        described.of_leaf(
            leaf,
            is_scalar=types.is_scalar(number),
            sharding=types.sharding_metadata(number),
            directory=directory,
        )
        for number, leaf in enumerate(index.leaves)
    ]
    return plain(index.structure, values)
