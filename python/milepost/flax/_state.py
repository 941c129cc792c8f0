"""State dicts: what Flax's `serialization` makes of a target, and of what it does not know.

Flax decides for every type that is registered with it. Other pytrees (`nnx.State`, an
`OrderedDict`, a dataclass that is registered with JAX only) are leaves to Flax: its msgpack files
refuse them, and `from_state_dict` gives a dict back. Here they are saved as the trees they are, and
built again where the target has one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import serialization
from flax.core import FrozenDict

from .._structure import Attr, Branch, Node, flatten, key_text, rebuild
from ._entry import LOG

Path = tuple[str, ...]


def to_state_dict(target: Any) -> Any:
    """Flax's state dict of a target. What Flax does not know is left in it."""
    return serialization.to_state_dict(target)


def from_state_dict(target: Any, state: Any) -> Any:
    """Restores a target from a state dict, by Flax's rules and with Flax's errors.

    Raises:
        ValueError: fields are missing or unknown, a list has another length, a dict more keys.
    """
    return serialization.from_state_dict(target, _adopted(to_state_dict(target), state, ()))


def of_node(node: Node, values: Sequence[Any], missing: Any = None) -> Any:
    """The state dict of stored containers: all of them dicts with text keys. Leaves that are
    `missing` are left out.
    """
    if node is None:
        return None
    if not isinstance(node, Branch):
        return values[node]
    found = {}
    for key, child in zip(node.keys, node.children, strict=True):
        value = of_node(child, values, missing)
        if value is not missing or missing is None:
            found[key_text(key)] = value
    return found


def scalars_of(state: Any) -> list[int]:
    """The numbers of the leaves that are NumPy scalars: stored, they are arrays without dimensions.
    """
    _, leaves = flatten(state)
    return [number for number, leaf in enumerate(leaves) if isinstance(leaf, np.generic)]


def wanted(target: Any, node: Node) -> set[int] | None:
    """The stored leaves that a target takes; None for all of them.

    Keys that a dict of the target lacks are ignored by Flax, so they need not be read.
    """
    taken: set[int] = set()
    _take(target, node, taken)
    return taken


def _take(target: Any, node: Node, taken: set[int]) -> None:
    if not isinstance(node, Branch):
        if node is not None:
            taken.add(node)
        return
    children = _children(target)
    for key, child in zip(node.keys, node.children, strict=True):
        name = key_text(key)
        if children is None:
            _take(None, child, taken)
        elif name in children:
            _take(children[name], child, taken)
        elif not isinstance(target, dict | FrozenDict):
            _take(None, child, taken)  # Flax says that it is too much


def _children(target: Any) -> Mapping[str, Any] | None:
    """The children of a target by their keys in a state dict; None where Flax alone knows them."""
    if type(target) is dict or isinstance(target, FrozenDict):
        return {str(key): child for key, child in target.items()}
    if isinstance(target, tuple) and hasattr(target, "_fields"):
        return {name: getattr(target, name) for name in target._fields}
    if type(target) in (list, tuple):
        return {str(position): child for position, child in enumerate(target)}
    if getattr(target, "_flax_dataclass", False) and not isinstance(target, type):
        return {name: getattr(target, name) for name in target.__dataclass_fields__}
    return None


def placements(target: Any) -> dict[Path, Any]:
    """Where a target's JAX leaves are, by key path: a sharding, or None for JAX's default device.

    What is a JAX array in the target comes back as one, of the stored shape and data type: arrays
    on several devices say mesh and axes, those that are on no device on purpose stay so, and follow
    whatever they are computed with. A `ShapeDtypeStruct` with a sharding asks for the same.
    """
    jax = sys.modules.get("jax")
    if jax is None or target is None:
        return {}
    node, leaves = flatten(to_state_dict(target))
    found: dict[Path, Any] = {}

    def walk(node: Node, path: Path) -> None:
        if isinstance(node, Branch):
            for key, child in zip(node.keys, node.children, strict=True):
                walk(child, (*path, key_text(key)))
        elif node is not None and _is_placed(leaves[node]):
            leaf = leaves[node]
            found[path] = leaf.sharding if getattr(leaf, "committed", True) else None

    walk(node, ())
    del walk  # it names itself: the cycle would keep every leaf until the collector comes
    return found


def _is_placed(leaf: Any) -> bool:
    jax = sys.modules["jax"]
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.sharding is not None
    return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)


def is_for_jax(dtype: np.dtype, sharding: Any) -> bool:
    """Whether an array becomes JAX's: not where that would halve its data type, unless several
    devices hold it.

    Without `jax_enable_x64` JAX has no types of 64 bits.
    """
    jax = sys.modules["jax"]
    try:
        is_whole = jax.dtypes.canonicalize_dtype(dtype) == dtype
    except (TypeError, ValueError):
        return False
    if not is_whole and sharding is not None and len(sharding.device_set) > 1:
        LOG.warning(
            "%s becomes %s in a sharded array, for jax_enable_x64 is off",
            dtype,
            jax.dtypes.canonicalize_dtype(dtype),
        )
        return True
    return is_whole


def _adopted(target: Any, state: Any, path: Path) -> Any:
    """The state, with pytrees built again where the target has such as Flax does not know."""
    if type(target) is dict:
        if state is None and not target:
            return {}  # Orbax keeps an empty named tuple, as optax has them, as None
        if not isinstance(state, dict):
            return state
        return {
            key: _adopted(target[key], value, (*path, key)) if key in target else value
            for key, value in state.items()
        }
    if serialization.is_serializable(target) or not isinstance(state, dict):
        return state
    node, _ = flatten(target)
    if not isinstance(node, Branch):
        return state
    values: list[Any] = []
    _collect(node, state, type(target).__name__, path, values)
    return rebuild(target, values)


def _collect(node: Node, state: Any, name: str, path: Path, values: list[Any]) -> None:
    """The values of a structure's leaves, in its order; what is stored as a tree is taken whole
    where a leaf is.
    """
    if not isinstance(node, Branch):
        if node is not None:
            values.append(state)
        return
    where = "/".join((".", *path))
    if not isinstance(state, dict):
        raise ValueError(
            f"A leaf is stored where an instance of {name} is restored, at path {where}"
        )
    keys = [key_text(key) for key in node.keys]
    for key in keys:
        if key not in state:
            raise ValueError(
                f"Missing field {key} in state dict while restoring an instance of {name},"
                f" at path {where}"
            )
    unknown = [key for key in state if key not in keys]
    if unknown and any(isinstance(key, Attr) for key in node.keys):
        raise ValueError(
            f'Unknown field(s) "{",".join(unknown)}" in state dict'
            f" while restoring an instance of {name} at path {where}"
        )
    for key, child in zip(keys, node.children, strict=True):
        _collect(child, state[key], name, (*path, key), values)
