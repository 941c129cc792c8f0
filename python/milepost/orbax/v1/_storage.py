"""What a context's options mean to a save: keywords of `milepost.save`, and options of leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import milepost as mp
from milepost import _structure
from milepost._structure import key_text
from milepost.orbax._leaf_requests import is_prng_key
from milepost.orbax.v1._context import Context

# What Orbax's v1 layout compresses with.
COMPRESSION = "zstd:3"


def save_keywords(context: Context) -> dict[str, Any]:
    """Returns the storage keywords of `milepost.save` that a context asks for."""
    saving = context.array.saving
    keywords: dict[str, Any] = {
        "compression": COMPRESSION if saving.use_compression else "none",
        "handover": not context.memory.deepcopy_host_arrays,
    }
    if saving.ocdbt_target_data_file_size:
        keywords["shard_bytes"] = int(saving.ocdbt_target_data_file_size)
    return keywords


def leaf_options(context: Context, structure: Any, leaves: Sequence[Any]) -> list[Any] | None:
    """Returns the options of each leaf of a flattened tree, None where there are none.

    A dtype is for arrays only: numbers, text and PRNG keys keep theirs.

    Raises:
      TypeError: The scoped creator returned something else than storage options.
    """
    saving = context.array.saving
    general, creator = saving.storage_options, saving.scoped_storage_options_creator
    if creator is None and _is_empty(general):
        return None
    chosen: list[Any] = []
    for keys, leaf in zip(_structure.key_paths(structure), leaves):
        own = creator(jax_keys(keys), leaf) if creator is not None else None
        if own is not None and not hasattr(own, "chunk_byte_size"):
            raise TypeError(
                "scoped_storage_options_creator must return StorageOptions or None, not "
                f"{type(own).__name__}. leaf=`{_structure.text(keys)}`"
            )
        chosen.append(_leaf_option(own, general, leaf))
    return chosen


def _is_empty(options: Any) -> bool:
    return options is None or (
        options.dtype is None and options.chunk_byte_size is None and not options.shard_axes
    )


def _leaf_option(own: Any, general: Any, leaf: Any) -> Any:
    def first(member: str) -> Any:
        for options in (own, general):
            value = getattr(options, member, None)
            if value is not None:
                return value
        return None

    is_array = hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not is_prng_key(leaf)
    dtype = first("dtype") if is_array else None
    axes = first("shard_axes")
    return mp.LeafOptions(
        dtype=None if dtype is None else np.dtype(dtype),
        chunk_bytes=first("chunk_byte_size"),
        reshard_axes=tuple(axes) if axes else None,
    )


def jax_keys(keys: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns a key path of ours as `jax.tree_util` has it (DictKey, SequenceKey, GetAttrKey)."""
    from jax import tree_util

    found: list[Any] = []
    for key in keys:
        if isinstance(key, (str, int)):
            found.append(tree_util.DictKey(key))
        elif isinstance(key, _structure.Index):
            found.append(tree_util.SequenceKey(int(key_text(key))))
        else:
            found.append(tree_util.GetAttrKey(key_text(key)))
    return tuple(found)
