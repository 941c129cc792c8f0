"""Saving a tree in several calls.

```text
  save(path, {"layer1": …})   ──▶ <path>.partial_save/part-000000      a checkpoint of its own
  save(path, {"layer2": …})   ──▶ <path>.partial_save/part-000001
  finalize(path)              ──▶ <path>                               one checkpoint of all of them
```

Each call is committed by itself: one that fails leaves those before it as they were. `finalize`
reads the parts back and commits the whole; the parts are removed after that.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import milepost as mp
from milepost._structure import Branch, key_text
from milepost.orbax import _leaf_types
from milepost.orbax._leaf_types import LeafTypes
from milepost.orbax.multihost import refuse_several_processes
from milepost.orbax.v1 import _items, _resave, _saving
from milepost.orbax.v1._context import get_context
from milepost.orbax.v1._flat_tree import flat
from milepost.orbax.v1._operation import AsyncResponse, in_background
from milepost.orbax.v1.errors import PartialSaveError, PartialSaveReplacementError
from milepost.orbax.v1.path import PathLike, is_local, locate

SUFFIX = ".partial_save"
_PART = re.compile(r"part-(\d{6,})$")
# One call at a time: the next one checks its keys against the parts before it.
_LOCK = threading.Lock()


def save(
    path: PathLike, state: Any, *, custom_metadata: Mapping[str, Any] | None = None
) -> None:
    """Adds leaves to the checkpoint that `finalize(path)` will make.

    Args:
      path: Where the finished checkpoint will be. Nothing is there until `finalize`.
      state: A tree of leaves that no earlier call has saved. Dicts are merged by key; a leaf or a
        list can be saved by one call only.
      custom_metadata: Merged with that of earlier calls; later values win.

    Raises:
      FileExistsError: `path` exists.
      PartialSaveReplacementError: (ValueError) a leaf was saved by an earlier call.
    """
    save_async(path, state, custom_metadata=custom_metadata).result()


def save_async(
    path: PathLike, state: Any, *, custom_metadata: Mapping[str, Any] | None = None
) -> AsyncResponse[None]:
    """Adds leaves in the background; returns once they are captured. See `save`.

    Calls for one path are done in their order.
    """
    location = _destination(path)
    _saving.check_context(get_context(), saving=True)
    metadata = _saving.check_metadata(custom_metadata)
    prepared = _items.hold(_items.tree_item(state, get_context()))
    keywords = _saving.save_keywords(get_context())
    with _LOCK:
        before = _LAST.get(location)
        number = 0 if before is None else before[0] + 1

        def work() -> None:
            if before is not None:
                before[1].exception()
            _save_part(location, prepared, metadata, keywords)

        response = in_background(f"partial save to {location}", work)
        _LAST[location] = (number, response)
    return response


# The last call for each path, which the next one waits for.
_LAST: dict[str, tuple[int, Any]] = {}


def _destination(path: PathLike) -> str:
    location = locate(path)
    if location.endswith(SUFFIX):
        location = location[: -len(SUFFIX)]
    if not is_local(location):
        raise PartialSaveError(
            f"partial saves are made on a local disk, not at {location}: save the tree in one call"
        )
    refuse_several_processes(get_context().multiprocessing.primary_host)
    if os.path.lexists(location):
        raise FileExistsError(f"Finalized checkpoint already exists at {location}.")
    return location


def _parts(location: str) -> list[str]:
    """The parts that were committed, in order."""
    try:
        names = os.listdir(location + SUFFIX)
    except FileNotFoundError:
        return []
    found = sorted((int(match[1]), name) for name in names if (match := _PART.match(name)))
    return [os.path.join(location + SUFFIX, name) for _, name in found]


def _save_part(
    location: str, prepared: _items.Prepared, metadata: Any, keywords: dict[str, Any]
) -> None:
    parts = _parts(location)
    os.makedirs(location + SUFFIX, exist_ok=True)
    number = int(_PART.search(parts[-1])[1]) + 1 if parts else 0  # type: ignore[index]
    _merged([*(_structure_of(part) for part in parts), prepared.item.structure])
    mp.save(
        os.path.join(location + SUFFIX, f"part-{number:06d}"),
        items={_items.STATE: prepared.item},
        item_metadata={_items.STATE: prepared.metadata},
        metadata=metadata,
        progress=False,
        together=False,
        **keywords,
    )


def _structure_of(part: str) -> Any:
    return mp.open(part).index(_items.STATE).structure


def finalize(path: PathLike) -> None:
    """Makes one checkpoint of what the calls of `save` for this path have saved.

    Raises:
      FileExistsError: `path` exists.
      FileNotFoundError: Nothing was saved for this path.
    """
    location = _destination(path)
    with _LOCK:
        pending = _LAST.pop(location, None)
    if pending is not None:
        pending[1].exception()
    parts = _parts(location)
    if not parts:
        raise FileNotFoundError(f"Partial save path {location + SUFFIX} does not exist.")
    opened = [mp.open(part) for part in parts]
    loaded = [_resave.values_and_structure(checkpoint, _items.STATE) for checkpoint in opened]
    numbered, leaves, described = [], [], []
    for checkpoint, (structure, values) in zip(opened, loaded):
        numbered.append(_shifted(structure, len(leaves)))
        leaves.extend(values)
        described.append((len(values), checkpoint.items[_items.STATE].metadata or {}))
    structure = _merged(numbered)
    order = list(_positions(structure))
    ordered = _renumbered(structure, {old: new for new, old in enumerate(order)})
    metadata: dict[str, Any] = {}
    for checkpoint in opened:
        metadata.update(checkpoint.metadata or {})
    handler = opened[0].items[_items.STATE].handler
    mp.save(
        location,
        items={_items.STATE: flat(ordered, [leaves[n] for n in order], None, handler)},
        item_metadata={_items.STATE: _described(described, order)},
        metadata=metadata,
        progress=False,
        together=False,
        **_saving.save_keywords(get_context()),
    )
    shutil.rmtree(location + SUFFIX)


def _described(parts: list[tuple[int, Mapping[str, Any]]], order: list[int]) -> dict[str, Any]:
    """The item's metadata of the whole, from that of its parts; see `_leaf_types`."""
    found: dict[str, Any] = {}
    for member, question in (("jax_leaves", "is_jax"), ("scalar_leaves", "is_scalar")):
        flags = [
            getattr(LeafTypes(metadata, count), question)(number)
            for count, metadata in parts
            for number in range(count)
        ]
        if any(flags):
            found[member] = _leaf_types._bitmap([flags[number] for number in order])
    numbers: list[int] = []
    kinds: list[Any] = []
    for count, metadata in parts:
        given = metadata.get("shardings") or {"kinds": [], "leaves": ""}
        places = [0]
        for kind in given["kinds"]:
            if kind not in kinds:
                kinds.append(kind)
            places.append(kinds.index(kind) + 1)
        stored = np.frombuffer(base64.b64decode(given["leaves"]), "<u2")
        numbers.extend(places[number] for number in stored)
        numbers.extend([0] * (count - len(stored)))
    if kinds:
        packed = np.array([numbers[number] for number in order], "<u2").tobytes()
        leaves = base64.b64encode(packed).decode("ascii")
        found["shardings"] = {"kinds": kinds, "leaves": leaves}
    if any(metadata.get("rich_types") for _, metadata in parts):
        found["rich_types"] = True
    return found


