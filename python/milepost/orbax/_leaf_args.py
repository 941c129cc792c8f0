"""What the caller asks of one leaf: SaveArgs, RestoreArgs and their kin.

They are plain data. `milepost.orbax.type_handlers` and `milepost.orbax` re-export them. The real
Orbax's objects of the same shape are accepted wherever these are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


def _jax_array() -> Any:
    import jax

    return jax.Array


@dataclasses.dataclass
class SaveArgs:
    """How one leaf is saved.

    Attributes:
        aggregate: Orbax once packed small leaves in one file; it ignores this today. So do we:
            small leaves are stored whole in any case. True is refused by `StandardSave`, as there.
        dtype: The data type to store; the cast happens on the host. None: the leaf's own.
        chunk_byte_size: Target size of a chunk in bytes. None: the engine's (4 MiB).
        shard_axes: Axes that will be resharded at restore: chunks are cut along these first.
    """

    aggregate: bool = False
    dtype: Any | None = None
    chunk_byte_size: int | None = None
    shard_axes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype is not None:
            self.dtype = np.dtype(self.dtype)
        if self.chunk_byte_size is not None and self.chunk_byte_size <= 0:
            raise ValueError(f"SaveArgs.chunk_byte_size must be positive: {self.chunk_byte_size}")


@dataclasses.dataclass
class RestoreArgs:
    """How one leaf is restored.

    Attributes:
        restore_type: np.ndarray, jax.Array, int, float, bool, complex, str, bytes. None: as saved.
        dtype: The data type to cast to, on the host, as NumPy's ``astype`` does. None: as saved.
    """

    restore_type: Any | None = None
    dtype: Any | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and not _is_extended(self.dtype):
            self.dtype = np.dtype(self.dtype)


def _is_extended(dtype: Any) -> bool:
    """Whether a dtype is JAX's own (a typed PRNG key), which NumPy does not know."""
    return not isinstance(dtype, np.dtype) and hasattr(dtype, "_impl")


@dataclasses.dataclass
class ArrayRestoreArgs(RestoreArgs):
    """How one leaf is restored as a `jax.Array`.

    Attributes:
        restore_type: jax.Array unless another is named.
        mesh, mesh_axes: Give a `NamedSharding` where `sharding` is None.
        sharding: A `jax.sharding.Sharding` or `Format`. None, and no mesh: the default device.
        global_shape: The shape wanted. None: the stored shape.
        shape: As `global_shape`, where that is None.
        strict: True: another stored shape is an error that names the leaf. False: the array is
            truncated or padded with zeros at the end of each axis (the rank must be the same).
    """

    restore_type: Any | None = dataclasses.field(default_factory=_jax_array)
    mesh: Any | None = None
    mesh_axes: Any | None = None
    sharding: Any | None = None
    global_shape: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    strict: bool = True


@dataclasses.dataclass
class SingleReplicaArrayRestoreArgs(ArrayRestoreArgs):
    """As `ArrayRestoreArgs`.

    Attributes:
        single_replica_sharding: The sharding of one replica. Each process of ours reads only what
            its devices need, once, so there is no broadcast to steer; where `sharding` is None it
            is used.
    """

    single_replica_sharding: Any | None = None
