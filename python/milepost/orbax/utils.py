"""Helpers that Orbax's users import from `orbax.checkpoint.utils`."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from . import multihost
from ._leaf_requests import is_jax_array
from .path import step as step_names
from .path.step import (
    any_checkpoint_step,
    checkpoint_steps,
    checkpoint_steps_paths,
    get_save_directory,
    step_from_checkpoint_name,
    tmp_checkpoints,
)
from .tree import (
    deserialize_tree,
    from_flat_dict,
    is_empty_node,
    is_empty_or_leaf,
    serialize_tree,
    str_keypath,
    to_flat_dict,
    to_shape_dtype_struct,
)
from .tree import key_name as get_key_name

__all__ = [
    "TMP_DIR_SUFFIX",
    "all_leaves_are_placeholders",
    "any_checkpoint_step",
    "broadcast_one_to_all",
    "checkpoint_steps",
    "checkpoint_steps_paths",
    "deserialize_tree",
    "from_flat_dict",
    "from_flattened_with_keypath",
    "fully_replicated_host_local_array_to_global_array",
    "get_key_name",
    "get_save_directory",
    "is_checkpoint_finalized",
    "is_dict_key",
    "is_empty_node",
    "is_empty_or_leaf",
    "is_gcs_path",
    "is_pathways_backend",
    "is_primary_host",
    "is_scalar",
    "is_sequence_key",
    "is_tmp_checkpoint",
    "leaf_is_placeholder",
    "leaf_placeholder",
    "name_from_leaf_placeholder",
    "pytree_structure",
    "reached_preemption",
    "record_saved_duration",
    "serialize_tree",
    "step_from_checkpoint_name",
    "sync_global_devices",
    "sync_global_processes",
    "tmp_checkpoints",
    "to_flat_dict",
    "to_shape_dtype_struct",
    "tuple_path_from_keypath",
]

TMP_DIR_SUFFIX = ".orbax-checkpoint-tmp"
"""What Orbax's unfinished steps end with. Ours are below ``<run>/.milepost/`` and never look like
steps."""

is_checkpoint_finalized = step_names.is_path_finalized
is_tmp_checkpoint = step_names.is_path_temporary
sync_global_processes = multihost.sync_global_processes
sync_global_devices = multihost.sync_global_processes
broadcast_one_to_all = multihost.broadcast_one_to_all
reached_preemption = multihost.reached_preemption
is_primary_host = multihost.is_primary_host
is_pathways_backend = multihost.is_pathways_backend
tuple_path_from_keypath = str_keypath


_PLACEHOLDER = "PLACEHOLDER://"
_AGGREGATED = "AGGREGATED://"
"""What Orbax's oldest format has for leaves in one file with others."""


def leaf_placeholder(name: str) -> str:
    """The text that stands for a leaf whose value is elsewhere."""
    return _PLACEHOLDER + name


def leaf_is_placeholder(leaf: Any) -> bool:
    """Whether a leaf is such a text."""
    return isinstance(leaf, str) and leaf.startswith((_PLACEHOLDER, _AGGREGATED))


def name_from_leaf_placeholder(placeholder: str) -> str:
    """The name in such a text.

    Raises:
        ValueError: It is none.
    """
    if not leaf_is_placeholder(placeholder):
        raise ValueError(f"not the placeholder of a leaf: {placeholder!r}")
    return placeholder.partition("://")[2]


def all_leaves_are_placeholders(tree: Any) -> bool:
    """Whether every leaf of a tree is such a text."""
    import jax

    return all(leaf_is_placeholder(leaf) for leaf in jax.tree.leaves(tree))


def from_flattened_with_keypath(flat_with_keys: Any) -> Any:
    """The tree of what `jax.tree_util.tree_flatten_with_path` gave: dicts and lists.

    Raises:
        ValueError: Nothing is given, which could be a dict or a list.
    """
    flat = {str_keypath(path): (path, leaf) for path, leaf in flat_with_keys}
    if not flat:
        raise ValueError("no leaves: the tree could be {} or []")
    return _of_paths([(path, leaf) for path, leaf in flat.values()], 0)


def _of_paths(pairs: list[tuple[Any, Any]], depth: int) -> Any:
    path, leaf = pairs[0]
    if len(path) == depth:
        return leaf
    children: dict[Any, list[tuple[Any, Any]]] = {}
    for path, leaf in pairs:
        children.setdefault(get_key_name(path[depth]), []).append((path, leaf))
    built = {name: _of_paths(inside, depth + 1) for name, inside in children.items()}
    if is_sequence_key(pairs[0][0][depth]):
        return [built[name] for name in sorted(built)]
    return built


def is_dict_key(key: Any) -> bool:
    """Whether a key of a JAX key path is a name."""
    return type(key).__name__ in ("DictKey", "GetAttrKey")


def is_sequence_key(key: Any) -> bool:
    """Whether a key of a JAX key path is a position."""
    return type(key).__name__ in ("SequenceKey", "FlattenedIndexKey")


def is_scalar(x: Any) -> bool:
    """Whether a value is a Python or NumPy number."""
    return isinstance(x, (int, float, np.number))


def is_gcs_path(path: Any) -> bool:
    """Whether a path is in Google Cloud Storage."""
    return os.fspath(path).startswith(("gs://", "/gcs/"))


def record_saved_duration(checkpoint_start_time: float) -> None:
    """Tells `jax.monitoring`, where JAX is loaded, how long a save took. Seconds since 1970."""
    import sys

    jax = sys.modules.get("jax")
    if jax is not None:
        seconds = time.time() - checkpoint_start_time
        jax.monitoring.record_event_duration_secs("/jax/checkpoint/write/duration_secs", seconds)


def pytree_structure(directory: Any) -> Any:
    """The saved tree of a checkpoint: nested dicts and lists with a metadata object a leaf.

    Raises:
        FileNotFoundError: No checkpoint is there.
    """
    from .checkpointers import Checkpointer
    from .handlers import PyTreeCheckpointHandler

    return Checkpointer(PyTreeCheckpointHandler()).structure(directory)


def fully_replicated_host_local_array_to_global_array(arr: Any) -> Any:
    """A `jax.Array` that every device holds whole, of one made by `pmap`."""
    import jax

    if not is_jax_array(arr):
        raise TypeError(f"not a jax.Array: {type(arr).__name__}")
    parts = sorted(arr.addressable_shards, key=lambda shard: shard.device.id)
    data = [part.data for part in parts]
    shape = data[0].shape
    if shape != arr.shape:
        data = [part[0] for part in data]
        shape = data[0].shape
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.make_array_from_single_device_arrays(shape, sharding, data)
