"""What Orbax remembers of leaves and our index does not: kept in the item's metadata.

```text
jax_leaves     which leaves were `jax.Array`s     "all", or a bitmap by leaf number in base 64
scalar_leaves  which were NumPy scalars           the same
shardings      how arrays were spread over devices: {"kinds": [mesh, axes, spec, types], "leaves": …}
```

Each member is left out where there is nothing to remember, and types where all axes are Auto.
Shardings are advice: mesh shape, axis names and types, and partition, no device. A restore that
names none uses them where this process has the devices, else JAX's default device; it never fails
for them.
"""

from __future__ import annotations

import base64
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from milepost import _structure

_PLAIN = frozenset({bool, int, float, complex, str, bytes})
KINDS_MAX = 65_000


def recorded(tree: Any) -> dict[str, Any]:
    """What is to be remembered of a tree's leaves."""
    jax = sys.modules.get("jax")
    if jax is not None and _is_all_jax(jax, tree):
        return {"jax_leaves": "all"}
    _, leaves = _structure.flatten(tree)
    is_jax = [jax is not None and isinstance(leaf, jax.Array) for leaf in leaves]
    is_scalar = [isinstance(leaf, np.generic) for leaf in leaves]
    found: dict[str, Any] = {}
    if any(is_jax):
        found["jax_leaves"] = _bitmap(is_jax)
    if any(is_scalar):
        found["scalar_leaves"] = _bitmap(is_scalar)
    shardings = _shardings(leaves, is_jax)
    return {**found, "shardings": shardings} if shardings else found


def _is_all_jax(jax: Any, tree: Any) -> bool:
    """Whether all arrays are `jax.Array`s on one device each: the common case, in a fast look.

    JAX's own flattening is fast but sorts keys: numbers of leaves cannot be taken from it.
    """
    try:
        leaves = jax.tree_util.tree_leaves(tree)
    except (TypeError, ValueError):
        return False  # keys that cannot be sorted
    arrays = [leaf for leaf in leaves if type(leaf) not in _PLAIN]
    alike = bool(arrays) and all(isinstance(leaf, jax.Array) for leaf in arrays)
    return alike and not any(_is_spread(leaf) for leaf in arrays)


def _is_spread(leaf: Any) -> bool:
    if not hasattr(leaf, "sharding"):
        return False  # a tracer, which the engine refuses by its path
    return type(leaf.sharding).__name__ == "NamedSharding" and leaf.sharding.num_devices > 1


def _bitmap(flags: Sequence[bool]) -> str:
    if all(flags):
        return "all"
    packed = np.packbits(np.array(flags, bool), bitorder="little").tobytes()
    return base64.b64encode(packed).decode("ascii")


def _shardings(leaves: Sequence[Any], is_jax: Sequence[bool]) -> dict[str, Any] | None:
    numbers = np.zeros(len(leaves), "<u2")
    kinds: dict[Any, int] = {}
    for at, (leaf, flag) in enumerate(zip(leaves, is_jax)):
        if flag and _is_spread(leaf) and len(kinds) < KINDS_MAX:
            key = (leaf.sharding.mesh, leaf.sharding.spec)
            numbers[at] = kinds.setdefault(key, len(kinds)) + 1
    if not kinds:
        return None
    packed = base64.b64encode(numbers.tobytes()).decode("ascii")
    return {"kinds": [_kind(mesh, spec) for mesh, spec in kinds], "leaves": packed}


def _kind(mesh: Any, spec: Any) -> dict[str, Any]:
    axes = [str(name) for name in mesh.axis_names]
    parts = [list(part) if isinstance(part, tuple) else part for part in spec]
    shape = [int(mesh.shape[name]) for name in mesh.axis_names]
    kind = {"mesh": shape, "axes": axes, "spec": parts}
    types = [one.name for one in mesh.axis_types]
    return kind if set(types) <= {"Auto"} else {**kind, "types": types}


class LeafTypes:
    """The way back of `recorded`: what a stored leaf was, by its number."""

    def __init__(self, metadata: Mapping[str, Any] | None, leaves: int) -> None:
        given = metadata or {}
        self._jax = _flags(given.get("jax_leaves"), leaves)
        self._scalar = _flags(given.get("scalar_leaves"), leaves)
        self._shardings = given.get("shardings") or {}
        self._numbers = np.zeros(leaves, "<u2")
        if self._shardings:
            numbers = np.frombuffer(base64.b64decode(self._shardings["leaves"]), "<u2")
            self._numbers[: len(numbers)] = numbers[:leaves]

    def is_jax(self, number: int) -> bool:
        """Whether the leaf was a `jax.Array`."""
        return bool(self._jax[number])

    def is_scalar(self, number: int) -> bool:
        """Whether the leaf was a NumPy scalar."""
        return bool(self._scalar[number])

    def sharding_metadata(self, number: int) -> Any:
        """The leaf's `metadata.ShardingMetadata`; None of a NumPy array."""
        from .metadata import NamedShardingMetadata, SingleDeviceShardingMetadata

        if not self.is_jax(number):
            return None
        kind = int(self._numbers[number])
        if kind == 0:
            return SingleDeviceShardingMetadata("default")
        made = self._shardings["kinds"][kind - 1]
        spec = tuple(tuple(part) if isinstance(part, list) else part for part in made["spec"])
        return NamedShardingMetadata(
            tuple(made["mesh"]), tuple(made["axes"]), spec, _axis_types(made.get("types"))
        )

    def sharding(self, number: int) -> Any:
        """The leaf's sharding over this process' devices; None: the default device."""
        kind = int(self._numbers[number])
        return None if kind == 0 else self._built(kind - 1)

    @functools.lru_cache(maxsize=256)  # noqa: B019  (as long as one restore)
    def _built(self, kind: int) -> Any:
        at = int(np.flatnonzero(self._numbers == kind + 1)[0])
        try:
            return self.sharding_metadata(at).to_jax_sharding()
        except ValueError:
            return None


def _axis_types(names: Sequence[str] | None) -> tuple[Any, ...] | None:
    """JAX's axis types; None where this process' JAX has none of that name."""
    if names is None:
        return None
    import jax

    known = jax.sharding.AxisType.__members__
    return tuple(known[name] for name in names) if set(names) <= set(known) else None


def _flags(recorded_as: Any, leaves: int) -> np.ndarray:
    if recorded_as is None:
        return np.zeros(leaves, np.uint8)
    if recorded_as == "all":
        return np.ones(leaves, np.uint8)
    packed = np.frombuffer(base64.b64decode(recorded_as), np.uint8)
    return np.unpackbits(packed, count=leaves, bitorder="little")
