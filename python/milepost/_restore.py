"""Restoring: what is wanted is matched first, then read as one plan, each shard of a target once."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from ._arrays import as_numpy, as_saved, box_of, data_type_name, is_key, prng_key
from ._errors import Invalid, TreeMismatch
from ._progress import shown
from ._structure import Node, flatten, key_paths, positions, rebuild, text, unflatten

if TYPE_CHECKING:
    from ._checkpoint import ItemIndex, LeafInfo

# Python's scalars: the kind, and the data type that what is stored must be castable to.
_SCALARS = {
    bool: ("bool", "bool"),
    int: ("int", "int64"),
    float: ("float", "float64"),
    complex: ("complex", "complex128"),
    str: ("str", None),
    bytes: ("bytes", None),
    bytearray: ("bytes", None),
    memoryview: ("bytes", None),
}
_TEXTS = str, bytes, bytearray, memoryview


@dataclasses.dataclass(frozen=True)
class Want:
    """A stored leaf to read, by its position in the index, and as what.

    ``like``: None as saved; `numpy.ndarray`; ``int``, ``float``, ``bool``, ``complex``, ``str``, ``bytes``; `numpy.generic`
    for a NumPy scalar; ``"jax"`` for a `jax.Array` with ``sharding`` (None: JAX's default device). ``dtype``: the data type
    to cast to, None as stored.
    """

    position: int
    like: Any = None
    dtype: Any = None
    sharding: Any = None


def read(
    index: ItemIndex,
    wants: Sequence[Want],
    *,
    cast: str = "unsafe",
    progress: bool | None = None,
) -> list[Any]:
    """Reads chosen leaves as one I/O plan; the values are in the order of the wants."""
    requests: list[tuple] = []
    plans = []
    for want in wants:
        info = index.leaves[want.position]
        boxes = _boxes(want, info)
        plans.append((want, info, len(boxes)))
        name = _cast_name(want, info)
        requests.extend((want.position, name, box) for box in boxes)
    with shown("load", index._inner.progress, progress):
        arrays = iter(index._inner.read(requests, cast))
    return [_value(want, info, [next(arrays) for _ in range(n)]) for want, info, n in plans]


def _cast_name(want: Want, info: LeafInfo) -> str | None:
    """The data type that the engine is to give, None as stored.

    JAX without 64 bits would cut them off in silence: the engine is asked for what JAX holds, and refuses what does
    not fit.
    """
    dtype = want.dtype
    if (dtype is not None and is_key(dtype)) or info.kind == "prng_key":
        return None
    if want.like == "jax":
        import jax

        dtype = jax.dtypes.canonicalize_dtype(info.dtype if dtype is None else dtype)
    return None if dtype is None else data_type_name(np.dtype(dtype))


def _boxes(want: Want, info: LeafInfo) -> list[tuple[list[int], list[int]] | None]:
    """The boxes of a leaf that this process needs: all of it, or each distinct shard once."""
    if not _is_divided(want, info):
        return [None]
    sharding = want.sharding
    if info.kind == "prng_key":
        import jax

        sharding = _of_key_data(jax, sharding, info)
    return [box for box, _ in _shards(sharding, info.shape)]


def _is_divided(want: Want, info: LeafInfo) -> bool:
    if want.like != "jax" or want.sharding is None:
        return False
    if not want.sharding.is_fully_addressable:
        return True  # JAX would ask all processes whether they put the same
    if info.kind == "prng_key":
        return False
    return len(want.sharding.device_set) > 1 and not want.sharding.is_fully_replicated


def _shards(sharding: Any, shape: Sequence[int]) -> list[tuple[tuple, list]]:
    """The distinct boxes of a sharding, each with the devices of this process that hold it."""
    found: dict[tuple, list] = {}
    for device, index in sharding.addressable_devices_indices_map(tuple(shape)).items():
        start, size = box_of(index, shape)
        found.setdefault((tuple(start), tuple(size)), []).append(device)
    return [((list(start), list(size)), devices) for (start, size), devices in found.items()]


def _value(want: Want, info: LeafInfo, arrays: list[Any]) -> Any:
    like = want.like
    if like is None:
        if want.dtype is None or info.kind != "array":
            return as_saved(arrays[0], info.kind, info.implementation)
        return as_numpy(arrays[0])
    if like == "jax":
        return _jax_value(want, info, arrays)
    if like in _TEXTS:
        data = bytes(arrays[0])
        return data.decode("utf-8") if like is str else like(data)
    value = as_numpy(arrays[0])
    if like is np.ndarray:
        return value
    if like is np.generic:
        return value[()]
    if value.size != 1:
        raise Invalid(
            f"an array of shape {tuple(info.shape)} is no {like.__name__}",
            context={"leaf": info.path or "(root)"},
        )
    return like(value.reshape(-1)[0].item())


def _jax_value(want: Want, info: LeafInfo, arrays: list[Any]) -> Any:
    import jax

    is_key_data = info.kind == "prng_key"
    if is_key_data and not _is_divided(want, info):
        key = prng_key(as_numpy(arrays[0]), info.implementation)
        return key if want.sharding is None else jax.device_put(key, want.sharding)
    if not _is_divided(want, info):
        return _put(jax, as_numpy(arrays[0]), want.sharding)
    shape = tuple(info.shape)
    sharding = _of_key_data(jax, want.sharding, info) if is_key_data else want.sharding
    parts: list[Any] = []
    for (_, devices), array in zip(_shards(sharding, shape), arrays, strict=True):
        value = as_numpy(array)
        parts.extend(_put(jax, value, jax.sharding.SingleDeviceSharding(d)) for d in devices)
    whole = jax.make_array_from_single_device_arrays(shape, sharding, parts)
    return prng_key(whole, info.implementation) if is_key_data else whole


def _of_key_data(jax: Any, sharding: Any, info: LeafInfo) -> Any:
    """The sharding of the words of keys: that of the keys, and the words of a key are together."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        return sharding  # what its specification does not name is whole
    if sharding.is_fully_replicated:
        mesh = jax.sharding.Mesh(np.asarray(list(sharding._device_assignment)), ("all",))
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    raise Invalid(
        f"keys with shards in other processes cannot have a {type(sharding).__name__}",
        context={"leaf": info.path or "(root)"},
        hint="give a jax.sharding.NamedSharding",
    )


def _put(jax: Any, value: np.ndarray, sharding: Any) -> Any:
    # The memory is ours and nobody else writes to it: JAX may use it as it is.
    return jax.device_put(value, sharding, may_alias=True)


def as_wanted(value: Any) -> tuple[Any, Any, Any]:
    """What a target leaf asks for: like, data type, sharding."""
    if isinstance(value, np.ndarray):
        return np.ndarray, value.dtype, None
    if isinstance(value, np.generic) and not isinstance(value, (str, bytes)):
        return np.generic, value.dtype, None
    for cls in _SCALARS:
        if isinstance(value, cls):
            return cls, None, None
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.Array):
        return "jax", value.dtype, value.sharding
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        sharding = getattr(value, "sharding", None)
        if sharding is not None:
            return "jax", value.dtype, sharding
        return (None, None, None) if is_key(value.dtype) else (np.ndarray, value.dtype, None)
    raise TypeError(f"a {type(value).__name__} in a target says no shape and data type")


