"""Trees as Orbax's helpers see them: flat dicts by key, nested dicts, abstract arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from milepost import _structure

from ._targets import flatten_target

__all__ = [
    "JsonType",
    "PyTree",
    "PyTreeKey",
    "PyTreeOf",
    "PyTreePath",
    "deserialize_tree",
    "from_flat_dict",
    "get_param_names",
    "is_empty_node",
    "is_empty_or_leaf",
    "is_flat_dict",
    "merge_trees",
    "serialize_tree",
    "str_keypath",
    "to_flat_dict",
    "to_shape_dtype_struct",
    "tree_difference",
    "tree_trim",
]

PyTree = Any
PyTreeOf = Any
PyTreeKey = Any
PyTreePath = tuple[Any, ...]
JsonType = Any


def key_name(key: Any) -> str | int:
    """The name or position of one key of a JAX key path."""
    for name in ("idx", "name", "key"):
        value = getattr(key, name, None)
        if isinstance(value, (str, int)):
            return str(value) if type(key).__name__ == "DictKey" else value
    if isinstance(key, (str, int)):
        return key
    raise ValueError(f'Unsupported KeyEntry: {type(key)}: "{key}"')


def str_keypath(keypath: tuple[Any, ...]) -> tuple[str, ...]:
    """A JAX key path as texts."""
    return tuple(str(key_name(key)) for key in keypath)


def is_empty_node(x: Any) -> bool:
    """Whether a value is None or an empty container."""
    parts = None if x is None else _structure._children(x, ())
    return x is None or (parts is not None and not parts[2])


def is_empty_or_leaf(x: Any) -> bool:
    """Whether a value has no children."""
    return x is None or _structure._children(x, ()) is None or is_empty_node(x)


def to_flat_dict(
    tree: Any,
    sep: str | None = None,
    keep_empty_nodes: bool = False,
    is_leaf: Callable[[Any], bool] | None = None,
) -> dict[Any, Any]:
    """A tree's leaves by key path.

    Args:
        tree: Any pytree.
        sep: Keys are joined with it; None: keys are tuples of texts.
        keep_empty_nodes: None and empty containers are leaves.
        is_leaf: Tells of more values that they are leaves.
    """
    stop = is_leaf or (is_empty_node if keep_empty_nodes else None)
    flat = flatten_target(tree, stop).leaves
    return dict(flat) if sep is None else {sep.join(path): value for path, value in flat.items()}


def from_flat_dict(
    flat_dict: dict[Any, Any],
    target: Any = None,
    sep: str | None = None,
    *,
    inplace: bool = False,
) -> Any:
    """The way back of `to_flat_dict`.

    Args:
        flat_dict: Values by key.
        target: The structure of the result; None: nested dicts.
        sep: What keys are joined with; None: keys are tuples.
        inplace: Values are taken out of `flat_dict`.

    Raises:
        KeyError: `target` has a key that `flat_dict` lacks.
        ValueError: The key of a bare leaf beside others.
    """
    take = flat_dict.pop if inplace else flat_dict.__getitem__
    if target is not None:
        given = flatten_target(target, stop=lambda value: _is_kept(value, flat_dict))
        keys = {path: path if sep is None else sep.join(path) for path in given.leaves}
        return given.rebuild({path: take(key) for path, key in keys.items()})
    root = () if sep is None else ""
    if root in flat_dict and sep is None:
        if len(flat_dict) != 1:
            raise ValueError(f"Empty keypath () must be the only key; got {list(flat_dict)}.")
        return take(root)
    nested: dict[str, Any] = {}
    for key in list(flat_dict):
        *above, last = key if sep is None else key.split(sep)
        node = nested
        for part in above:
            node = node.setdefault(part, {})
        node[last] = take(key)
    return nested


def _is_kept(value: Any, flat_dict: dict[Any, Any]) -> bool:
    """Empty nodes of a target are leaves where the flat dict was made with them."""
    return is_empty_node(value) and any(is_empty_node(kept) for kept in flat_dict.values())


def is_flat_dict(tree: Any) -> bool:
    """Whether a tree is a dict of leaves."""
    return isinstance(tree, dict) and all(_is_leaf(value) for value in tree.values())


def _is_leaf(value: Any) -> bool:
    return value is not None and _structure._children(value, ()) is None


def serialize_tree(tree: Any, keep_empty_nodes: bool = False) -> Any:
    """The tree in dicts with text keys and lists. Empty nodes are dropped, or kept as they are.

    Raises:
        ValueError: There is no leaf and `keep_empty_nodes` is False.
    """
    if not keep_empty_nodes and not flatten_target(tree).leaves:
        raise ValueError("Unable to uniquely reconstruct tree from empty flattened list")
    return _serialized(tree, keep_empty_nodes)


def _serialized(tree: Any, keep: bool) -> Any:
    parts = None if tree is None else _structure._children(tree, ())
    if parts is None or not parts[2]:
        return tree
    kind, _, keys, children, _ = parts
    pairs = [
        (_structure.key_text(key), _serialized(child, keep))
        for key, child in zip(keys, children)
        if keep or flatten_target(child).leaves
    ]
    positions = all(isinstance(key, _structure.Index) for key in keys)
    return [child for _, child in pairs] if positions else dict(pairs)


def deserialize_tree(serialized: Any, target: Any, keep_empty_nodes: bool = False) -> Any:
    """The serialized tree's values in the target's containers.

    Raises:
        KeyError: The serialized tree lacks a key of the target.
    """
    given = flatten_target(target, is_empty_node if keep_empty_nodes else None)
    return given.rebuild({path: _at(serialized, path) for path in given.leaves})


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for text in path:
        if isinstance(tree, (list, tuple)) and not hasattr(tree, "_fields"):
            tree = tree[int(text)]
        elif isinstance(tree, dict):
            tree = tree[text] if text in tree else tree[int(text)]
        else:
            tree = getattr(tree, text)
    return tree


def get_param_names(item: Any, *, include_empty_nodes: bool = True) -> Any:
    """The tree with each leaf's name in its place: its key path joined with dots."""
    given = flatten_target(item, is_empty_node if include_empty_nodes else None)
    return given.rebuild({path: ".".join(path) for path in given.leaves})


