"""The files of custom handlers, where several processes write them.

Orbax's processes write into one directory. Here each has a scratch directory of its own: what all have written is brought
together before one of them saves it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import milepost as mp

#: They travel by the launcher's service, which is made for small values.
BYTES_MAX = 16 << 20


def share_files(together: mp.Together, folders: Mapping[str, Path]) -> None:
    """Gives every process the files that any of them has written, by item; of one name, that of the lowest process.

    Raises:
        Unsupported: they are too large; the save fails in every process.
    """
    told = together.gather(lambda: json.dumps(_written(folders)).encode())
    for items in reversed([json.loads(one) for one in told]):
        for name, files in items.items():
            for relative, text in files.items():
                path = folders[name].joinpath(*PurePosixPath(relative).parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(text))


def _written(folders: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    size = 0
    for name, folder in folders.items():
        mine = found.setdefault(name, {})
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            size += path.stat().st_size
            if size > BYTES_MAX:
                raise mp.Unsupported(
                    "the files of custom handlers are too large to be shared by processes",
                    context={"item": name, "limit": str(BYTES_MAX)},
                    hint="save large data as arrays in a tree",
                )
            mine[path.relative_to(folder).as_posix()] = base64.b64encode(path.read_bytes()).decode()
    return found