def _shifted(node: Any, by: int) -> Any:
    return _renumbered(node, None, by)


def _renumbered(node: Any, numbers: Mapping[int, int] | None, by: int = 0) -> Any:
    if isinstance(node, Branch):
        children = tuple(_renumbered(child, numbers, by) for child in node.children)
        return node._replace(children=children)
    if node is None:
        return None
    return node + by if numbers is None else numbers[node]


def _positions(node: Any) -> Iterator[int]:
    if isinstance(node, Branch):
        for child in node.children:
            yield from _positions(child)
    elif node is not None:
        yield node


def _merged(nodes: list[Any]) -> Any:
    """One structure of several; dicts are merged by key.

    Raises:
      PartialSaveReplacementError: Two of them have something at the same key path.
    """
    twice: list[str] = []
    result = nodes[0]
    for node in nodes[1:]:
        result = _merge(result, node, (), twice)
    if twice:
        raise PartialSaveReplacementError(
            f"an earlier partial save has saved these already: {', '.join(twice)}. Replacing is "
            "not supported: save each leaf once",
            tuple(twice),
        )
    return result


def _merge(low: Any, high: Any, path: tuple[str, ...], twice: list[str]) -> Any:
    mergeable = all(isinstance(one, Branch) and one.kind == "dict" for one in (low, high))
    if not mergeable:
        twice.append("/".join(path) or "(root)")
        return low
    merged = dict(zip(low.keys, low.children))
    for key, child in zip(high.keys, high.children):
        if key in merged:
            merged[key] = _merge(merged[key], child, (*path, key_text(key)), twice)
        else:
            merged[key] = child
    return low._replace(keys=tuple(merged), children=tuple(merged.values()))


__all__ = ["finalize", "save", "save_async"]
