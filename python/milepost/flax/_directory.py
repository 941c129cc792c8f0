"""A directory of checkpoints whose names begin with a prefix, in the order of their steps."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from .. import _foreign
from .._errors import Corrupt, Unsupported
from . import _entry, _names
from ._entry import LOG
from ._retention import Retention


@dataclass(frozen=True)
class Entry:
    """A checkpoint by its name; `rest` is what follows the prefix."""

    name: str
    rest: str
    path: str

    @property
    def kind(self) -> _entry.Kind:
        """What is there now."""
        return _entry.kind_of(self.path)


class Directory:
    """`ckpt_dir` and `prefix` of a call: what its checkpoints are, which is the latest, which go
    after a save.
    """

    def __init__(self, ckpt_dir: str | os.PathLike[str], prefix: str) -> None:
        self.text = _names.safe_normpath(os.fspath(ckpt_dir))
        parent, self.prefix = os.path.split(prefix)
        self.path = os.path.join(local(self.text), parent)
        self._full_prefix = prefix

    def text_of(self, step: Any) -> str:
        """The path of a step's checkpoint, as callers see it."""
        return os.path.join(self.text, f"{self._full_prefix}{step}")

    def path_of(self, step: Any) -> str:
        """The local path of a step's checkpoint."""
        return local(self.text_of(step))

    def entries(self, family: tuple[str, ...] = _names.NUMBERED) -> list[Entry]:
        """All names of a family, in the order of their numbers; empty where there is no directory.
        """
        try:
            names = sorted(os.listdir(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = []
        for name in names:
            rest = name[len(self.prefix) :]
            if name.startswith(self.prefix) and _names.family(rest) == family:
                found.append(Entry(name, rest, os.path.join(self.path, name)))
        return sorted(found, key=lambda entry: _names.order(entry.rest))

    def others(self) -> list[Entry]:
        """Checkpoints of the prefix that have more than a number after it, such as
        `checkpoint_best`.
        """
        try:
            names = os.listdir(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = []
        for name in _names.natural_sort(name for name in names if name.startswith(self.prefix)):
            rest, path = name[len(self.prefix) :], os.path.join(self.path, name)
            if _names.family(rest) == _names.NUMBERED or _is_litter(name, rest):
                continue
            is_file = os.path.isfile(path)
            if (is_file and _foreign.detect(path)) or (
                not is_file and _entry.kind_of(path) in ("milepost", "foreign")
            ):
                found.append(Entry(name, rest, path))
        return found

    def saved(self, path: str) -> tuple[list[Entry], Entry]:
        """The family of the checkpoint at `path`, and its own entry, whether it is there or not."""
        name = os.path.basename(path)
        own = Entry(name, name[len(self.prefix) :], os.path.join(self.path, name))
        return self.entries(_names.family(own.rest)), own

    def is_outdated(self, path: str) -> bool:
        """Whether a checkpoint at `path`, or a later one of its family, is there already."""
        if os.path.lexists(path):
            return True
        entries, own = self.saved(path)
        key = _names.order(own.rest)
        return any(
            _names.order(entry.rest) > key and entry.kind in ("milepost", "foreign")
            for entry in entries
        )

    def latest(self) -> Entry | None:
        """The latest whole checkpoint; None where there is none at all.

        Raises:
            Corrupt: there are names of checkpoints, and nothing whole is under any of them:
                training would begin at zero.
        """
        passed = []
        for entry in reversed(self.entries()):
            if self._is_whole(entry):
                return entry
            passed.append(entry)
        if others := self.others():
            return others[-1]
        if passed:
            names = ", ".join(entry.name for entry in passed[:5])
            raise Corrupt(
                "none of the checkpoints is whole",
                context={"directory": self.path, "checkpoints": names},
                hint="`milepost verify PATH` says what is wrong; delete them to begin anew",
            )
        return None

    def _is_whole(self, entry: Entry) -> bool:
        kind = entry.kind
        if kind == "milepost":
            try:
                _open(entry.path)
            except Corrupt as error:
                LOG.warning("passed over, for its record is damaged: %s (%s)", entry.path, error)
                return False
            return True
        if kind == "foreign":
            return True
        if kind != "nothing":
            LOG.warning("passed over, for it is no whole checkpoint (%s): %s", kind, entry.path)
        return False

    def clean(self, path: str, retention: Retention) -> None:
        """Deletes what a save at `path`, committed by now, makes superfluous.

        `keep` counts and deletes checkpoints of ours only: what another library wrote stays until
        it is overwritten on purpose.
        """
        entries, own = self.saved(path)
        by_name = {entry.name: entry for entry in entries}
        whole = {n: e for n, e in by_name.items() if e.kind in ("milepost", "foreign")}
        later = retention.later(list(whole), own.name)
        for name in later:
            _entry.remove(whole[name].path)
        ours = [
            (name, _names.last_number(entry.rest))
            for name, entry in whole.items()
            if name not in later and entry.kind == "milepost"
        ]
        for name in retention.older(ours):
            if name != own.name:
                _entry.remove(whole[name].path)
        _entry.sweep(self.path, self.prefix)

    def others_text(self) -> str:
        """What is here under other names, to be told where nothing was found; empty where nothing
        is.
        """
        try:
            names = sorted(os.listdir(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return ""
        paths = ((name, os.path.join(self.path, name)) for name in names)
        found = [
            name
            for name, path in paths
            if os.path.isdir(path) and _entry.kind_of(path) in ("milepost", "run", "foreign")
        ]
        return ", ".join(found[:5])


def _is_litter(name: str, rest: str) -> bool:
    """Whether a name is one of an unfinished save, of Flax, Orbax or ours, or of Flax's arrays
    beside a file.
    """
    unfinished = ".milepost-tmp-" in name or ".orbax-checkpoint-tmp" in name
    return unfinished or rest == "tmp" or rest.endswith(_entry.ARRAYS)


def _open(path: str) -> Any:
    import milepost as mp

    return mp.open(path)


def local(text: str) -> str:
    """The local path of a path or `file://` URL.

    Raises:
        Unsupported: it is a URL of another kind.
    """
    scheme, _, path = text.partition("://") if "://" in text else ("", "", text)
    if scheme not in ("", "file"):
        raise Unsupported(
            f"flax's checkpoint functions work on local directories, not on {scheme}://",
            context={"path": text},
            hint="use milepost.CheckpointManager, which saves to object stores",
        )
    return os.path.abspath(path)
