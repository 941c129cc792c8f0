"""Orbax's layouts, told by their files: steps, trees that stand alone, v1, what is unfinished.

```text
  step/_CHECKPOINT_METADATA            newer ones only; a save in flight has no commit time in it
  step/commit_success.txt              where there is no rename, the commit; else decoration
  step/<item>/…                        an item; if the checkpoint is one itself, at its root
      _METADATA · manifest.ocdbt · checkpoint (msgpack, the oldest)      a tree
      checkpoint/.zarray|zarr.json  and the array handler's name         an array
      metadata | metrics            a file of JSON
      jax_random_key | np_random_key                                     a key
```
"""

from __future__ import annotations

import base64
import json
from typing import Any

from . import flax
from .item import ForeignItem, ItemKind
from .mistake import corrupt
from .place import Place

TMP = ".orbax-checkpoint-tmp"
_HEAD_BYTES = 4096
_OCDBT_MAGIC = bytes.fromhex("0cdb3a2a")
_COMMIT = "commit_success.txt"
#: Trees of 100,000 leaves have about 40 MB of `_METADATA`; what is over this is no document.
_DOCUMENT_BYTES_MAX = 1 << 30
#: Files that belong to a checkpoint and not to an item.
_STEP_FILES = frozenset({"_CHECKPOINT_METADATA", _COMMIT, "orbax.checkpoint"})


def items(place: Place) -> dict[str, ForeignItem]:
    """The items of the checkpoint at `place`; the one item `""` where it is itself one.

    Empty where it is no checkpoint.
    """
    entries = place.entries()
    if not entries or TMP in place.name:
        return {}
    document = checkpoint_document(place)
    if _is_unfinished(place, document):
        return {}
    handlers = document.get("item_handlers") if document else None
    own = _kind(place, handlers if isinstance(handlers, str) else None)
    has_evidence = document is not None or entries.get("orbax.checkpoint") is False
    if own is not None and not (own == "json" and not has_evidence):
        handler = handlers if isinstance(handlers, str) else None
        return {"": ForeignItem("", own, place.path, handler)}
    return _inner(place, handlers if isinstance(handlers, dict) else {}, has_evidence)


def _inner(place: Place, handlers: dict[str, Any], has_evidence: bool) -> dict[str, ForeignItem]:
    """The items in directories of their own.

    Without Orbax's own documents, names that are steps are not items: a run of plain trees looks
    the same.
    """
    found: dict[str, ForeignItem] = {}
    proven = has_evidence
    for name, is_directory in sorted(place.entries().items()):
        if not is_directory or TMP in name or name.startswith((".", "_")):
            continue
        if not has_evidence and name[-1:].isdigit():
            continue
        child = place.child(name)
        handler = handlers.get(name)
        handler = handler if isinstance(handler, str) else None
        kind = _kind(child, handler)
        if kind is None and (name in handlers or has_evidence) and child.entries():
            kind = "files"
        if kind is not None:
            found[name] = ForeignItem(name, kind, child.path, handler)
            proven = proven or kind == "tree"
    return found if proven else {}


def _kind(place: Place, handler: str | None) -> ItemKind | None:
    """What the item in `place` is; None where none of Orbax's own handlers wrote it."""
    entries = place.entries()
    if entries.get("_METADATA") is False and _has_tree_document(place):
        if handler is not None and handler.endswith(".ArrayCheckpointHandler"):
            return "array"
        return "tree"
    if entries.get("manifest.ocdbt") is False:
        magic = place.child("manifest.ocdbt").read(0, len(_OCDBT_MAGIC))
        return "tree" if magic == _OCDBT_MAGIC else None
    if entries.get("checkpoint") is False:
        return "tree" if flax.is_msgpack(place.child("checkpoint")) else None
    if entries.get("checkpoint") is True and handler is not None:
        return "array" if handler.endswith(".ArrayCheckpointHandler") else None
    if entries.get("jax_random_key") is True or entries.get("np_random_key") is True:
        return "random_key"
    files = {name for name, is_directory in entries.items() if not is_directory} - _STEP_FILES
    if len(files) == 1 and not any(entries.values()):
        name = next(iter(files))
        if name in ("metadata", "metrics") and json_text(place, name) is not None:
            return "metrics" if name == "metrics" else "json"
    return None


