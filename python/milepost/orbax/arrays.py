"""Helpers for arrays, as `orbax.checkpoint.arrays` has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .tree import to_shape_dtype_struct

__all__ = ["Index", "Shape", "construct_maximal_shardings", "to_shape_dtype_struct"]

Shape = tuple[int, ...]
Index = tuple[slice, ...]


def construct_maximal_shardings(abstract_state: Any, devices: Sequence[Any] | None = None) -> Any:
    """A sharding for each array that divides it among as many devices as its lengths allow.

    Args:
        abstract_state: A tree of arrays or `jax.ShapeDtypeStruct`s.
        devices: The devices; None: all that JAX has.

    Returns:
        The tree with a `jax.sharding.Sharding` for each leaf, for a target of a restore. The
        longest axes are divided first, each by what it and the devices that are left have in
        common.
    """
    import jax

    chosen = np.asarray(jax.devices() if devices is None else list(devices))
    return jax.tree.map(lambda leaf: _maximal(tuple(leaf.shape), chosen), abstract_state)


def _maximal(shape: Shape, devices: np.ndarray) -> Any:
    import jax

    left, sizes = devices.size, []
    partition: list[str | None] = [None] * len(shape)
    for axis in sorted(range(len(shape)), key=lambda at: (shape[at], at), reverse=True):
        common = math.gcd(shape[axis], left)
        if common > 1 and shape[axis] >= left:
            partition[axis] = _name(len(sizes))
            sizes.append(common)
            left //= common
    if left > 1 or not sizes:
        sizes.append(left)
    names = tuple(map(_name, range(len(sizes))))
    mesh = jax.sharding.Mesh(devices.reshape(sizes), names)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*partition))


def _name(axis: int) -> str:
    return chr(ord("a") + axis)
