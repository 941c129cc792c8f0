"""`delete`: a whole checkpoint, or one item of it.

A checkpoint is first renamed, so that it is gone at once, then its files are removed. An item is
left out of a new copy of the checkpoint, which takes the old one's place in one commit: a deletion
that is interrupted has happened or not, nothing is left to be recovered.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import milepost as mp
from milepost._together import declining
from milepost.orbax.v1 import _items, _resave
from milepost.orbax.v1._context import Context, get_context
from milepost.orbax.v1._operation import AsyncResponse, Response, in_background
from milepost.orbax.v1._saving import together
from milepost.orbax.v1._source import _inside, kind_at
from milepost.orbax.v1.errors import InvalidLayoutError
from milepost.orbax.v1.options import CheckpointLayout
from milepost.orbax.v1.path import PathLike, is_local, locate


def delete(
    path: PathLike, *, checkpointable_name: str | None = None, missing_ok: bool = False
) -> bool:
    """Deletes a checkpoint, or one item of it.

    Args:
      path: A single checkpoint: not a run, not an item.
      checkpointable_name: Only this item; what else is in the checkpoint stays loadable. It is
        written anew without the item, so that this takes as long as a save of the rest.
      missing_ok: Return False where there is nothing to delete, instead of an error.

    Returns:
      Whether something was deleted.

    Raises:
      FileNotFoundError: The checkpoint, or its item, does not exist.
      InvalidLayoutError: Something else than a checkpoint of Milepost is at `path`.
      ValueError: The name is invalid, or the item is the only one.
    """
    return delete_async(
        path, checkpointable_name=checkpointable_name, missing_ok=missing_ok
    ).result()


def delete_async(
    path: PathLike, *, checkpointable_name: str | None = None, missing_ok: bool = False
) -> AsyncResponse[bool]:
    """Deletes a checkpoint or one item; files are removed in the background. See `delete`."""
    check_arguments(checkpointable_name, missing_ok)
    return start(locate(path), checkpointable_name, missing_ok, get_context())


def check_arguments(checkpointable_name: Any, missing_ok: Any) -> None:
    """Checks the arguments of `delete`.

    Raises:
      TypeError: A wrong type.
      ValueError: A name that no item has.
    """
    if not isinstance(missing_ok, bool):
        raise TypeError("missing_ok must be a bool.")
    if checkpointable_name is None:
        return
    if not isinstance(checkpointable_name, str):
        raise TypeError("checkpointable_name must be a string or None.")
    wrong = any(c in checkpointable_name for c in "/\\\0")
    if wrong or checkpointable_name in ("", ".", "..", *_items.RESERVED):
        raise ValueError(f"Invalid checkpointable name: {checkpointable_name!r}.")


def start(
    location: str,
    name: str | None,
    missing_ok: bool,
    context: Context,
    commit: Callable[..., Any] | None = None,
    meeting: mp.Together | None = None,
) -> Response[bool]:
    """Starts a deletion; a whole checkpoint is out of sight when this returns.

    Args:
      location: Of the checkpoint.
      name: Of the item; None: all of it.
      commit: Commits what is left in the checkpoint's place, with the keywords of `milepost.save`.
        None: as a checkpoint that stands alone.
      meeting: The processes that all commit what is left.
    """
    if commit is None:
        commit = functools.partial(
            mp.save, location, overwrite=True, progress=False, together=False
        )
        others = together(location, context) or None
        if others is not None:
            begin = functools.partial(_begin, location, name, missing_ok, context, commit)
            # The first process deletes, and all wait until it has.
            deleted = others.first(lambda: begin().result(), after_all=True)
            return in_background(f"delete {location}", lambda: bool(deleted))
    return _begin(location, name, missing_ok, context, commit, meeting)


def _begin(
    location: str,
    name: str | None,
    missing_ok: bool,
    context: Context,
    commit: Callable[..., Any],
    meeting: mp.Together | None = None,
) -> Response[bool]:
    if not is_local(location):
        raise mp.Unsupported(
            "checkpoints that stand alone are deleted on a local disk only",
            context={"store": location},
            hint="delete the object prefix with your store's own tool",
        )
    what = f"delete {location}"
    kind = kind_at(location)
    if kind == "missing":
        if missing_ok:
            return in_background(what, lambda: False)
        raise mp.NotFound(f"Checkpoint does not exist: {location}.")
    _check_root(location, kind, context)
    if name is None:
        moved = _move(location, context)
        return in_background(what, lambda: _free(moved))
    checkpoint = mp.open(location)
    if name not in checkpoint.items:
        if missing_ok:
            return in_background(what, lambda: False)
        raise mp.ItemNotFound(
            f"Checkpointable {name!r} does not exist at {location}. Available: "
            f"{sorted(checkpoint.items)}"
        )
    if not [one for one in checkpoint.items if one != name and one not in _items.RESERVED]:
        raise ValueError(
            "Cannot delete the final checkpointable; delete the whole checkpoint instead."
        )
    return in_background(what, lambda: _without(checkpoint, name, commit, meeting))


def _check_root(location: str, kind: str, context: Context) -> None:
    if context.checkpoint_layout is CheckpointLayout.SAFETENSORS:
        raise NotImplementedError("Deletion supports checkpoints only, not safetensors files.")
    if not os.path.isdir(location):
        raise NotADirectoryError(f"Checkpoint path is not a directory: {location}.")
    inside = _inside(location)
    if inside is not None:
        raise InvalidLayoutError(
            f"{location} is a checkpointable directory. Delete it from its checkpoint {inside} "
            "with checkpointable_name instead."
        )
    if kind != "checkpoint":
        what = "the root of a run" if kind == "run" else "no checkpoint of Milepost"
        raise InvalidLayoutError(f"Not a checkpoint root: {location} is {what}; not deleted.")


def _move(location: str, context: Context) -> str | None:
    """Takes a checkpoint out of sight; returns what is to be freed."""
    trash = context.deletion.gcs_deletion_options.todelete_full_path
    parent, name = os.path.split(location)
    if trash is None:
        moved = os.path.join(parent, f"{name}.milepost-tmp-{secrets.token_hex(8)}")
        os.rename(location, moved)
        return moved
    directory = os.path.join(parent, trash)
    os.makedirs(directory, exist_ok=True)
    os.rename(location, os.path.join(directory, f"{name}-{secrets.token_hex(8)}"))
    return None


def _free(moved: str | None) -> bool:
    if moved is not None:
        shutil.rmtree(moved)
    return True


def _without(
    checkpoint: Any, name: str, commit: Callable[..., Any], meeting: mp.Together | None
) -> bool:
    """Commits a copy of the checkpoint without an item in its place."""
    with tempfile.TemporaryDirectory(prefix="milepost-delete-") as scratch:
        kept = [one for one in checkpoint.items if one != name]
        items = {}
        with declining(meeting):
            for number, one in enumerate(kept):
                items[one] = _resave.item_of(checkpoint, one, os.path.join(scratch, str(number)))
        metadata = {one: checkpoint.items[one].metadata for one in kept}
        commit(
            items=items,
            item_metadata={one: said for one, said in metadata.items() if said},
            metadata=checkpoint.metadata,
            metrics=checkpoint.metrics,
        )
    return True
