"""One name in a directory of checkpoints: what is there, how it goes away, how it is replaced.

Only what is known to be a checkpoint is deleted, and first made invisible by a rename beside it,
under the name of an unfinished attempt (`<name>.milepost-tmp-<id>`, spec/commit.md C6): a crash
leaves it whole, or as such litter.

**Invariant:** nothing is deleted through a symbolic link, nor what somebody put into a checkpoint
of ours.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from typing import Any, Literal

from .. import _foreign
from .._errors import Invalid, Unavailable, Unsupported

LOG = logging.getLogger("milepost.flax")

#: `foreign`: another library's checkpoint; any file counts, Flax's are files. `damaged`: ours,
#: without a whole record.
Kind = Literal["milepost", "run", "foreign", "damaged", "unknown", "nothing"]

#: Where Flax puts the arrays of several processes, beside the file.
ARRAYS = "_gda"
_BESIDE = ".milepost-tmp-"
_LITTER = re.compile(r".+\.milepost-tmp-[0-9a-f]{32}")
_LITTER_SECONDS = 60
#: The record is 64 KiB, with the user's metadata 1 MiB more.
_DOCUMENT_BYTES_MAX = 4 << 20
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def kind_of(path: str) -> Kind:
    """What is at a path, by its content and not its name. The record is looked at, not proven."""
    if os.path.isfile(path):
        return "foreign"
    if not os.path.isdir(path):
        return "damaged" if os.path.islink(path) else "nothing"
    own = record_of(path)
    if own is not None and own.get("kind") in ("checkpoint", "run"):
        return "milepost" if own["kind"] == "checkpoint" else "run"
    if os.path.isdir(os.path.join(path, "_milepost")):
        return "damaged"
    return "unknown" if _foreign.detect(path) is None else "foreign"


def record_of(path: str) -> dict[str, Any] | None:
    """`attributes.milepost` of the root group, None where there is none that can be read."""
    try:
        with open(os.path.join(path, "zarr.json"), "rb") as file:
            record = json.loads(file.read(_DOCUMENT_BYTES_MAX))["attributes"]["milepost"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if isinstance(record, dict) else None


def remove(path: str) -> None:
    """Deletes a checkpoint, with what Flax put beside it. What cannot be told to be one stays, with
    a warning.
    """
    kind = kind_of(path)
    if kind == "nothing":
        return
    if kind in ("damaged", "unknown", "run"):
        LOG.warning("not deleted, for it is no whole checkpoint: %s", path)
        return
    if strays := _strays(path, kind):
        LOG.warning("not deleted, for it holds files that are not its own (%s): %s", strays, path)
        return
    LOG.info("deleting the checkpoint %s", path)
    _discard(path)
    if kind == "foreign" and os.path.isdir(path + ARRAYS):
        _discard(path + ARRAYS)


def _strays(path: str, kind: Kind) -> str:
    """Names in a checkpoint of ours that are not its own."""
    if kind != "milepost" or os.path.islink(path):
        return ""
    items = (record_of(path) or {}).get("items", [])
    own = {"zarr.json", "_milepost", *(item.get("name") for item in items)}
    return ", ".join(sorted(set(os.listdir(path)) - own)[:3])


def _discard(path: str) -> None:
    beside = temporary(path)
    os.rename(path, beside)
    # A crash must not bring the name back without the bytes.
    _sync(os.path.dirname(path))
    if os.path.islink(beside) or not os.path.isdir(beside):
        os.unlink(beside)
    else:
        shutil.rmtree(beside)


def temporary(path: str, *, shared: bool = False) -> str:
    """A name beside a path, of an attempt that nobody takes for a checkpoint: a new one, or the one that all processes of
    a job find.
    """
    name = hashlib.blake2b(path.encode(), digest_size=16).hexdigest()
    return f"{path}{_BESIDE}{name if shared else secrets.token_hex(16)}"


def sweep(directory: str, prefix: str) -> None:
    """Frees what a crash left half deleted: litter without a mark of a writer that has not changed
    for a minute.
    """
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        is_litter = name.startswith(prefix) and _LITTER.fullmatch(name)
        if not is_litter or os.path.exists(path + ".lease"):
            continue
        try:
            if time.time() - os.lstat(path).st_ctime > _LITTER_SECONDS:
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        except FileNotFoundError:
            pass  # another process was faster


def replace(new: str, path: str) -> None:
    """Puts a whole new checkpoint in the place of what is there, in one step, then deletes the old
    one.

    Raises:
        Unsupported: the file system cannot exchange two names; both are as they were.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    exchange = getattr(libc, "renameat2", None)
    arguments = (_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE)
    code = 0 if exchange and exchange(*arguments) == 0 else ctypes.get_errno() or errno.ENOSYS
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        shutil.rmtree(new)
        raise Unsupported(
            "the file system cannot put one checkpoint in the place of another",
            context={"path": path},
            hint="save under another step, or move the old checkpoint away",
        )
    if code:
        raise Unavailable(os.strerror(code), context={"path": path})
    _sync(os.path.dirname(path))
    # What was there has the other name now; it was asked for by `overwrite`.
    shutil.rmtree(new) if os.path.isdir(new) and not os.path.islink(new) else os.unlink(new)
    if os.path.isdir(path + ARRAYS):
        _discard(path + ARRAYS)


def may_be_replaced(path: str) -> None:
    """Passes where a checkpoint, or nothing that matters, is in the way of `overwrite=True`.

    Raises:
        Invalid: something is there that is no checkpoint.
    """
    kind = kind_of(path)
    if kind == "run" or (kind == "unknown" and os.listdir(path)):
        what = "a run" if kind == "run" else "a directory that is no checkpoint"
        raise Invalid(
            f"{what} is in the way", context={"path": path}, hint="save elsewhere, or move it away"
        )


def _sync(directory: str) -> None:
    handle = os.open(directory or ".", os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
