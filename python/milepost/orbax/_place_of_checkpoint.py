"""Where a checkpointer's path leads: a checkpoint, an item in one, or another library's.

Orbax has a directory an item, so its users name ``<step>/default`` as well as the checkpoint
itself; both are understood. What another library left there is read through `milepost._foreign`.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import milepost as mp
from milepost import _foreign
from milepost._errors import AlreadyExists, Invalid, MilepostError, NotFound

from . import _bridge
from ._run_path import is_local, name_of, url_of


class DestinationExists(AlreadyExists, ValueError):
    """Something is at the path of a save, and `force` is False."""


def destination(directory: Any, force: bool) -> str:
    """The url of a save, checked.

    Raises:
        DestinationExists: A ValueError: something is there already and `force` is False.
    """
    url = url_of(directory)
    if not is_local(url) or not os.path.lexists(url):
        return url
    if not force:
        raise exists(url)
    if os.path.isdir(url) and not os.path.islink(url) and not os.listdir(url):
        with contextlib.suppress(FileNotFoundError):  # another process of the job was faster
            os.rmdir(url)
    return url


def exists(url: str) -> DestinationExists:
    """The error of a save to a path that is taken."""
    return DestinationExists(
        f"Destination {url} already exists.",
        hint="pass force=True to replace it: the old checkpoint stays until the new one is whole",
    )


def opened(directory: Any) -> tuple[Any, str | None]:
    """Opens what is at a path.

    Returns:
        The `milepost.Checkpoint` and None; or, where the path is an item's, its checkpoint and the
        item's name; or another library's checkpoint (`_foreign.ForeignCheckpoint`) and None.

    Raises:
        NotFound: A FileNotFoundError: nothing is there.
    """
    url = url_of(directory)
    try:
        return mp.open(url), None
    except MilepostError as error:
        inside = _item_in_checkpoint(url)
        if inside is not None:
            return inside
        if is_local(url) and os.path.exists(url):
            foreign = _foreign.detect(url)
            if foreign is not None:
                return foreign, None
        if isinstance(error, NotFound):
            raise _not_found(url, error) from None
        raise


def _item_in_checkpoint(url: str) -> tuple[Any, str] | None:
    parent, name = url.rstrip("/").rpartition("/")[0], name_of(url)
    if not parent or not name:
        return None
    try:
        checkpoint = mp.open(parent)
    except (MilepostError, OSError, ValueError):
        return None
    direct = url_of(str(checkpoint.url)) == url_of(parent)
    return (checkpoint, name) if direct and name in checkpoint.items else None


def _not_found(url: str, error: MilepostError) -> NotFound:
    """Says what is at the path, or what is near it."""
    if not is_local(url):
        return NotFound(f"Checkpoint at {url} not found.", hint=error.hint)
    if os.path.isdir(url):
        found = sorted(os.listdir(url))[:8]
        what = f"it has {', '.join(found)}" if found else "it is empty"
        return NotFound(f"Checkpoint at {url} not found: the directory is there, but {what}.")
    parent = os.path.dirname(url)
    near = []
    if os.path.isdir(parent):
        near = [name for name in sorted(os.listdir(parent)) if not name.startswith(".")][-8:]
    hint = f"{parent} has {', '.join(near)}" if near else f"{parent} has nothing"
    if not os.path.isdir(parent):
        hint = f"{parent} does not exist either"
    return NotFound(f"Checkpoint at {url} not found.", hint=hint)


def is_foreign(checkpoint: Any) -> bool:
    """Whether `opened` gave another library's checkpoint."""
    return isinstance(checkpoint, _foreign.ForeignCheckpoint)


def only_item(checkpoint: Any) -> str:
    """The item of a checkpointer with one handler: ``default``, else the only one.

    Raises:
        Invalid: There are several, none of them named so.
    """
    names = sorted(checkpoint.items)
    if _bridge.DEFAULT_ITEM in names:
        return _bridge.DEFAULT_ITEM
    if len(names) == 1:
        return names[0]
    raise Invalid(
        f"{checkpoint.url} has the items {', '.join(names)}, none of them is "
        f"'{_bridge.DEFAULT_ITEM}'",
        hint="restore with Checkpointer(CompositeCheckpointHandler()), or give <path>/<item>",
    )
