"""Restore arguments from a target, and waiting for checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from . import metadata
from ._leaf_args import ArrayRestoreArgs, RestoreArgs
from ._leaf_requests import PLACEHOLDER, as_sharding, is_jax_array, is_prng_key
from ._targets import flatten_target
from ._watch import checkpoints_iterator, get_snapshot_dir_from_step_dir, wait_for_new_checkpoint

__all__ = [
    "PLACEHOLDER",
    "STANDARD_ARRAY_TYPES",
    "checkpoints_iterator",
    "construct_restore_args",
    "get_snapshot_dir_from_step_dir",
    "wait_for_new_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name == "STANDARD_ARRAY_TYPES":
        import jax

        return (int, float, np.ndarray, jax.Array)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def construct_restore_args(
    target: Any,
    sharding_tree: Any = None,
    set_global_shape: bool = True,
    support_layout: bool = False,
    strict: bool = True,
) -> Any:
    """RestoreArgs for each leaf of a target: its type, dtype, sharding and shape.

    Args:
        target: Arrays, `jax.ShapeDtypeStruct`s, scalars, text, metadata objects, `...`.
        sharding_tree: Shardings of the same structure; None: the target's own.
        set_global_shape: Ask for the target's shape; False: the stored shape wins.
        support_layout: Take a `jax.Array`'s memory layout, not only its sharding.
        strict: False truncates or pads arrays of another shape with zeros.

    Raises:
        ValueError: A leaf of another type; `sharding_tree` lacks a leaf.
    """
    if isinstance(target, metadata.TreeMetadata):
        shardings = getattr(sharding_tree, "tree", sharding_tree)
        built = construct_restore_args(
            target.tree, shardings, set_global_shape, support_layout, strict
        )
        return metadata.TreeMetadata(built, target.custom_metadata)
    flat = flatten_target(target)
    given: dict[Any, Any] = {}
    if sharding_tree is not None:
        given = flatten_target(sharding_tree, stop=_is_sharding).leaves
        _check_same(flat.leaves, given)
    values = {}
    for path, leaf in flat.leaves.items():
        if sharding_tree is None:
            layout = getattr(leaf, "format", None) if support_layout else None
            sharding = layout or as_sharding(getattr(leaf, "sharding", None))
        else:
            sharding = given.get(path)
        values[path] = _restore_args(leaf, sharding, set_global_shape, strict)
    return flat.rebuild(values)


def _is_sharding(value: Any) -> bool:
    return value is None or hasattr(value, "device_set") or type(value).__name__ == "Format"


def _check_same(leaves: Iterable[Any], shardings: dict[Any, Any]) -> None:
    missing = ["/".join(path) for path in leaves if path not in shardings]
    if missing:
        raise ValueError(f"sharding_tree has nothing for {', '.join(missing[:8])}")


def _restore_args(leaf: Any, sharding: Any, set_global_shape: bool, strict: bool) -> Any:
    if leaf is PLACEHOLDER:
        return RestoreArgs(restore_type=type(PLACEHOLDER))
    if isinstance(leaf, (str, metadata.StringMetadata)):
        return RestoreArgs(restore_type=str)
    if isinstance(leaf, bytes):
        return RestoreArgs(restore_type=bytes)
    if isinstance(leaf, metadata.ScalarMetadata):
        return RestoreArgs(restore_type=_python_type(leaf.dtype), dtype=leaf.dtype)
    if isinstance(leaf, (int, float, complex)):
        return RestoreArgs(restore_type=type(leaf))
    if is_prng_key(leaf):
        return ArrayRestoreArgs(sharding=sharding, strict=strict)
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        raise ValueError(f"Unsupported type: {type(leaf)}")
    if isinstance(leaf, np.ndarray) or (sharding is None and not is_jax_array(leaf)):
        return RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ArrayRestoreArgs(
        sharding=sharding,
        global_shape=tuple(leaf.shape) if set_global_shape else None,
        dtype=leaf.dtype,
        strict=strict,
    )


def _python_type(dtype: Any) -> type:
    return {"b": bool, "i": int, "u": int, "c": complex}.get(np.dtype(dtype).kind, float)
