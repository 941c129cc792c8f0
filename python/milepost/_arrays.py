"""Leaves: how values of Python become leaves to save, and restored bytes become values.

A `jax.Array` cannot change, so a save holds on to its memory and copies nothing; a NumPy array can, so it is copied before
`save` returns, unless it is handed over. Arrays on accelerators come to the host, as `_device` says.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from . import _milepost
from ._errors import Invalid, MilepostError, Unsupported

if TYPE_CHECKING:
    from ._device import Arrivals


@dataclasses.dataclass(frozen=True)
class LeafOptions:
    """What one leaf asks for beyond the options of its save.

    ``dtype`` casts it before it is stored; ``chunk_bytes`` is the decoded size of a chunk, ``chunk_shape`` its shape;
    ``reshard_axes`` are the axes along which it will be read in parts; ``compression`` as in `save`.
    """

    dtype: Any = None
    chunk_bytes: int | None = None
    chunk_shape: Sequence[int] | None = None
    reshard_axes: Sequence[int] | None = None
    compression: str | None = None

    def layout(self) -> dict[str, Any]:
        """The options that the engine knows, those that are set."""
        chunk = self.chunk_shape
        axes = self.reshard_axes
        given = {
            "chunk_bytes": self.chunk_bytes,
            "chunk_shape": None if chunk is None else [int(n) for n in chunk],
            "reshard_axes": None if axes is None else [int(n) for n in axes],
            "compression": self.compression,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclasses.dataclass
class Capture:
    """How one save takes over what it is given.

    ``copy``: immutable arrays are copied too, so that none is held beyond the call. ``handover``: writable arrays are
    held, not copied; the caller does not write to them until the save has ended. ``together``: other processes save the
    shards that are not here. Arrays on accelerators are ``arrivals``.
    """

    copy: bool = False
    handover: bool = False
    together: bool = False
    arrivals: Arrivals | None = None

    def device_leaf(self, array: Any, is_held: bool = False):
        """The leaf of an array on an accelerator; ``is_held``: of what this process holds of it."""
        if self.arrivals is None:
            from ._device import Arrivals

            self.arrivals = Arrivals()
        return self.arrivals.leaf(array, is_held)

    def finish(self, has_ended: Callable[[], bool]) -> None:
        """Returns once all is captured; asked after the save was started."""
        if self.arrivals is not None:
            self.arrivals.wait(has_ended)


@functools.lru_cache(maxsize=256)
def data_type_name(dtype: np.dtype) -> str:
    """The name of a data type in Zarr; raises TypeError for those that cannot be stored."""
    if dtype.kind == "V" and dtype.names is None and dtype.subdtype is None:
        is_raw = dtype.type is np.void
        return f"r{8 * dtype.itemsize}" if is_raw else dtype.name
    if dtype.kind in "biufc":
        return dtype.name
    raise TypeError(f"the data type {dtype} cannot be stored")


def numpy_dtype(name: str) -> np.dtype:
    """The NumPy data type of a name in Zarr; raises TypeError where there is none."""
    if name.startswith("r") and name[1:].isdigit():
        return np.dtype(f"V{int(name[1:]) // 8}")
    extension = getattr(ml_dtypes, name, None)
    return np.dtype(name) if extension is None else np.dtype(extension)


def _bytes_view(array: np.ndarray) -> Any:
    """The bytes of a contiguous array, as a buffer."""
    if array.ndim == 0:
        array = array.reshape(1)
    return array.view(np.uint8) if array.size else b""


def leaf(value: Any, path: str, capture: Capture, options: LeafOptions | None):
    """Makes the engine's leaf of a value; ``path`` is where it is, for errors."""
    try:
        made = _leaf(value, capture, options)
    except (TypeError, ValueError, BufferError) as error:
        ours = error if isinstance(error, MilepostError) else None
        where = {"leaf": path or "(root)", "type": type(value).__name__}
        raise Invalid(
            str(error) if ours is None else ours.message,
            context=where if ours is None else {**ours.context, **where},
            hint=(ours and ours.hint) or "leaves are arrays, numbers, strings, bytes and None",
        ) from error
    layout = {} if options is None else options.layout()
    return made.with_layout(**layout) if layout else made


def _leaf(value: Any, capture: Capture, options: LeafOptions | None):
    dtype = None if options is None or options.dtype is None else np.dtype(options.dtype)
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, getattr(jax, "Array", ())):
        return _jax_leaf(jax, value, capture, dtype)
    if isinstance(value, np.ndarray):
        return _numpy_leaf(value, capture.handover, dtype)
    if isinstance(value, np.generic) and not isinstance(value, (str, bytes)):
        return _numpy_leaf(np.asarray(value), True, dtype)
    if dtype is not None and isinstance(value, (bool, int, float, complex)):
        return _numpy_leaf(np.asarray(value, dtype), True, None)
    return _scalar_leaf(value, dtype)