def target_of(value: Any) -> tuple[str | None, str | None, str | None, list[int] | None]:
    """Kind, implementation, data type and shape that a target leaf asks for; None is as stored.

    Raises TypeError for what asks for nothing that can be stored.
    """
    if value is ...:
        return None, None, None, None
    for cls, (kind, name) in _SCALARS.items():
        if isinstance(value, cls) and (name is None or not isinstance(value, np.generic)):
            return kind, None, name, (None if name is None else [])
    if hasattr(value, "dtype") and is_key(value.dtype):
        return "prng_key", _key_implementation(value), None, _key_shape(value)
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(f"a {type(value).__name__} says no shape and data type")
    name = data_type_name(np.dtype(value.dtype))
    return "array", None, name, [int(n) for n in value.shape]


def _key_implementation(value: Any) -> str:
    import jax

    if isinstance(value, jax.Array):
        return str(jax.random.key_impl(value))
    # A struct has the data type alone; a key of that type is made of zeros to ask it.
    return str(jax.random.key_impl(jax.numpy.zeros((), value.dtype)))


def _key_shape(value: Any) -> list[int]:
    """The shape of the data of keys: theirs, and the words of one key."""
    import jax

    data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(value.shape, value.dtype))
    return [int(n) for n in data.shape]


class LoadOptions(TypedDict, total=False):
    """The keywords of every load."""

    exact: bool
    """Without a target: containers as saved (default), else dicts with string keys and lists."""
    cast: Literal["same_kind", "unsafe"]
    """What may become of data types: casts within a kind (default), or any."""
    missing: Literal["error", "skip"]
    """What the target has and the checkpoint lacks: a mismatch, or the target's own value, which it must have."""
    unexpected: Literal["error", "ignore"]
    """What the checkpoint has and the target lacks: a mismatch, or left out."""
    containers: Literal["same", "by_name"]
    """Whether lists, tuples and dicts meet only their like, or by the text of their keys."""
    progress: bool | None
    """True shows a bar, False none, None one on a terminal or in a notebook."""


