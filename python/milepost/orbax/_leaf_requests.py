"""One leaf of a restore: what is asked, whether the stored leaf can give it, and the last step.

A request is made from the target's leaf (`of_target`: StandardRestore, where the target is the
request) or from RestoreArgs (`of_arguments`: PyTreeRestore, where the target only gives structure).
It yields one `Want` for the engine and a `finish` for what the engine does not do: truncating or
padding, and putting a truncated array on its devices.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np

from milepost._restore import Want

PLACEHOLDER = ...
"""Stands for a leaf that is not to be restored."""

SCALARS = (bool, int, float, complex)


class Unfit(Exception):
    """A stored leaf cannot be what is asked. The text completes ``<path>: …``."""


@dataclasses.dataclass
class Request:
    """What the engine reads for a leaf, and how the value is finished."""

    want: Want
    fit_shape: tuple[int, ...] | None = None
    place: bool = False
    sharding: Any | None = None
    python_type: type | None = None
    python_scalar: bool = False

    def finish(self, value: Any) -> Any:
        """The engine's value as the caller wants it."""
        if self.python_scalar:
            return value.item()
        if self.python_type is not None:
            return self.python_type(np.asarray(value).item())
        if self.fit_shape is not None:
            value = fitted(value, self.fit_shape)
        if self.place:
            import jax

            value = jax.device_put(value, self.sharding)
        return value


def fitted(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array truncated, and padded with zeros, at the end of each axis to `shape`."""
    result = np.zeros(shape, value.dtype)
    box = tuple(slice(0, min(have, want)) for have, want in zip(value.shape, shape))
    result[box] = value[box]
    return result


def is_jax_array(value: Any) -> bool:
    """Whether a value is a `jax.Array`, without importing JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.Array)


def is_prng_key(value: Any) -> bool:
    """Whether a leaf is, or describes, a typed PRNG key."""
    dtype = getattr(value, "dtype", None)
    return dtype is not None and not isinstance(dtype, (np.dtype, type)) and hasattr(dtype, "_impl")


