"""Array types of the v1 API, and `to_shape_dtype_struct`."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, TypeAlias

import numpy as np

Shape: TypeAlias = "tuple[int, ...]"
DType: TypeAlias = np.dtype
Scalar: TypeAlias = "int | float | np.number | bytes | bool | complex"
AbstractScalar: TypeAlias = Scalar


class AbstractArray(Protocol):
    """A leaf to be loaded as `np.ndarray`: has `shape` and `dtype` (each may be None: as saved)."""

    shape: Shape | None
    dtype: DType | None


class AbstractShardedArray(Protocol):
    """A leaf to be loaded as `jax.Array`: has `sharding` (None: the default device) as well."""

    shape: Shape | None
    dtype: DType | None
    sharding: Any


ArrayLike: TypeAlias = "AbstractArray | AbstractShardedArray"


@dataclasses.dataclass
class StorageMetadata:
    """How an array is cut: the shapes of its chunks and of its stored objects."""

    chunk_shape: Shape | None
    write_shape: Shape | None


@dataclasses.dataclass
class NumpyMetadata:
    """What `metadata()` says of a NumPy array; loads as `np.ndarray`."""

    # A leaf of the trees it is in, not a container of its fields.
    __milepost_leaf__ = True

    shape: Shape | None
    dtype: np.dtype | None
    storage_metadata: StorageMetadata | None = None


@dataclasses.dataclass
class ArrayMetadata:
    """What `metadata()` says of a `jax.Array`; loads as `jax.Array` with `sharding`.

    `sharding` is the recorded one where this machine has its devices, else None.
    """

    __milepost_leaf__ = True

    shape: Shape | None
    dtype: np.dtype | None
    sharding: Any = None
    storage_metadata: StorageMetadata | None = None


def to_shape_dtype_struct(
    x: Any, dtype: Any = None, scalar_dtype: Any = None, support_format: bool = False
) -> Any:
    """Returns what describes the leaf `x`, to be used in an abstract tree.

    Args:
      x: A `jax.Array` or `jax.ShapeDtypeStruct` (its sharding is kept), a NumPy array (gives one
        without sharding, which loads on the default device), a scalar, text or bytes.
      dtype: The dtype of arrays; None: theirs.
      scalar_dtype: A type such as `int` or `np.float32` to convert scalars to; None: their own.
      support_format: Keep the array's `format` (sharding and layout) instead of its sharding.

    Raises:
      ValueError: `x` is none of these.
    """
    import jax

    if hasattr(x, "shape") and hasattr(x, "dtype") and not isinstance(x, np.generic):
        sharding = getattr(x, "sharding", None)
        if support_format and getattr(x, "format", None) is not None:
            sharding = x.format
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype if dtype is None else dtype, sharding=sharding
        )
    if isinstance(x, (bool, int, float, complex, np.number, np.bool_)):
        return x if scalar_dtype is None else scalar_dtype(x)
    if isinstance(x, (str, bytes)):
        return x
    raise ValueError(
        f"no shape and dtype for a leaf of type {type(x).__name__}: arrays, numbers, text and "
        "bytes have them"
    )


__all__ = [
    "AbstractArray",
    "AbstractScalar",
    "AbstractShardedArray",
    "ArrayLike",
    "ArrayMetadata",
    "DType",
    "NumpyMetadata",
    "Scalar",
    "Shape",
    "StorageMetadata",
    "to_shape_dtype_struct",
]