def load_tree(
    index: ItemIndex,
    target: Any = None,
    select: Any = None,
    *,
    exact: bool = True,
    cast: str = "same_kind",
    missing: str = "error",
    unexpected: str = "error",
    containers: str = "same",
    progress: bool | None = None,
) -> Any:
    """Restores a tree: as saved, or into a target whose structure, shapes and data types are checked first."""
    said = {"cast": cast, "missing": missing, "unexpected": unexpected, "containers": containers}
    _refuse_idle(said, exact, has_target=target is not None)
    if target is None:
        patterns = _patterns(select)
        structure = index.structure if patterns is None else index._inner.select(patterns)
        return load_node(index, structure, exact, progress)
    if select is not None:
        raise Invalid("a target and a selection are given", hint="the target says what is wanted")
    structure, leaves = flatten(target)
    pairs = index._inner.pair(structure, _targets(structure, leaves), **said)
    _refuse_unfilled(structure, leaves, {wanted for wanted, _ in pairs})
    values = list(leaves)
    wants = []
    for wanted, stored in pairs:
        leaf = leaves[wanted]
        like, dtype, sharding = (None, None, None) if leaf is ... else as_wanted(leaf)
        wants.append(Want(stored, like, dtype, sharding))
    for (wanted, _), value in zip(pairs, read(index, wants, cast=cast, progress=progress), strict=True):
        values[wanted] = value
    return rebuild(target, values)


_OF_TARGETS = {"cast": "same_kind", "missing": "error", "unexpected": "error", "containers": "same"}


def _refuse_unfilled(
    structure: Node, leaves: Sequence[Any], filled: set[int]
) -> None:
    """Refuses leaves that are not stored and have no value of their own which could stay."""
    empty = [n for n, leaf in enumerate(leaves) if n not in filled and not _has_value(leaf)]
    if empty:
        paths = key_paths(structure)
        what = "is not stored, and the target has no value that could stay"
        found = [(text(paths[number]) or "(root)", what) for number in empty]
        lines = [f"{path}: {what}" for path, what in found[:_LINES_MAX]]
        lines += [f"and {len(found) - _LINES_MAX} more"] if len(found) > _LINES_MAX else []
        raise TreeMismatch(
            "the target has leaves that get no value\n  " + "\n  ".join(lines),
            mismatches=found,
            hint='missing="skip" keeps arrays and numbers; give them for these leaves, or leave the leaves out',
        )


_LINES_MAX = 20


def _has_value(leaf: Any) -> bool:
    """Whether a leaf of a target is more than a description."""
    if leaf is ...:
        return False
    jax = sys.modules.get("jax")
    if isinstance(leaf, np.ndarray) or (jax is not None and isinstance(leaf, jax.Array)):
        return True
    return not hasattr(leaf, "shape") or isinstance(leaf, np.generic)


def _refuse_idle(said: dict[str, str], exact: bool, has_target: bool) -> None:
    """Refuses options that would have no effect."""
    if has_target and not exact:
        raise Invalid("exact=False and a target are given", hint="the target has the containers")
    idle = [] if has_target else [name for name, word in said.items() if word != _OF_TARGETS[name]]
    if idle:
        raise Invalid(f"{idle[0]}={said[idle[0]]!r} is about a target, and none is given")


def _targets(structure: Node, leaves: Sequence[Any]) -> list[tuple]:
    """What each leaf of a target asks for; raises Invalid with where a leaf is."""
    targets = []
    for number, leaf in enumerate(leaves):
        try:
            targets.append(target_of(leaf))
        except TypeError as error:
            raise Invalid(
                f"a leaf of the target: {error}",
                context={"leaf": text(key_paths(structure)[number]) or "(root)"},
                hint="use arrays, jax.ShapeDtypeStruct, numbers, strings, or ... for as stored",
            ) from error
    return targets


def _patterns(select: Any) -> list[str] | None:
    if select is None:
        return None
    patterns = [select] if isinstance(select, str) else list(select)
    if not patterns:
        raise Invalid("a selection without patterns selects nothing", hint="leave select out for all")
    return patterns


def load_node(index: ItemIndex, structure: Node, exact: bool, progress: bool | None) -> Any:
    """Restores the leaves that a structure names, as saved, in its containers."""
    wanted = list(positions(structure))
    values = read(index, [Want(position) for position in wanted], progress=progress)
    return unflatten(structure, dict(zip(wanted, values, strict=True)), exact)
