"""What a checkpoint holds, as a state dict, and how a state dict is held by one.

```text
  state dict of several leaves     tree item `state`, dicts with text keys
  one array or number on its own   array item `state`; bytes: a bytes item
  text or None on its own          tree item {"": value}, with `root` in the item's metadata
  NumPy scalars                    arrays without dimensions; their numbers are in that metadata
```

Checkpoints that others of Milepost's doors wrote are read as well: lists and tuples become dicts
with the keys "0", "1", …, several items a dict of them.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import milepost as mp

from .. import _foreign, _msgpack
from .._errors import Invalid
from .._restore import Want, read
from .._structure import Branch
from . import _state

ITEM = "state"
_SAID = "flax"


def items_of(state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The items that hold a state dict, and their metadata."""
    if isinstance(state, bytes | bytearray):
        return {ITEM: mp.Bytes(bytes(state))}, {}
    said: dict[str, Any] = {}
    if state is None or isinstance(state, str):
        said["root"] = ""
        state = {"": state}
    if scalars := _state.scalars_of(state):
        said["numpy_scalars"] = _ranges(scalars)
    is_single = not isinstance(_state.flatten(state)[0], Branch)
    item = mp.Array(state) if is_single else mp.Tree(state)
    return {ITEM: item}, {ITEM: {_SAID: said}} if said else {}


def _ranges(numbers: list[int]) -> list[list[int]]:
    """Ascending numbers as first and last of each run: a state of scalars only stays within the
    record's limit.
    """
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges


def _is_in(ranges: Any, number: int) -> bool:
    return any(first <= number <= last for first, last in ranges)


def read_ours(path: str, target: Any) -> Any:
    """The state dict of a checkpoint of ours, as far as the target takes it; all of it where that
    is None.
    """
    checkpoint = mp.open(path)
    items = checkpoint.items
    placements = _state.placements(target)
    if ITEM in items or len(items) == 1:
        name = ITEM if ITEM in items else next(iter(items))
        return _item(checkpoint, name, target, placements)
    return place({name: _item(checkpoint, name, None, {}) for name in sorted(items)}, target)


def _item(checkpoint: Any, name: str, target: Any, placements: dict[_state.Path, Any]) -> Any:
    info = checkpoint.items[name]
    said = info.metadata.get(_SAID, {}) if isinstance(info.metadata, dict) else {}
    if info.kind == "json":
        return checkpoint.json(name)
    if info.kind == "bytes":
        return checkpoint.bytes(name)
    if info.kind == "opaque":
        return dict(checkpoint.files(name))
    scalars = said.get("numpy_scalars", [])
    if "root" in said:
        return _tree(checkpoint.index(name), None, {}, scalars)[said["root"]]
    return _tree(checkpoint.index(name), target, placements, scalars)


def _tree(index: Any, target: Any, placements: dict[_state.Path, Any], scalars: Any) -> Any:
    """The leaves that are wanted, read as one plan, in their containers."""
    taken = None if target is None else _state.wanted(target, index.structure)
    paths = [tuple(_state.key_text(key) for key in leaf.keys) for leaf in index.leaves]
    wants = [
        _want(number, index.leaves[number], path, placements)
        for number, path in enumerate(paths)
        if taken is None or number in taken
    ]
    absent = object()
    values = [absent] * len(paths)
    for want, value in zip(wants, read(index, wants, progress=False), strict=True):
        is_scalar = isinstance(value, np.ndarray) and _is_in(scalars, want.position)
        values[want.position] = value[()] if is_scalar else value
    return _state.of_node(index.structure, values, missing=absent)


def _want(number: int, leaf: Any, path: _state.Path, placements: dict[_state.Path, Any]) -> Want:
    """A leaf as it was stored, or where the target has a JAX array there as one."""
    if path not in placements or leaf.kind not in ("array", "prng_key"):
        return Want(number)
    sharding = placements[path]
    if leaf.kind == "array" and not _state.is_for_jax(leaf.dtype, sharding):
        return Want(number)
    _check_divides(sharding, leaf.shape, path)
    return Want(number, like="jax", sharding=sharding)


def _check_divides(sharding: Any, shape: tuple[int, ...], path: _state.Path) -> None:
    """Passes where the stored shape, which wins over the target's, can be laid out as the target
    is.

    Raises:
        Invalid: the sharding does not divide it.
    """
    try:
        if sharding is not None:
            sharding.shard_shape(tuple(shape))
    except ValueError as error:
        raise Invalid(
            f"the stored shape {tuple(shape)} cannot be sharded as the target is",
            context={"leaf": "/".join(path)},
            hint="give that leaf of the target another sharding, or a NumPy array to get it whole",
        ) from error


def read_foreign(path: str, target: Any) -> Any:
    """The state dict of a checkpoint of Orbax, or of safetensors.

    Raises:
        ForeignFormat: it needs a library that is not installed, or is none of these.
    """
    state = _state.to_state_dict(_foreign.restore(path, strict=True))
    return place(state, target)


def read_legacy(path: str, parallel: bool) -> Any:
    """The state dict of a msgpack file, with texts for arrays of several processes."""
    return _msgpack.load(path, parallel=parallel, placeholders="keep")


def _placed(state: Any, placements: dict[_state.Path, Any], path: _state.Path) -> Any:
    """Puts arrays onto the devices that the target names."""
    if isinstance(state, dict):
        return {key: _placed(value, placements, (*path, key)) for key, value in state.items()}
    if path not in placements or not isinstance(state, np.ndarray | np.generic):
        return state
    sharding = placements[path]
    if not _state.is_for_jax(state.dtype, sharding):
        return state
    _check_divides(sharding, state.shape, path)
    return sys.modules["jax"].device_put(state, sharding)


def place(state: Any, target: Any) -> Any:
    """Puts the arrays of a state dict onto the devices that the target names."""
    placements = _state.placements(target)
    return _placed(state, placements, ()) if placements else state
