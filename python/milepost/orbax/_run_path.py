"""Paths and URLs of runs as the drop-ins take and show them."""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any
from urllib.parse import unquote, urlsplit


def url_of(path: Any) -> str:
    """Returns an absolute path or a URL as text; a relative path is below the current directory."""
    text = os.fspath(path)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if text.startswith("file:"):
        return os.path.abspath(unquote(urlsplit(text).path))
    if "://" in text:
        return text.rstrip("/")
    return os.path.abspath(os.path.expanduser(text))


def is_local(url: str) -> bool:
    """Tells whether the text is a path of the local file system."""
    return "://" not in url


class UrlPath(str):
    """A URL for which etils has no path object: text that `/` extends."""

    def __truediv__(self, name: str) -> UrlPath:
        return UrlPath(join(self, str(name)))

    @property
    def name(self) -> str:
        """The last segment."""
        return name_of(self)

    @property
    def parent(self) -> UrlPath:
        """The URL without the last segment."""
        return UrlPath(self.rstrip("/").rpartition("/")[0])


def path_of(url: str) -> Any:
    """Returns a path object: of etils where that is loaded, as Orbax gives, else of pathlib.

    A URL is one of etils, or a `UrlPath` where etils is not installed or lacks the scheme.
    """
    if is_local(url):
        loaded = sys.modules.get("etils.epath")
        return pathlib.Path(url) if loaded is None else loaded.Path(url)
    try:
        from etils import epath

        return epath.Path(url)
    except (ImportError, KeyError):
        return UrlPath(url)


def join(url: str, name: str) -> str:
    """Returns the place of a name below a directory."""
    return f"{url.rstrip('/')}/{name}"


def name_of(url: str) -> str:
    """Returns the last segment."""
    return url.rstrip("/").rpartition("/")[2]
