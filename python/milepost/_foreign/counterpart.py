"""Our item for each of another library's: value, handler, metadata.

So what was brought over is restored by `milepost.orbax` exactly as what it saved itself: which
leaves were JAX arrays, metrics that are no plain numbers, and the caller's metadata are where it
looks for them.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from typing import Any

import numpy as np

from .. import Array, Files, Json, Tree
from .._structure import flatten, key_paths, rebuild
from . import orbax
from .found import ForeignCheckpoint
from .item import ForeignItem
from .match import texts
from .place import Place
from .restore import restore

#: The item that a checkpoint without named items becomes: of our drop-in for Orbax, of the others.
_NAMES = {"orbax": "default"}
_NAME = "state"


@dataclasses.dataclass
class Counterpart:
    """What `CheckpointManager.save` takes for one foreign checkpoint."""

    items: dict[str, Any] = dataclasses.field(default_factory=dict)
    item_metadata: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] | None = None


def name_of(checkpoint: ForeignCheckpoint, item: ForeignItem) -> str:
    """The name of our item."""
    return item.name or _NAMES.get(checkpoint.kind, _NAME)


def counterpart(checkpoint: ForeignCheckpoint) -> Counterpart:
    """Reads a whole checkpoint; its arrays are in memory until it is saved."""
    made = Counterpart(metadata=dict(checkpoint.metadata))
    custom = checkpoint.item_metadata
    for item in checkpoint.items.values():
        if item.kind == "metrics":
            continue
        name = name_of(checkpoint, item)
        ours, said = _flax(item) if checkpoint.kind == "flax" else _item(checkpoint, item)
        if item.handler is not None:
            ours = dataclasses.replace(ours, handler=item.handler)
        if item.name in custom:
            said = {**said, **_said(checkpoint, custom[item.name])}
        made.items[name] = ours
        if said:
            made.item_metadata[name] = said
    if checkpoint.metrics is not None:
        _add_metrics(made, checkpoint.metrics)
    return made


def _said(checkpoint: ForeignCheckpoint, custom: dict[str, Any]) -> dict[str, Any]:
    return {"custom_metadata": custom} if checkpoint.kind == "orbax" else custom


def _item(checkpoint: ForeignCheckpoint, item: ForeignItem) -> tuple[Any, dict[str, Any]]:
    if item.kind == "files":
        return Files(item.path), {}
    value = restore(checkpoint, item=item.name)
    if item.kind == "json":
        return Json(value), {}
    said = _leaf_types(item, value) if checkpoint.kind == "orbax" else {}
    return (Array(value) if item.kind == "array" else Tree(value)), said


def _flax(item: ForeignItem) -> tuple[Any, dict[str, Any]]:
    """A state dict as `milepost.flax` holds it, where flax is there to ask; else the tree."""
    from .._msgpack import load

    state = load(item.path)
    try:
        from ..flax import _content
    except ImportError:
        return Tree(state), {}
    items, said = _content.items_of(state)
    return items[_content.ITEM], said.get(_content.ITEM, {})


def _leaf_types(item: ForeignItem, value: Any) -> dict[str, Any]:
    """Which leaves were JAX arrays, as `milepost.orbax` records it."""
    import jax

    from ..orbax._leaf_types import recorded

    below = {"array": "", "random_key": "jax_random_key"}
    place = Place(item.path)
    if item.kind == "random_key":
        place = place.child(below["random_key"])
    document = (orbax.tree_document(place) or {}).get("tree_metadata", {})
    types = {
        tuple(str(key["key"]) for key in entry["key_metadata"]): entry["value_metadata"].get(
            "value_type"
        )
        for entry in document.values()
    }
    if item.kind in below:
        types = {(): kind for kind in types.values()}
    one = jax.numpy.zeros(())
    node, leaves = flatten(value)
    told = [
        one if types.get(texts(keys)) == "jax.Array" else leaf
        for keys, leaf in zip(key_paths(node), leaves, strict=True)
    ]
    said = recorded(rebuild(value, told))
    shardings = _shardings(place, [texts(keys) for keys in key_paths(node)])
    return {**said, "shardings": shardings} if shardings else said


def _shardings(place: Place, paths: list[tuple[str, ...]]) -> dict[str, Any] | None:
    """How arrays were spread over devices: Orbax's `_sharding` as `milepost.orbax` records it."""
    from ..orbax._leaf_types import KINDS_MAX

    named = orbax.shardings(place)
    kinds: list[dict[str, Any]] = []
    numbers = np.zeros(len(paths), "<u2")
    for at, keys in enumerate(paths):
        given = named.get(".".join(keys), {})
        if given.get("sharding_type") != "NamedSharding" or math.prod(given["shape"]) < 2:
            continue
        axes, spec = given["axis_names"], given["partition_spec"]
        kind = {"mesh": given["shape"], "axes": axes, "spec": spec}
        types = [str(one).rpartition(".")[2] for one in given.get("axis_types") or ()]
        if not set(types) <= {"Auto"}:
            kind["types"] = types
        if kind not in kinds and len(kinds) < KINDS_MAX:
            kinds.append(kind)
        numbers[at] = kinds.index(kind) + 1 if kind in kinds else 0
    if not kinds:
        return None
    return {"kinds": kinds, "leaves": base64.b64encode(numbers.tobytes()).decode("ascii")}


def _add_metrics(made: Counterpart, metrics: Any) -> None:
    from ..orbax import _metrics

    numbers, rest = _metrics.recorded(_metrics.plain(metrics))
    made.metrics = numbers or None
    if rest is not None or not numbers:
        made.metadata[_metrics.MEMBER] = {"metrics": rest if rest is not None else {}}
