"""Types of pytrees, and `merge`.

| Leaf | Abstract leaf that loads it |
|---|---|
| `jax.Array` | has `shape`, `dtype`, `sharding` (`jax.ShapeDtypeStruct`), or the type `jax.Array` |
| `np.ndarray` | has `shape` and `dtype` (`np.ndarray`), or the type `np.ndarray` |
| `int`, `float`, `bool`, `complex`, NumPy scalars | a value or the type |
| `str`, `bytes` | a value or the type |
| typed PRNG key | a key, or a `jax.ShapeDtypeStruct` with the key's dtype |

Any of them may be `PLACEHOLDER` (`...`): the leaf is not read and stays `...`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

from milepost import _structure
from milepost.orbax._targets import shown
from milepost.orbax.v1.arrays import AbstractArray, AbstractScalar, AbstractShardedArray, Scalar

T = TypeVar("T")

JsonType: TypeAlias = "dict[str, JsonType] | list[JsonType] | str | int | float | bool | None"
PyTreeKey: TypeAlias = Any
PyTreeKeyPath: TypeAlias = "tuple[PyTreeKey, ...]"
Leaf: TypeAlias = "Any | Scalar | str"
AbstractLeaf: TypeAlias = "AbstractArray | AbstractShardedArray | AbstractScalar | str"
PLACEHOLDER = ...


class PyTree:
    """Any tree of containers and leaves; an annotation only."""


class PyTreeOf(Generic[T]):
    """A tree with leaves of one type; an annotation only."""


def merge(
    *trees: Any, overwrite: bool = False, is_leaf: Callable[[Any], bool] | None = None
) -> Any:
    """Returns one tree with what is in any of `trees`.

    Mappings and named tuples are merged by key, lists and tuples of equal length element by
    element, registered nodes and dataclasses by field. None gives way to anything.

    Args:
      trees: At least one for a result other than `{}`.
      overwrite: Later leaves replace earlier ones at the same key path.
      is_leaf: Values that are leaves whatever they hold.

    Raises:
      ValueError: Without `overwrite`: two trees have a leaf at the same key path, or containers of
        different types. In any case: sequences of different lengths.
    """
    if not trees:
        return {}
    stop = is_leaf or (lambda value: False)
    if not overwrite:
        _refuse_common(trees, stop)
    return functools.reduce(lambda low, high: _merge(low, high, overwrite, stop, ()), trees)


def _children(node: Any) -> tuple[str, list[tuple[str, Any]], Callable[[list[Any]], Any]] | None:
    """Kind, children by the text of their keys, and the way back of a container; None of a leaf."""
    parts = None if node is None or node is ... else _structure._children(node, ())
    if parts is None:
        return None
    kind, _, keys, children, back = parts
    return kind, [(_structure.key_text(k), child) for k, child in zip(keys, children)], back


def _leaf_paths(node: Any, stop: Callable[[Any], bool], path: tuple[str, ...]) -> Iterator[Any]:
    parts = None if stop(node) else _children(node)
    if parts is None or not parts[1]:
        yield path
        return
    for key, child in parts[1]:
        yield from _leaf_paths(child, stop, (*path, key))


def _refuse_common(trees: tuple[Any, ...], stop: Callable[[Any], bool]) -> None:
    seen: set[tuple[str, ...]] = set()
    for tree in trees:
        paths = set(_leaf_paths(tree, stop, ()))
        if common := seen & paths:
            names = ", ".join(sorted(shown(path) for path in common))
            raise ValueError(
                f"Found common key paths when overwrite is False: {names}; "
                "leave them out of one tree, or pass overwrite=True"
            )
        seen |= paths


def _merge(
    low: Any, high: Any, overwrite: bool, stop: Callable[[Any], bool], path: tuple[str, ...]
) -> Any:
    if type(low) is not type(high) and not overwrite:
        raise ValueError(
            f"Types do not match at {shown(path)}: {type(low).__name__} and {type(high).__name__}"
        )
    if high is None or low is None:
        return low if high is None else high
    low_parts = None if stop(low) else _children(low)
    high_parts = None if stop(high) else _children(high)
    if low_parts is None or high_parts is None:
        return high
    kind, children, remake = high_parts
    below = dict(low_parts[1])
    if kind in ("list", "tuple") and len(below) != len(children):
        raise ValueError(
            f"Sequence lengths do not match at {shown(path)}: {len(below)} and {len(children)}"
        )
    merged = {
        key: _merge(below[key], child, overwrite, stop, (*path, key)) if key in below else child
        for key, child in children
    }
    if isinstance(high, Mapping):
        keys = {str(key): key for key in (*low, *high)}
        result = {keys[key]: merged.get(key, below.get(key)) for key in {**below, **merged}}
        try:
            return type(high)(result)
        except TypeError:  # a defaultdict and its like take other arguments
            return result
    return remake([merged[key] for key, _ in children])


__all__ = [
    "AbstractLeaf",
    "JsonType",
    "Leaf",
    "PLACEHOLDER",
    "PyTree",
    "PyTreeKey",
    "PyTreeKeyPath",
    "PyTreeOf",
    "merge",
]