def _scalar_leaf(value: Any, dtype: np.dtype | None):
    if isinstance(value, bool):
        return _milepost.Leaf.bool(value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise TypeError(f"the integer {value} has more than 64 bits")
        return _milepost.Leaf.int(int(value))
    if isinstance(value, float):
        return _milepost.Leaf.float(value)
    if isinstance(value, complex):
        return _milepost.Leaf.complex(value.real, value.imag)
    if isinstance(value, str):
        return _milepost.Leaf.text(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _milepost.Leaf.bytes(value)
    if hasattr(value, "__array__") and not isinstance(value, type):
        return _numpy_leaf(np.asarray(value), False, dtype)
    raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__} is no leaf")


def _numpy_leaf(array: np.ndarray, hold: bool, dtype: np.dtype | None):
    if dtype is not None and dtype != array.dtype:
        array, hold = array.astype(dtype), True
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("a masked array has two arrays: save its data and its mask")
    name = data_type_name(array.dtype)
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array, hold = array.astype(array.dtype.newbyteorder("<")), True
    return _host_leaf(array, hold, name)


def _host_leaf(array: np.ndarray, hold: bool, name: str | None = None):
    if not array.flags.c_contiguous:
        array, hold = np.ascontiguousarray(array), True
    return _milepost.Leaf.array(_bytes_view(array), name or data_type_name(array.dtype), array.shape, hold)


def _jax_leaf(jax: Any, array: Any, capture: Capture, dtype: np.dtype | None):
    if isinstance(array, jax.core.Tracer):
        raise TypeError("a traced array has no value: save outside of jit")
    if array.is_deleted():
        raise TypeError("the array was deleted or donated before it was saved")
    if is_key(array.dtype):
        implementation = str(jax.random.key_impl(array))
        data = _jax_leaf(jax, jax.random.key_data(array), capture, None)
        return data.with_layout(implementation=implementation)
    where = _where(array.sharding)
    if where == "elsewhere":
        if not capture.together:
            raise Unsupported(
                "an array has shards in other processes",
                hint="save it in all of them, and together: see milepost.Together",
            )
        return _held_leaf(array, capture, dtype)
    if dtype is not None and dtype != array.dtype:
        return _numpy_leaf(np.asarray(array).astype(dtype), True, None)
    if where == "host":
        return _host_leaf(np.asarray(array), not capture.copy)
    if where == "hosts":
        return _sharded_leaf(array, capture)
    return capture.device_leaf(array)


@functools.lru_cache(maxsize=256)
def is_key(dtype: Any) -> bool:
    """Whether a data type is that of typed PRNG keys."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


@functools.lru_cache(maxsize=1024)
def _where(sharding: Any) -> str:
    """Where the memory of an array lies: one block of this host, several, a device, or also elsewhere."""
    if not sharding.is_fully_addressable:
        return "elsewhere"
    if not is_on_host(sharding):
        return "device"
    return "host" if len(sharding.device_set) == 1 else "hosts"


def is_on_host(sharding: Any) -> bool:
    """Whether the memory of an array is a host's."""
    return next(iter(sharding.device_set)).platform == "cpu"


def _sharded_leaf(array: Any, capture: Capture):
    """Every shard once, as blocks of one array."""
    shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    if len(shards) == 1 or array.size == 0:
        whole = shards[0].data if array.size else array
        return _numpy_leaf(np.asarray(whole), not capture.copy, None)
    boxes = []
    for shard in shards:
        start, shape = box_of(shard.index, array.shape)
        data = np.ascontiguousarray(np.asarray(shard.data))
        data = data.copy() if capture.copy else data
        boxes.append((start, shape, _bytes_view(data)))
    return _milepost.Leaf.boxes(data_type_name(array.dtype), list(array.shape), boxes)


def _held_leaf(array: Any, capture: Capture, dtype: np.dtype | None):
    """What this process has of an array that several save together: every box once."""
    if dtype is None and not is_on_host(array.sharding):
        return capture.device_leaf(array, is_held=True)
    boxes = []
    for (start, shape), shard in distinct_shards(array):
        data = np.ascontiguousarray(np.asarray(shard.data))
        data = data.copy() if capture.copy and dtype is None else data
        boxes.append((start, shape, _bytes_view(data if dtype is None else data.astype(dtype))))
    dtype = np.dtype(array.dtype if dtype is None else dtype)
    return _milepost.Leaf.held_boxes(data_type_name(dtype), list(array.shape), boxes)


def distinct_shards(array: Any) -> list[tuple[tuple[list[int], list[int]], Any]]:
    """The shards of this process, each box once, with first index and shape."""
    found: dict[tuple, Any] = {}
    for shard in array.addressable_shards:
        start, shape = box_of(shard.index, array.shape)
        found.setdefault((tuple(start), tuple(shape)), shard)
    return [((list(start), list(shape)), shard) for (start, shape), shard in found.items()]


def box_of(index: tuple, shape: Sequence[int]) -> tuple[list[int], list[int]]:
    """First index and shape of a shard, from its slices."""
    start, size = [], []
    for part, length in zip(index, shape, strict=True):
        first, last, _ = part.indices(length)
        start.append(first)
        size.append(last - first)
    return start, size


def as_numpy(array: Any, dtype: np.dtype | None = None) -> np.ndarray:
    """A restored array as NumPy sees it: over the engine's memory, writable."""
    dtype = numpy_dtype(array.data_type) if dtype is None else dtype
    return np.ndarray(tuple(array.shape), dtype, buffer=array) if len(array) else np.empty(
        tuple(array.shape), dtype
    )


def as_saved(array: Any, kind: str, implementation: str | None) -> Any:
    """A restored leaf as it was saved: an array, a number, text, bytes, a PRNG key."""
    if kind == "str":
        return bytes(array).decode("utf-8")
    if kind == "bytes":
        return bytes(array)
    value = as_numpy(array)
    if kind == "prng_key":
        return prng_key(value, implementation)
    return value if kind == "array" else value.item()


def prng_key(data: np.ndarray, implementation: str | None) -> Any:
    """A typed PRNG key over its data, where JAX is loaded; else the data."""
    jax = sys.modules.get("jax")
    return data if jax is None else jax.random.wrap_key_data(data, impl=implementation)