def _has_tree_document(place: Place) -> bool:
    """Whether `_METADATA` is a tree's.

    Its head is enough: one that is cut short must be found, and then complained of.
    """
    child = place.child("_METADATA")
    head = child.read(0, _HEAD_BYTES)
    if b'"tree_metadata"' in head:
        return True
    return head.lstrip()[:1] == b"{" and "tree_metadata" in (tree_document(place) or {})


def _is_unfinished(place: Place, document: dict[str, Any] | None) -> bool:
    """Whether the save has not committed: without a rename, its name is there before its data."""
    if place.entries().get(_COMMIT) is False:
        return False
    if place.is_remote:
        return True
    return document is not None and "init_timestamp_nsecs" in document and not document.get(
        "commit_timestamp_nsecs"
    )


def _document(place: Place, name: str) -> dict[str, Any] | None:
    """A JSON document of Orbax's; None where it is not there or not one."""
    if place.entries().get(name) is not False:
        return None
    try:
        document = json.loads(place.child(name).read(0, _DOCUMENT_BYTES_MAX))
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def checkpoint_document(place: Place) -> dict[str, Any] | None:
    """`_CHECKPOINT_METADATA` of a checkpoint."""
    return _document(place, "_CHECKPOINT_METADATA")


def tree_document(place: Place) -> dict[str, Any] | None:
    """`_METADATA` of a tree item."""
    return _document(place, "_METADATA")


def custom_metadata(place: Place) -> dict[str, Any]:
    """What the caller gave as metadata of the checkpoint."""
    custom = (checkpoint_document(place) or {}).get("custom_metadata")
    return custom if isinstance(custom, dict) else {}


def tree_custom_metadata(place: Place) -> dict[str, Any]:
    """What the caller gave as metadata of the item."""
    custom = (tree_document(place) or {}).get("custom_metadata")
    return custom if isinstance(custom, dict) else {}


def run_custom_metadata(run: Place) -> dict[str, Any]:
    """What the caller gave as metadata of the run."""
    custom = (_document(run.child("metadata"), "_ROOT_METADATA") or {}).get("custom_metadata")
    return custom if isinstance(custom, dict) else {}


def shardings(place: Place) -> dict[str, dict[str, Any]]:
    """How arrays of a tree item were spread over devices, by parameter; damaged ones left out."""
    found: dict[str, dict[str, Any]] = {}
    for name, text in (_document(place, "_sharding") or {}).items():
        try:
            value = json.loads(text)
            found[base64.urlsafe_b64decode(name).decode()] = value if type(value) is dict else {}
        except (ValueError, TypeError):
            continue
    return found


def committed_ns(place: Place) -> int | None:
    """When the checkpoint was committed, where it says so."""
    stamp = (checkpoint_document(place) or {}).get("commit_timestamp_nsecs")
    return stamp if isinstance(stamp, int) else None


def json_text(place: Place, name: str) -> str | None:
    """The text of an item's JSON file; None where that is not JSON."""
    try:
        text = place.child(name).read(0, _DOCUMENT_BYTES_MAX).decode()
        json.loads(text)
    except ValueError:
        return None
    return text


def json_value(place: Place, name: str = "metadata") -> Any:
    """The value of a JSON item; `name` is its file.

    Raises:
        Corrupt: the file is not JSON.
    """
    try:
        return json.loads(place.child(name).read(0, _DOCUMENT_BYTES_MAX))
    except ValueError as error:
        raise corrupt(f"not JSON: {error}", path=place.path, file=name) from error
