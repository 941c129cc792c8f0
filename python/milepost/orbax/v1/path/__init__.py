"""Paths: their types, and where a given path points.

Any `os.PathLike` or text is a path; text with a scheme (`s3://bucket/run`) is a URL and stays as
it is, anything else is local and is made absolute.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any, Protocol, TypeAlias, runtime_checkable

from milepost.orbax._run_path import is_local, url_of

PathLike: TypeAlias = "str | os.PathLike[str]"


def default_path_class() -> type:
    """Returns `etils.epath.Path` where etils is installed (it knows URLs), else `pathlib.Path`."""
    try:
        from etils import epath
    except ImportError:
        return pathlib.Path
    return epath.Path


def __getattr__(name: str) -> Any:
    # `Path` is looked up late: importing etils takes longer than importing milepost.
    if name == "Path":
        return default_path_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "Path"})


@runtime_checkable
class PathAwaitingCreation(Protocol):
    """A directory that a handler will write to, which may not exist yet.

    `path` is where it will be, `await_creation()` returns it once it is there, and `/` gives the
    same for what is below it.
    """

    def __truediv__(self, other: PathLike) -> "PathAwaitingCreation": ...

    @property
    def path(self) -> Any: ...

    async def await_creation(self) -> Any: ...


def locate(path: PathLike) -> str:
    """Returns the URL or absolute local path that `path` means.

    Raises:
      TypeError: `path` is not a path.
      ValueError: it is empty.
    """
    if not os.fspath(path):
        raise ValueError("path is empty: name a directory or a URL")
    return url_of(path)


def path_of(location: str, path_class: type) -> Any:
    """Returns a located path as `path_class`; text where the class does not know the scheme."""
    try:
        return path_class(location)
    except KeyError:  # etils: memory:// is ours alone
        return location


from milepost.orbax.v1.path import step  # noqa: E402  (it needs the names above)

__all__ = ["Path", "PathAwaitingCreation", "PathLike", "is_local", "locate", "step"]
