r"""Transformations: how the leaves of an old tree become those of a new one.

Keys are joined with ``/``; a transformation's key is a regular expression that must match a whole
key of the new tree, and ``original_key`` may use its groups:
``{r"(.*)/kernel": Transform(original_key=r"\1/w")}``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from ._targets import FlatTree, Path, flatten_stored, flatten_target
from .tree import from_flat_dict, to_flat_dict

__all__ = [
    "RestoreTransform",
    "Transform",
    "apply_transformations",
    "intersect_trees",
    "merge_trees",
]


@dataclasses.dataclass
class Transform:
    """Where a leaf of the new tree comes from: exactly one of these ways.

    Attributes:
        original_key: Its key in the old tree; may refer to groups of the transformation's key.
        use_fallback: Take the fallback tree's leaf: the new tree's, or with
            ``default_to_original=False`` the old tree's.
        value_fn: Makes the leaf of the old one at `original_key` (default: the same key).
        multi_value_fn: Makes the leaf of its key and the whole old tree.

    Raises:
        ValueError: Two ways at once.
    """

    original_key: str | tuple[str, ...] | None = None
    use_fallback: bool = False
    value_fn: Callable[..., Any] | None = None
    multi_value_fn: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.original_key, tuple):
            self.original_key = "/".join(self.original_key)
        single = self.original_key is not None or self.value_fn is not None
        ways = [single, self.use_fallback, self.multi_value_fn is not None]
        if sum(map(bool, ways)) > 1:
            raise ValueError(
                "Transform: give original_key and/or value_fn, or use_fallback, or multi_value_fn"
            )


@dataclasses.dataclass
class RestoreTransform(Transform):
    """A Transform for a restore: its functions get the leaf's RestoreArgs as a last argument.

    Attributes:
        multi_value_fn_input_args: The old leaves that `multi_value_fn` needs: RestoreArgs by key
            (regular expressions). None: all leaves are read.
    """

    multi_value_fn_input_args: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multi_value_fn_input_args is not None and self.multi_value_fn is None:
            raise ValueError("RestoreTransform: multi_value_fn_input_args without multi_value_fn")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one leaf of the new tree comes from, decided before anything is read.

    Attributes:
        kind: ``new`` (the new tree's own leaf), ``old`` (the old leaf at `key`) or ``many``.
        key: The old leaf's key, joined with ``/``.
        transform: The transformation that decided, if one did.
    """

    kind: str
    key: str = ""
    transform: Transform | None = None


def source_of(
    key: str, transforms: dict[str, Transform], old_keys: Any, default_to_original: bool
) -> Source:
    """Decides for one key of the new tree. Where several transformations match, the last counts.

    Raises:
        ValueError: The old tree lacks the key that a transformation names.
    """
    chosen: Source | None = None
    for pattern, transform in transforms.items():
        match = re.fullmatch(pattern, key)
        if match is None:
            continue
        if transform.use_fallback:
            if default_to_original:
                chosen = Source("new", transform=transform)
                continue
            if key not in old_keys:
                raise ValueError(f"{key} not found in origin tree (`use_fallback` requested).")
            chosen = Source("old", key, None)
        elif transform.multi_value_fn is not None:
            chosen = Source("many", key, transform)
        else:
            name = key if transform.original_key is None else match.expand(transform.original_key)
            if name not in old_keys:
                raise ValueError(f'Transformation key "{name}" not found in origin tree.')
            chosen = Source("old", name, transform)
    if chosen is not None:
        return chosen
    return Source("old", key) if key in old_keys and default_to_original else Source("new")


def apply_transformations(
    original_tree: Any,
    transformations: Any,
    new_tree: Any,
    default_to_original: bool | None = True,
) -> Any:
    """A tree of `new_tree`'s structure, its leaves from `original_tree` by the transformations.

    Args:
        original_tree: The old tree.
        transformations: A tree or flat dict of Transform.
        new_tree: The new structure. Its leaves count where the old tree has none of that key.
        default_to_original: Where a leaf without a transformation comes from: the old tree if it
            has it, or always the new one.

    Raises:
        ValueError: As `source_of`.
    """
    old = to_flat_dict(original_tree, sep="/")
    transforms = to_flat_dict(transformations, sep="/")
    new = flatten_target(new_tree)
    values: dict[Path, Any] = {}
    for path, leaf in new.leaves.items():
        key = "/".join(path)
        source = source_of(key, transforms, old, bool(default_to_original))
        if source.kind == "new":
            values[path] = leaf
        elif source.kind == "many":
            assert source.transform is not None and source.transform.multi_value_fn is not None
            values[path] = source.transform.multi_value_fn(key, original_tree)
        else:
            fn = None if source.transform is None else source.transform.value_fn
            values[path] = old[source.key] if fn is None else fn(old[source.key])
    return new.rebuild(values)


def merge_trees(*trees: Any, target: Any = None) -> Any:
    """The leaves of all trees in one; where several have a key, the last one's.

    Args:
        target: The structure of the result; None: nested dicts.
    """
    merged: dict[Any, Any] = {}
    for tree in trees:
        merged.update(to_flat_dict(tree))
    return from_flat_dict(merged, target=target)


def intersect_trees(*trees: Any, target: Any = None) -> Any:
    """The leaves whose keys all trees have; the last tree's."""
    flat = [to_flat_dict(tree) for tree in trees]
    common = [key for key in flat[-1] if all(key in one for one in flat)]
    return from_flat_dict({key: flat[-1][key] for key in common}, target=target)


def stored_keys(structure: Any) -> tuple[FlatTree, dict[str, int]]:
    """A stored tree's paths, and its leaf numbers by joined key."""
    stored = flatten_stored(structure)
    return stored, {"/".join(path): number for path, number in stored.leaves.items()}
