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
    "any_checkpoint_step",
    "broadcast_one_to_all",
    "checkpoint_steps",
    "checkpoint_steps_paths",
    "deserialize_tree",
    "from_flat_dict",
    "fully_replicated_host_local_array_to_global_array",
    "get_key_name",
    "get_save_directory",
    "is_checkpoint_finalized",
    "is_dict_key",
    "is_empty_node",
    "is_empty_or_leaf",
    "is_gcs_path",
    "is_primary_host",
    "is_scalar",
    "is_sequence_key",
    "is_tmp_checkpoint",
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
tuple_path_from_keypath = str_keypath


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