def described(value: Any) -> str:
    """A leaf in words, for errors: ``float32[3, 4]``, ``a Python int``."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    return f"a Python {type(value).__name__}"


def stored_as(leaf: Any) -> str:
    """A stored leaf in words."""
    if leaf.kind == "array":
        return f"{leaf.data_type}{list(leaf.shape)}"
    return f"a {leaf.kind}"


def of_target(
    leaf: Any,
    number: int,
    target: Any,
    *,
    was_jax: bool,
    strict: bool,
    fallback_sharding: Any = None,
    support_layout: bool = False,
) -> Request:
    """The request that a target's leaf is: its type, shape, dtype and sharding.

    Raises:
        Unfit: The stored leaf has another shape (strict), rank or kind.
    """
    if isinstance(target, (str, bytes)):
        return _text(leaf, number, type(target))
    described_only = type(target).__name__
    if described_only == "StringMetadata" or (
        described_only == "ScalarMetadata" and leaf.kind != "array"
    ):
        return _described(leaf, number, target)
    if leaf.kind in ("str", "bytes"):
        asked = described(target)
        raise Unfit(f"the checkpoint has {stored_as(leaf)}, the target asks for {asked}")
    if is_prng_key(target) or leaf.kind == "prng_key":
        return _key_of_target(leaf, number, target, fallback_sharding)
    if isinstance(target, SCALARS) and not isinstance(target, np.generic):
        return _scalar(leaf, number, type(target))
    if isinstance(target, np.generic):
        _same_shape(leaf, (), strict)
        return Request(Want(number, like=np.ndarray, dtype=target.dtype), python_type=type(target))
    if not (hasattr(target, "shape") and hasattr(target, "dtype")):
        raise Unfit(
            f"the target's leaf is of type {type(target).__name__}: give an array, a "
            "jax.ShapeDtypeStruct or a Python scalar"
        )
    fit = _same_shape(leaf, tuple(target.shape), strict)
    dtype = None if target.dtype is None else np.dtype(target.dtype)
    sharding = _sharding_of(target, support_layout)
    if is_jax_array(target) or sharding is not None:
        return _jax(number, dtype, sharding or fallback_sharding, fit)
    if isinstance(target, np.ndarray) or not was_jax:
        return Request(Want(number, like=np.ndarray, dtype=dtype), fit_shape=fit)
    return _jax(number, dtype, fallback_sharding, fit)


def of_arguments(
    leaf: Any,
    number: int,
    args: Any,
    target: Any,
    *,
    was_jax: bool,
    fallback_sharding: Any = None,
) -> Request:
    """The request of RestoreArgs; without any, the leaf as it was saved.

    A target's shape and dtype do not count here. Its sharding does, where it is a `jax.Array` or a
    `jax.ShapeDtypeStruct` and the leaf was saved from one; without it `fallback_sharding` does.

    Raises:
        Unfit: As `of_target`.
    """
    wanted = getattr(args, "restore_type", None)
    dtype = getattr(args, "dtype", None)
    if leaf.kind in ("str", "bytes"):
        if wanted in (None, str, bytes) or is_array_type(wanted):
            return Request(Want(number))
        raise Unfit(f"the checkpoint has {stored_as(leaf)}, restore_type is {wanted.__name__}")
    sharding = _argument_sharding(args)
    if leaf.kind == "prng_key":
        if wanted is np.ndarray:
            return Request(Want(number, like=np.ndarray))
        named = sharding or (_sharding_of(target, False) if is_prng_key(target) else None)
        return _prng_key(leaf, number, target, named or fallback_sharding)
    if wanted is None:
        wanted = _saved_type(leaf, was_jax, sharding)
    shape = getattr(args, "global_shape", None)
    if shape is None:
        shape = getattr(args, "shape", None)
    fit = None
    if shape is not None:
        fit = _same_shape(leaf, tuple(shape), getattr(args, "strict", True))
    if isinstance(wanted, type) and issubclass(wanted, SCALARS):
        return _scalar(leaf, number, wanted, dtype)
    if wanted == "scalar":
        return _cast_scalar(number, dtype)
    if wanted == "jax" or (is_array_type(wanted) and wanted is not np.ndarray):
        if sharding is None and was_jax and target is not None:
            sharding = _sharding_of(target, False)
        return _jax(number, dtype, sharding or fallback_sharding, fit)
    if wanted is np.ndarray or wanted is np.generic:
        return Request(Want(number, like=np.ndarray, dtype=dtype), fit_shape=fit)
    name = getattr(wanted, "__name__", wanted)
    raise Unfit(f"the checkpoint has {stored_as(leaf)}, restore_type is {name}")


def is_array_type(kind: Any) -> bool:
    """Whether a restore_type means an array: np.ndarray, jax.Array or the text ``"jax.Array"``."""
    if kind is np.ndarray or kind == "jax.Array":
        return True
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(kind, type) and issubclass(kind, jax.Array)


def _saved_type(leaf: Any, was_jax: bool, sharding: Any) -> Any:
    if leaf.kind in ("int", "float", "bool", "complex"):
        return "scalar"
    return "jax" if was_jax or sharding is not None else np.ndarray


def _same_shape(leaf: Any, wanted: tuple[int, ...], strict: bool) -> tuple[int, ...] | None:
    """The shape to truncate or pad to; None where the stored shape is the wanted one."""
    stored = tuple(leaf.shape)
    if stored == wanted:
        return None
    if strict:
        raise Unfit(f"the stored shape is {list(stored)}, the target asks for {list(wanted)}")
    if len(stored) != len(wanted):
        raise Unfit(
            f"the stored rank is {len(stored)} ({list(stored)}), the target's is {len(wanted)} "
            f"({list(wanted)}): strict=False truncates and pads within the same rank only"
        )
    return wanted


def _jax(number: int, dtype: Any, sharding: Any, fit: tuple[int, ...] | None) -> Request:
    if fit is None and type(sharding).__name__ in ("Format", "Layout"):
        # The engine puts arrays by shardings; a layout is one more step on the device.
        want = Want(number, like="jax", dtype=dtype, sharding=sharding.sharding)
        return Request(want, place=True, sharding=sharding)
    if fit is None:
        return Request(Want(number, like="jax", dtype=dtype, sharding=sharding))
    return Request(Want(number, like=np.ndarray, dtype=dtype), fit, place=True, sharding=sharding)


def _scalar(leaf: Any, number: int, kind: type, dtype: Any = None) -> Request:
    if tuple(leaf.shape) != ():
        raise Unfit(f"the checkpoint has {stored_as(leaf)}, the target asks for a {kind.__name__}")
    return Request(Want(number, like=np.ndarray, dtype=dtype), python_type=kind)


def _cast_scalar(number: int, dtype: Any) -> Request:
    if dtype is None:
        return Request(Want(number))
    kind = {"b": bool, "i": int, "u": int, "c": complex}.get(np.dtype(dtype).kind, float)
    return Request(Want(number, like=np.ndarray, dtype=dtype), python_type=kind)


def _text(leaf: Any, number: int, kind: type) -> Request:
    if leaf.kind != kind.__name__:
        raise Unfit(f"the checkpoint has {stored_as(leaf)}, the target asks for a {kind.__name__}")
    return Request(Want(number))


def _described(leaf: Any, number: int, target: Any) -> Request:
    """The request of a metadata object that describes a scalar or a text: the leaf as saved."""
    if type(target).__name__ == "StringMetadata" and leaf.kind not in ("str", "bytes"):
        raise Unfit(f"the checkpoint has {stored_as(leaf)}, the target describes a text")
    if leaf.kind in ("str", "bytes"):
        return Request(Want(number))
    return _cast_scalar(number, target.dtype)


def _key_of_target(leaf: Any, number: int, target: Any, fallback_sharding: Any) -> Request:
    """A PRNG key as a target asks: typed, of its shape and sharding; an np.ndarray gets the data."""
    if isinstance(target, np.ndarray):
        _same_shape(leaf, target.shape, strict=True)
        return Request(Want(number, like=np.ndarray))
    sharding = None
    if is_prng_key(target):
        sharding = _sharding_of(target, False)
        # What is stored are the keys' data: the words of one key are its last axis.
        stored, asked = tuple(leaf.shape)[:-1], tuple(target.shape)
        if leaf.kind == "prng_key" and stored != asked:
            raise Unfit(f"the stored shape is {list(stored)}, the target asks for {list(asked)}")
    return _prng_key(leaf, number, target, sharding or fallback_sharding)


def _prng_key(leaf: Any, number: int, target: Any, sharding: Any) -> Request:
    if leaf.kind != "prng_key":
        raise Unfit(f"the checkpoint has {stored_as(leaf)}, the target asks for a PRNG key")
    if is_prng_key(target):
        implementation = str(target.dtype._impl.name)
        if leaf.implementation is not None and implementation != leaf.implementation:
            raise Unfit(
                f"the checkpoint has a PRNG key of {leaf.implementation}, the target's is of "
                f"{implementation}"
            )
    return Request(Want(number, like="jax", sharding=sharding))


def _sharding_of(target: Any, support_layout: bool) -> Any:
    if support_layout:
        layout = getattr(target, "format", None)
        if layout is not None:
            return layout
    sharding = getattr(target, "sharding", None)
    try:
        return as_sharding(sharding)
    except ValueError:
        # What a checkpoint says of its mesh is advice: these devices may not be here.
        return None


def as_sharding(sharding: Any) -> Any:
    """A JAX sharding of a sharding, of Orbax's ShardingMetadata, or of None."""
    convert = getattr(sharding, "to_jax_sharding", None)
    return convert() if convert is not None else sharding


def _argument_sharding(args: Any) -> Any:
    sharding = as_sharding(getattr(args, "sharding", None))
    if sharding is not None:
        return sharding
    mesh, axes = getattr(args, "mesh", None), getattr(args, "mesh_axes", None)
    if mesh is not None and axes is not None:
        import jax

        return jax.sharding.NamedSharding(mesh, axes)
    return getattr(args, "single_replica_sharding", None)
