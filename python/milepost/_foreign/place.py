"""A place that is looked at and never written to: local, or remote through etils.

Nothing here follows a name outside the place, and reads are bounded: what is looked at is headers.
"""

from __future__ import annotations

import logging
import os
from typing import Any
from urllib.parse import unquote, urlsplit

_LOG = logging.getLogger("milepost")
_told: set[str] = set()


def text_of(path: Any) -> str:
    """The path or URL as text: `file://` URLs and relative paths become absolute local paths."""
    text = os.fspath(path)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if text.startswith("file:"):
        return os.path.abspath(unquote(urlsplit(text).path))
    if "://" in text:
        return text.rstrip("/")
    return os.path.abspath(os.path.expanduser(text))


class Place:
    """One path or URL, looked at lazily. What is not there is an empty place, not an error."""

    __slots__ = ("_entries", "_remote", "path")

    def __init__(self, path: Any) -> None:
        self.path = text_of(path)
        self._remote = _epath(self.path) if "://" in self.path else None
        self._entries: dict[str, bool] | None = None

    def __repr__(self) -> str:
        return f"Place({self.path!r})"

    @property
    def name(self) -> str:
        """The last segment."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def is_remote(self) -> bool:
        """Whether the place is a URL; stores behind URLs have no atomic rename."""
        return "://" in self.path

    def child(self, name: str) -> Place:
        """The place below this one."""
        return Place(f"{self.path.rstrip('/')}/{name}")

    def entries(self) -> dict[str, bool]:
        """Names below, and whether each is a directory. Empty where this is none."""
        if self._entries is None:
            self._entries = self._list()
        return self._entries

    def _list(self) -> dict[str, bool]:
        if self.is_remote:
            if self._remote is None or not self._remote.is_dir():
                return {}
            return {child.name: child.is_dir() for child in self._remote.iterdir()}
        try:
            with os.scandir(self.path) as found:
                return {entry.name: entry.is_dir() for entry in found}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def is_file(self) -> bool:
        """Whether this is a regular file."""
        if self.is_remote:
            return self._remote is not None and self._remote.is_file()
        return os.path.isfile(self.path)

    def size(self) -> int:
        """Bytes of the file."""
        if self.is_remote:
            return int(self._remote.stat().length) if self._remote is not None else 0
        return os.path.getsize(self.path)

    def read(self, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start`; fewer where the file ends, none without a file."""
        file = self._open()
        if file is None:
            return b""
        with file:
            file.seek(start)
            return file.read(length)

    def read_into(self, start: int, buffer: memoryview) -> int:
        """Fills `buffer` from `start`; returns how many bytes there were."""
        file = self._open()
        if file is None:
            return 0
        done = 0
        with file:
            file.seek(start)
            while done < len(buffer):
                part = file.readinto(buffer[done:])
                if not part:
                    break
                done += part
        return done

    def _open(self) -> Any:
        """The file, opened for reading; None where there is none."""
        try:
            if self.is_remote:
                return None if self._remote is None else self._remote.open("rb")
            return open(self.path, "rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None


def _epath(url: str) -> Any:
    """The URL for etils, which Orbax brings; None, told once a scheme, where it cannot be read."""
    scheme = url.partition("://")[0]
    try:
        from etils import epath

        path = epath.Path(url)
        path.exists()
    except Exception as error:  # noqa: BLE001 - backends raise whatever their libraries raise
        if scheme not in _told:
            _told.add(scheme)
            _LOG.warning(
                "cannot look for Orbax, Flax or safetensors checkpoints at %s (%s); "
                "if there are any, install etils and the library it uses for %s://",
                url,
                error,
                scheme,
            )
        return None
    return path
