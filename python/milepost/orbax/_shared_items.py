"""What is no array, where several processes save it: the first one's, as with Orbax, and all files.

```text
  trees, arrays           of every process; what is said of them is the first one's
  JSON, bytes             the first one's that has the item
  files of handlers       those of all; of one name, the first one's
```

Orbax's processes write their files into one directory. Here each has a scratch directory of its
own: what all have written is brought together where it is saved from.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import milepost as mp
from milepost._together import declining

#: They travel by the launcher's service, which is made for small values.
BYTES_MAX = 16 << 20
CUSTOM = "custom_metadata"
_SMALL = (mp.Json, mp.Bytes, mp.Files)


def share_items(
    together: mp.Together, items: dict[str, Any], item_metadata: dict[str, dict[str, Any]]
) -> None:
    """Makes items and their metadata, by name, those that this process saves together with others;
    all call it.

    Raises:
        Unsupported: files are too large; the save fails in every process.
        OSError: files cannot be written here; the others are told, as the save will come next.
    """
    own = functools.partial(_own, items, item_metadata)
    told = [json.loads(one) for one in together.gather(own, before_save=True)]
    with declining(together):
        for name in list(items):
            first = next(index for index, one in enumerate(told) if name in one["custom"])
            if isinstance(items[name], _SMALL) and first != together.index:
                del items[name]
                item_metadata.pop(name, None)
                continue
            _tell(item_metadata, name, told[first]["custom"][name])
            if isinstance(items[name], mp.Files):
                for one in reversed(told):
                    _write(Path(items[name].path), one["files"].get(name, {}))


def _own(items: Mapping[str, Any], item_metadata: Mapping[str, Any]) -> bytes:
    folders = {name: Path(item.path) for name, item in items.items() if isinstance(item, mp.Files)}
    custom = {name: item_metadata.get(name, {}).get(CUSTOM) for name in items}
    return json.dumps({"files": _written(folders), "custom": custom}, default=_number).encode()


def _number(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"custom_metadata is JSON. type=`{type(value).__name__}`")


def _tell(item_metadata: dict[str, dict[str, Any]], name: str, custom: Any) -> None:
    said = {key: value for key, value in item_metadata.get(name, {}).items() if key != CUSTOM}
    if custom is not None:
        said[CUSTOM] = custom
    if said:
        item_metadata[name] = said
    else:
        item_metadata.pop(name, None)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for relative, text in files.items():
        path = folder.joinpath(*PurePosixPath(relative).parts)
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
