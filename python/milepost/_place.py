"""Where things are: URLs and paths, and the engine that opens them."""

from __future__ import annotations

import os
from typing import Union

from . import _milepost
from ._errors import Invalid

Engine = _milepost.Engine
Place = _milepost.Place

Url = Union[str, os.PathLike, Place]


def place(url: Url, engine: Engine | None = None) -> Place:
    """Opens a URL or path with an engine, the process's own where None; a `Place` has its engine already.

    Raises Invalid where another engine is named beside a `Place`.
    """
    if isinstance(url, Place):
        if engine is not None and not url.is_of(engine):
            raise Invalid(
                "a Place and another engine are given",
                context={"place": str(url)},
                hint="open the place with it: Place(url, options, engine)",
            )
        return url
    return Place(os.fspath(url), None, engine)


def local_path(url: Url) -> str | None:
    """The path on a local disk, None for what is elsewhere; nothing is opened."""
    if isinstance(url, Place):
        return None if url.local_path is None else os.fspath(url.local_path)
    text = os.fspath(url)
    if text.startswith("file://"):
        found = _milepost.Place(text).local_path
        return None if found is None else os.fspath(found)
    return None if "://" in text else os.path.abspath(text)
