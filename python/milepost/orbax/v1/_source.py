"""What is at a path, found out before anything is read.

```text
  path ──▶ open_source ──▶ MilepostSource      a checkpoint of ours
                       ──▶ ForeignSource       Orbax's (or Flax's), read by its own library
                       ──▶ SafetensorsSource   files of tensors, where the context says so
```

A source knows its items and loads one of them; `_loading` and `_metadata` are written against it.
"""

from __future__ import annotations

import json
import os
from typing import Any, Protocol

import milepost as mp
from milepost.orbax.v1 import _budget
from milepost.orbax.v1._context import Context
from milepost.orbax.v1._items import AUTO, RESERVED, STATE, check_name
from milepost.orbax.v1.errors import InvalidLayoutError, MissingCheckpointError
from milepost.orbax.v1.options import CheckpointLayout
from milepost.orbax.v1.path import PathLike, is_local, locate

_DOCUMENT_BYTES_MAX = 16 << 20
_PARTIAL = ".partial_save"


class Source(Protocol):
    """A checkpoint that can be loaded.

    `has_names` is False of what is one tree whatever it is called.
    """

    location: str
    has_names: bool
    custom_metadata: dict[str, Any] | None
    init_timestamp_nsecs: int | None
    commit_timestamp_nsecs: int | None

    def names(self) -> list[str]:
        """Returns the names of all items, `metrics` left out; empty where it has no named ones."""
        ...

    def is_tree(self, name: str) -> bool:
        """Returns whether an item is a pytree."""
        ...

    def load(self, name: str, abstract: Any, context: Context) -> Any:
        """Loads an item; see `_loading.load_checkpointables`."""
        ...

    def describe(self, name: str, context: Context) -> Any:
        """Returns what describes an item; None where its handler cannot tell."""
        ...


def open_source(path: PathLike, context: Context) -> Source:
    """Opens what is at a path, as the context's layout says.

    Raises:
      MissingCheckpointError: (InvalidLayoutError, FileNotFoundError) nothing is there.
      InvalidLayoutError: Something else is there; the message says what.
    """
    location = locate(path)
    layout = context.checkpoint_layout
    if layout is CheckpointLayout.SAFETENSORS:
        from milepost.orbax.v1._safetensors import SafetensorsSource

        return SafetensorsSource(location)
    kind = kind_at(location)
    if kind == "checkpoint":
        from milepost.orbax.v1._milepost_source import MilepostSource

        return MilepostSource(location, _budget.for_load(context))
    if kind == "none" and is_local(location):
        source = _foreign_source(location, layout)
        if source is not None:
            return source
    raise _not_a_checkpoint(location, layout, kind)


def kind_at(location: str) -> str:
    """Returns what Milepost knows at a place: "checkpoint", "run", "none" or "missing"."""
    if not is_local(location):
        return _kind_at_url(location)
    if not os.path.lexists(location):
        return "missing"
    try:
        with open(os.path.join(location, "zarr.json"), "rb") as file:
            text = file.read(_DOCUMENT_BYTES_MAX)
        return _kind_of(json.loads(text))
    except (OSError, ValueError):
        return "none"


def _kind_of(document: Any) -> str:
    try:
        kind = document["attributes"]["milepost"]["kind"]
    except (KeyError, TypeError):
        return "none"
    return kind if kind in ("checkpoint", "run") else "none"


def _kind_at_url(location: str) -> str:
    try:
        checkpoint = mp.open(location)
    except mp.NotFound:
        return "missing"
    # A run's URL opens its newest step: then the URL of the step is another.
    return "checkpoint" if str(checkpoint.url).rstrip("/") == location else "run"


def _foreign_source(location: str, layout: CheckpointLayout) -> Source | None:
    from milepost import _foreign

    found = _foreign.detect(location)
    if found is None:
        return None
    if found.kind == "safetensors":
        if layout is not CheckpointLayout.AUTO:
            return None
        from milepost.orbax.v1._safetensors import SafetensorsSource

        return SafetensorsSource(location)
    from milepost.orbax.v1._foreign_source import ForeignSource

    return ForeignSource(location, found)