def to_shape_dtype_struct(
    arr: Any,
    dtype: Any = None,
    scalar_dtype: Any = None,
    support_format: bool = False,
) -> Any:
    """A `jax.ShapeDtypeStruct` of an array, or of an array's metadata; a scalar stays one.

    Args:
        arr: A leaf.
        dtype: Another dtype for the struct.
        scalar_dtype: A Python type that scalars are converted to.
        support_format: Keep a `jax.Array`'s memory layout, not only its sharding.
    """
    import jax

    if isinstance(arr, jax.ShapeDtypeStruct):
        if dtype is None:
            return arr
        return jax.ShapeDtypeStruct(arr.shape, dtype, sharding=arr.sharding)
    if isinstance(arr, (int, float, complex)) and not isinstance(arr, np.generic):
        return arr if scalar_dtype is None else scalar_dtype(arr)
    if not (hasattr(arr, "shape") and hasattr(arr, "dtype")):
        return arr
    chosen = arr.dtype if dtype is None else dtype
    if support_format and isinstance(arr, jax.Array) and hasattr(arr, "format"):
        return jax.ShapeDtypeStruct(arr.shape, chosen, sharding=arr.format)
    sharding = getattr(arr, "sharding", None)
    convert = getattr(sharding, "to_jax_sharding", None)
    sharding = convert() if convert is not None else sharding
    return jax.ShapeDtypeStruct(tuple(arr.shape), chosen, sharding=sharding)


def merge_trees(
    *trees: Any, overwrite: bool = False, is_leaf: Callable[[Any], bool] | None = None
) -> Any:
    """One nested dict of several.

    Raises:
        ValueError: Two trees have a leaf at one key and `overwrite` is False.
    """
    merged: dict[Any, Any] = {}
    for tree in trees:
        for path, value in to_flat_dict(tree, is_leaf=is_leaf, keep_empty_nodes=True).items():
            if path in merged and not overwrite:
                raise ValueError(f"two trees have a leaf at {'/'.join(path) or '(root)'}")
            merged[path] = value
    return from_flat_dict(merged)


def tree_difference(
    a: Any,
    b: Any,
    *,
    is_leaf: Callable[[Any], bool] | None = None,
    leaves_equal: Callable[[Any, Any], bool] | None = None,
) -> dict[str, tuple[Any, Any]] | None:
    """Where two trees differ: (a's leaf, b's leaf) by key joined with ``/``; None: nowhere.

    A key that one tree lacks has `...` in its place.
    """
    equal = leaves_equal or _equal
    first, second = (to_flat_dict(tree, "/", True, is_leaf) for tree in (a, b))
    found = {}
    for key in dict.fromkeys([*first, *second]):
        mine, other = first.get(key, ...), second.get(key, ...)
        if mine is ... or other is ... or not equal(mine, other):
            found[key] = (mine, other)
    return found or None


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(np.all(np.asarray(a == b)))


def tree_trim(template: Any, structure: Any, *, strict: bool = True) -> Any:
    """The part of `structure` that `template` has, in the template's containers.

    Raises:
        ValueError: `strict`, and the structure lacks a key of the template.
    """
    given = flatten_target(template, is_empty_node)
    values, missing = {}, []
    for path in given.leaves:
        try:
            values[path] = functools.reduce(lambda node, text: _at(node, (text,)), path, structure)
        except (KeyError, IndexError, AttributeError):
            missing.append("/".join(path))
            values[path] = ...
    if missing and strict:
        raise ValueError(f"the structure lacks {', '.join(missing)}")
    return given.rebuild(values)
