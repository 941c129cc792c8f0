"""Trees as v1 loads them: the abstract tree's leaves are the request.

An abstract leaf says what the loaded one is: `jax.Array` where it has a `sharding` (None: as
recorded, else the default device), `np.ndarray` where it has only shape and dtype, a scalar or text
where it is one, and the same for types. `...` and None are not read. Shapes are strict unless the
context pads and truncates; dtypes are cast as NumPy casts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from milepost import _structure
from milepost._errors import Mismatch
from milepost._restore import Want
from milepost.orbax import _compare, _leaf_requests
from milepost.orbax._leaf_requests import Request, Unfit
from milepost.orbax._leaf_types import LeafTypes
from milepost.orbax._reading import read
from milepost.orbax._targets import FlatTree, Path, flatten_stored, flatten_target, shown
from milepost.orbax.v1._context import Context
from milepost.orbax.v1.arrays import ArrayMetadata, NumpyMetadata, StorageMetadata

_SCALARS = (bool, int, float, complex)
_ABSTRACT = (
    *(type, str, bytes, *_SCALARS),
    *(np.generic, np.ndarray, ArrayMetadata, NumpyMetadata),
)


def is_abstract_leaf(value: Any) -> bool:
    """Returns whether a value describes one leaf: it is never looked into.

    A registered node is a container, whatever it has: variables of NNX have shape and dtype, too.
    """
    if value is ... or isinstance(value, _ABSTRACT):
        return True
    if value is None or isinstance(value, (dict, list, tuple)):
        return False
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, (jax.Array, jax.ShapeDtypeStruct)):
        return True
    if _structure._children(value, ()) is not None:
        return False
    return hasattr(value, "shape") and hasattr(value, "dtype")


def check_abstract(abstract: Any) -> None:
    """Checks that every leaf of an abstract tree can describe one.

    Raises:
      TypeError: Names the leaves that cannot, by key path.
    """
    flat = flatten_target(abstract, stop=is_abstract_leaf)
    wrong = [
        f"{shown(path)}: {leaf.__name__ if isinstance(leaf, type) else type(leaf).__name__}"
        for path, leaf in flat.leaves.items()
        if not is_abstract_leaf(leaf) or (isinstance(leaf, type) and not _is_leaf_type(leaf))
    ]
    if wrong:
        raise TypeError(
            "Unsupported abstract leaf type for loading: " + "; ".join(wrong) + ". A leaf is what "
            "has shape and dtype, a number, text, bytes, one of these types, or `...`"
        )


def _is_leaf_type(kind: type) -> bool:
    if issubclass(kind, (*_SCALARS, str, bytes, np.ndarray, np.generic)):
        return True
    if _is_jax_type(kind):
        return True
    return hasattr(kind, "shape") and hasattr(kind, "dtype") or {"shape", "dtype"} <= set(
        getattr(kind, "__annotations__", {})
    )


def _is_jax_type(kind: type) -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and issubclass(kind, (jax.Array, jax.ShapeDtypeStruct))


def load_tree(
    index: Any, abstract: Any, metadata: Mapping[str, Any] | None, context: Context
) -> Any:
    """Loads a tree item.

    Args:
      index: The item's index.
      abstract: The abstract tree; None: as saved (a saved None gives None either way).
      metadata: The item's metadata, as `_items.tree_metadata` wrote it.
      context: `pytree.loading.partial_load`, `array.loading.enable_padding_and_truncation`,
        `pytree.saving.pytree_metadata_options`.

    Raises:
      TreeMismatch: All differences between abstract tree and checkpoint, by key path, before any
        leaf is read.
    """
    types = LeafTypes(metadata, len(index.leaves))
    if abstract is None:
        return _as_saved(index, types, rich(context, metadata))
    stored = flatten_stored(index.structure)
    target = flatten_target(abstract, stop=is_abstract_leaf)
    partial = context.pytree.loading.partial_load
    found = _compare.differences(
        target,
        stored,
        lambda number: _leaf_requests.stored_as(index.leaves[number]),
        standard=False,
        partial=partial,
    )
    requests: dict[Path, Request] = {}
    for path, wanted in target.leaves.items():
        number = stored.leaves.get(path)
        if wanted is ... or number is None:
            continue
        try:
            requests[path] = _request(
                index.leaves[number],
                number,
                wanted,
                strict=not context.array.loading.enable_padding_and_truncation,
                sharding=types.sharding(number),
            )
        except Unfit as error:
            found.append(Mismatch(shown(path), str(error)))
    _compare.raise_mismatches(found, hint=_hint(partial), context={})
    wants = [request.want for request in requests.values()]
    values = read(index, wants)
    loaded = {path: one.finish(value) for (path, one), value in zip(requests.items(), values)}
    return _rebuilt(target, stored, loaded)


def _hint(partial: bool) -> str:
    if partial:
        return "take the named keys out of the abstract tree, or put `...` where none is wanted"
    return (
        "to load a part, set `ctx.pytree.loading.partial_load = True`, or put `...` for a leaf "
        "that is not wanted; `ctx.array.loading.enable_padding_and_truncation = True` fits shapes"
    )


def rich(context: Context, metadata: Mapping[str, Any] | None) -> bool:
    """Returns whether the saved containers are wanted where no abstract tree is given."""
    options = context.pytree.saving.pytree_metadata_options
    return bool(getattr(options, "support_rich_types", False)) or bool(
        (metadata or {}).get("rich_types")
    )


def _as_saved(index: Any, types: LeafTypes, exact: bool) -> Any:
    wants = [_want_as_saved(leaf, number, types) for number, leaf in enumerate(index.leaves)]
    values = read(index, wants)
    return _structure.unflatten(index.structure, values, exact=exact)


def _want_as_saved(leaf: Any, number: int, types: LeafTypes) -> Want:
    if leaf.kind in ("array", "prng_key") and types.is_jax(number):
        return Want(number, like="jax", sharding=types.sharding(number))
    if leaf.kind == "array" and types.is_scalar(number):
        return Want(number, like=np.generic)
    return Want(number)


def _request(leaf: Any, number: int, wanted: Any, *, strict: bool, sharding: Any) -> Request:
    if isinstance(wanted, type):
        return _of_type(leaf, number, wanted, sharding)
    if leaf.kind in ("str", "bytes", "prng_key") or not _is_array_like(wanted):
        return _leaf_requests.of_target(
            leaf, number, wanted, was_jax=False, strict=strict, fallback_sharding=sharding
        )
    if _leaf_requests.is_prng_key(wanted):
        return _leaf_requests.of_target(leaf, number, wanted, was_jax=True, strict=strict)
    shape, dtype = wanted.shape, wanted.dtype
    fit = None
    if shape is not None:
        fit = _leaf_requests._same_shape(leaf, tuple(shape), strict)
    dtype = None if dtype is None else np.dtype(dtype)
    if not hasattr(wanted, "sharding") or isinstance(wanted, np.ndarray):
        return Request(Want(number, like=np.ndarray, dtype=dtype), fit_shape=fit)
    named = _leaf_requests.as_sharding(wanted.sharding)
    return _leaf_requests._jax(number, dtype, _concrete(named) or sharding, fit)


def _is_array_like(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic)


def _of_type(leaf: Any, number: int, kind: type, sharding: Any) -> Request:
    """The request of a type: np.ndarray, jax.Array, int, float, str, …."""
    if issubclass(kind, (str, bytes)):
        return _leaf_requests._text(leaf, number, kind)
    if leaf.kind in ("str", "bytes"):
        raise Unfit(f"the checkpoint has {_leaf_requests.stored_as(leaf)}, not {kind.__name__}")
    if leaf.kind == "prng_key":
        return Request(Want(number, like="jax", sharding=sharding))
    if issubclass(kind, _SCALARS) and not issubclass(kind, np.generic):
        return _leaf_requests._scalar(leaf, number, kind)
    if issubclass(kind, np.generic):
        fit = _leaf_requests._scalar(leaf, number, kind)
        return Request(fit.want, python_type=kind)
    if _is_jax_type(kind) or "sharding" in getattr(kind, "__annotations__", {}):
        return _leaf_requests._jax(number, None, sharding, None)
    return Request(Want(number, like=np.ndarray))


def _concrete(sharding: Any) -> Any:
    """A sharding over an abstract mesh, moved to the mesh that is set (`jax.set_mesh`)."""
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(sharding, jax.sharding.NamedSharding):
        return sharding
    if not isinstance(sharding.mesh, jax.sharding.AbstractMesh):
        return sharding
    return jax.sharding.NamedSharding(jax.sharding.get_mesh(), sharding.spec)


def _rebuilt(target: FlatTree, stored: FlatTree, loaded: Mapping[Path, Any]) -> Any:
    values: dict[Path, Any] = {}
    for path, leaf in target.leaves.items():
        if path in loaded:
            values[path] = loaded[path]
        elif leaf is ...:
            values[path] = ...
        else:
            kind = stored.empties[path]
            values[path] = {"dict": {}, "list": [], "tuple": ()}.get(kind)
    return target.rebuild(values)


def describe_tree(
    index: Any, metadata: Mapping[str, Any] | None, context: Context
) -> Any:
    """Returns the tree with what describes each leaf: good as an abstract tree, no leaf is read."""
    types = LeafTypes(metadata, len(index.leaves))
    described = [
        _described(leaf, types.is_jax(number), types.sharding(number))
        for number, leaf in enumerate(index.leaves)
    ]
    return _structure.unflatten(index.structure, described, exact=rich(context, metadata))


def _described(leaf: Any, jax_leaf: bool, sharding: Any) -> Any:
    if leaf.kind in ("int", "float", "bool", "complex"):
        return {"int": int, "float": float, "bool": bool, "complex": complex}[leaf.kind](0)
    if leaf.kind == "str":
        return "string"
    if leaf.kind == "bytes":
        return b"bytes"
    shape = tuple(leaf.shape)
    storage = StorageMetadata(
        chunk_shape=tuple(leaf.chunk_shape),
        write_shape=tuple(leaf.shard_shape or leaf.chunk_shape),
    )
    if jax_leaf or leaf.kind == "prng_key":
        return ArrayMetadata(shape, leaf.dtype, sharding, storage)
    return NumpyMetadata(shape, leaf.dtype, storage)
