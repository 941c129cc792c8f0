"""Reads one item of another library's checkpoint, as that library or as Milepost would give it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .._structure import flatten, rebuild
from . import orbax_reader, safetensors
from .found import ForeignCheckpoint, ForeignStep, detect
from .item import ForeignItem
from .match import fit
from .mistake import foreign, not_found
from .place import Place

#: Items that are taken where none is named, before any other.
_USUAL = ("", "default", "state", "pytree")


def restore(
    source: ForeignStep | ForeignCheckpoint | Any,
    target: Any = None,
    *,
    item: str | None = None,
    restore_args: Any = None,
    strict: bool = True,
    cast: Literal["same_kind", "unsafe"] = "same_kind",
    placeholders: Literal["read", "skip"] = "read",
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Reads one item of another library's checkpoint; the source is never written to.

    Args:
        source: a `ForeignStep`, a `ForeignCheckpoint`, or the path of a checkpoint.
        target: a tree of arrays, shapes or scalars; None: as stored.
        item: its name; None: the only tree, else `default`, `state`.
        restore_args: a tree of `RestoreArgs` as Orbax has them (ours or its own); only for Orbax's
            trees.
        strict: True compares the target's structure, shapes and data types with all that is stored,
            gives JAX arrays on the default device where the target has shapes without a sharding,
            and NumPy arrays where there is no target. False is what the other library does itself:
            Orbax's `PyTreeRestore` (JAX arrays as they were saved), Flax's `from_state_dict`.
        cast: `"same_kind"` refuses a target whose data type would lose more than precision; only if
            strict.
        placeholders: what `...` is in a strict target: a leaf as it is stored, or one to leave out
            (Orbax's).
        options: more arguments of Orbax's `PyTreeRestore` (`transforms`, `partial_restore`, …).

    Raises:
        ForeignFormat: no other library's checkpoint is there, or the library that reads it is not
            installed.
        ItemNotFound: the checkpoint has no such item.
        TreeMismatch: the target is not what is stored, every difference by its key path.
    """
    checkpoint = _checkpoint(source)
    chosen = choose(checkpoint, item)
    if checkpoint.kind == "orbax":
        return orbax_reader.restore(
            chosen,
            target,
            restore_args,
            strict=strict,
            cast=cast,
            reads_placeholders=placeholders == "read",
            options=options,
        )
    if restore_args is not None or options:
        raise foreign(
            f"restore arguments of Orbax say nothing about a checkpoint in {checkpoint.kind} "
            "format",
            "leave them out; a target says what the leaves shall be",
            path=checkpoint.path,
        )
    if checkpoint.kind == "safetensors":
        tree = dict(safetensors.tensors(Place(chosen.path)))
    else:
        tree = _msgpack(chosen.path)
    if target is None:
        return tree
    made = _into(tree, target, checkpoint, strict, cast)
    return made if placeholders == "read" else _skipped(made, target)


def _checkpoint(source: Any) -> ForeignCheckpoint:
    if isinstance(source, ForeignCheckpoint):
        return source
    if isinstance(source, ForeignStep):
        return source.checkpoint()
    found = detect(source)
    if found is None:
        raise foreign(
            "no checkpoint in Orbax, Flax or safetensors format is there",
            "name a checkpoint, not the run it is in, and not one that was never committed",
            path=Place(source).path,
        )
    return found


def choose(checkpoint: ForeignCheckpoint, name: str | None) -> ForeignItem:
    """The item of that name; without a name the only tree, else the usual one.

    Raises:
        ItemNotFound: there is none, or several and none of them usual.
    """
    items = checkpoint.items
    if name is not None:
        # A checkpoint that is itself one item has it under every name that means "the one".
        found = items.get(name) or (items.get("") if name in _USUAL else None)
        if found is None:
            raise not_found("no such item", checkpoint, name)
        return found
    for usual in _USUAL:
        if usual in items:
            return items[usual]
    trees = [item for item in items.values() if item.kind == "tree"]
    rest = [item for item in items.values() if item.kind != "metrics"]
    for candidates in (trees, rest):
        if len(candidates) == 1:
            return candidates[0]
    raise not_found("several items, and none is named", checkpoint, None)


def _msgpack(path: str) -> Any:
    from .._msgpack import load

    return load(path)


def _skipped(tree: Any, target: Any) -> Any:
    """The placeholders of the target where they were."""
    wanted, have = flatten(target)[1], flatten(tree)[1]
    kept = [... if leaf is ... else value for leaf, value in zip(wanted, have, strict=True)]
    return rebuild(target, kept)


def _into(tree: Any, target: Any, checkpoint: ForeignCheckpoint, strict: bool, cast: str) -> Any:
    if checkpoint.kind == "flax" and not strict:
        try:
            from flax import serialization
        except ImportError:
            pass
        else:
            return serialization.from_state_dict(target, tree)
    return fit(tree, target, checkpoint.path, strict=strict, cast=cast)
