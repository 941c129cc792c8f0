"""What a transformation is, and what they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from milepost.orbax.v1.tree import PyTreeOf

__all__ = ["PyTreeOf", "Transformation"]


class Transformation(Protocol):
    """A function from one flat dict of arrays to a tree."""

    def __call__(self, *source_array_trees: Any) -> Any: ...


def one_dict(trees: tuple[Any, ...], what: str) -> Mapping[str, Any]:
    """Returns the only tree.

    Raises:
      ValueError: There are several, or it is no mapping.
    """
    if len(trees) != 1:
        raise ValueError(f"Can only {what} parameters in a single parameter structure.")
    if not isinstance(trees[0], Mapping):
        kind = type(trees[0]).__name__
        raise ValueError(f"Can only {what} a flat dict of parameters, not {kind}")
    return trees[0]


def numpy_or_jax(arrays: Any) -> Any:
    """Returns the module whose functions keep arrays what they are: `numpy` or `jax.numpy`."""
    import sys

    import numpy as np

    jax = sys.modules.get("jax")
    if jax is None or not any(isinstance(array, jax.Array) for array in arrays):
        return np
    return jax.numpy