def _not_a_checkpoint(location: str, layout: CheckpointLayout, kind: str) -> InvalidLayoutError:
    start = f"Could not recognize the checkpoint at {location} as a valid Orbax checkpoint"
    if kind == "missing":
        partial = location + _PARTIAL
        more = ": nothing is there."
        if is_local(location) and os.path.isdir(partial):
            more += f" A partial save is at {partial}: call partial.finalize({location!r})."
        return MissingCheckpointError(start + more)
    if kind == "run":
        listed = _steps(location)
        return InvalidLayoutError(
            f"{start}: it is the root of a run{listed}. Name one of its steps, or use "
            "training.Checkpointer."
        )
    if is_local(location) and os.path.isdir(location):
        from milepost import _foreign

        steps = [str(step.step) for step in _foreign.steps(location)]
        if steps:
            return InvalidLayoutError(
                f"{start}: it is a run of another library with the steps {', '.join(steps[-8:])}. "
                "Name one of its steps, or use training.Checkpointer."
            )
    inside = _inside(location)
    if inside is not None:
        return InvalidLayoutError(
            f"{start}: it is an item of a checkpoint. Load {inside} with "
            f"checkpointable_name={os.path.basename(location)!r} instead."
        )
    has = _suffixes(location)
    hint = " Set `ctx.checkpoint_layout = 'safetensors'` to load its tensors." if has else ""
    return InvalidLayoutError(
        f"{start}: it holds neither a record of Milepost nor what Orbax writes.{hint} "
        f"(layout: {layout.value})"
    )


def _steps(location: str) -> str:
    if not is_local(location):
        return ""
    inside = os.listdir(location)
    names = [name for name in inside if kind_at(os.path.join(location, name)) == "checkpoint"]
    names.sort(key=lambda name: (len(name), name))
    return f" with the steps {', '.join(names[-8:])}" if names else ""


def _inside(location: str) -> str | None:
    parent = os.path.dirname(location)
    return parent if is_local(location) and kind_at(parent) == "checkpoint" else None


def _suffixes(location: str) -> bool:
    if os.path.isfile(location):
        return location.endswith(".safetensors")
    try:
        return any(name.endswith(".safetensors") for name in os.listdir(location))
    except OSError:
        return False


def is_orbax_checkpoint(path: PathLike) -> bool:
    """Returns whether a committed checkpoint of Milepost or of Orbax is at a path.

    False of a run's root, of an item in a checkpoint, of unfinished saves, and where nothing is.
    """
    location = locate(path)
    kind = kind_at(location)
    if kind != "none" or not is_local(location) or _inside(location) is not None:
        return kind == "checkpoint"
    from milepost import _foreign

    if os.path.exists(os.path.join(os.path.dirname(location), "_CHECKPOINT_METADATA")):
        return False  # an item of Orbax's checkpoint
    found = _foreign.detect(location)
    return found is not None and found.kind == "orbax"


def ordered(names: list[str]) -> list[str]:
    """Returns names in the order in which AUTO tries them: `state` first, then by name."""
    return sorted((n for n in names if n not in RESERVED), key=lambda n: (n != STATE, n))


def tree_name(source: Source, name: str | None) -> str:
    """Returns the item that `checkpointable_name` means.

    Args:
      name: An item's name. AUTO: `state`, else the first tree by name. None: the checkpoint is one
        tree without a name (a v0 checkpoint), or has only one.

    Raises:
      InvalidLayoutError: There is no such tree; the message lists those there are.
      ValueError: The name is empty or reserved.
    """
    trees = [one for one in ordered(source.names()) if source.is_tree(one)]
    listed = f"valid pytree checkpointable names: {trees}" if trees else "no pytree is in it"
    if name == AUTO:
        if trees:
            return trees[0]
        raise InvalidLayoutError(
            f"Failed to load checkpoint using AUTO resolution mode on path={source.location!r}. "
            "No valid PyTree checkpointable found; use load_checkpointables for other items: "
            f"{source.names()}"
        )
    if name is None:
        if len(trees) == 1:
            return trees[0]
        raise InvalidLayoutError(
            f"checkpointable_name=None means a checkpoint of one tree, but {source.location} is "
            f"not one; {listed}"
        )
    check_name(name)
    if not source.has_names:
        return trees[0]
    if name not in trees:
        raise InvalidLayoutError(
            f"Failed to interpret item {name!r} of {source.location} as a PyTree: it does not "
            f"exist or is of another kind; {listed}"
        )
    return name
