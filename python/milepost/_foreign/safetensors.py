"""Safetensors: a header of JSON, then bytes; a model is a file, or several that an index names.

Tensors are read by their ranges into arrays of their own; the file is not mapped, so that one which
is truncated later is an error and not a signal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .item import ForeignItem
from .mistake import corrupt, unsupported
from .place import Place

if TYPE_CHECKING:
    import numpy as np

_EXTENSION = ".safetensors"
_INDEX = ".safetensors.index.json"
#: The format's own limit of the header.
_HEADER_BYTES_MAX = 100_000_000
_TYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}


def is_safetensors(place: Place) -> bool:
    """Whether the file begins with a safetensors header that its size can hold."""
    head = place.read(0, 9)
    if len(head) < 9 or head[8:9] != b"{":
        return False
    length = int.from_bytes(head[:8], "little")
    return 2 <= length <= min(_HEADER_BYTES_MAX, place.size() - 8)


def items(place: Place) -> dict[str, ForeignItem]:
    """The items of a directory: one model is the item `""`, several are items by their names."""
    names = [name for name, is_directory in place.entries().items() if not is_directory]
    indices = sorted(name for name in names if name.endswith(_INDEX))
    parts = {part for name in indices for part in _parts(place.child(name))}
    files = sorted(name for name in names if name.endswith(_EXTENSION) and name not in parts)
    models = [
        *((name.removesuffix(_INDEX), name) for name in indices if _parts(place.child(name))),
        *(
            (name.removesuffix(_EXTENSION), name)
            for name in files
            if is_safetensors(place.child(name))
        ),
    ]
    if len(models) == 1:
        return {"": ForeignItem("", "tree", place.child(models[0][1]).path)}
    return {stem: ForeignItem(stem, "tree", place.child(name).path) for stem, name in models}


def _parts(index: Place) -> list[str]:
    """The files that an index names; none where it is no index."""
    try:
        weights = json.loads(index.read(0, _HEADER_BYTES_MAX))["weight_map"]
        return sorted(set(weights.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def files(place: Place) -> list[Place]:
    """The files of a model: `place` is one, or an index beside them.

    Raises:
        Corrupt: the index names a file outside its directory.
    """
    if not place.name.endswith(_INDEX):
        return [place]
    beside = place.path.rpartition("/")[0]
    for name in _parts(place):
        if "/" in name or "\\" in name or name in ("", ".", ".."):
            raise corrupt("an index names a file that is not beside it", path=place.path, file=name)
    return [Place(f"{beside}/{name}") for name in _parts(place)]


def header(place: Place) -> tuple[dict[str, dict[str, Any]], dict[str, str], int]:
    """The tensors of one file by name, its metadata, and where the data begins.

    Raises:
        Corrupt: the file is no safetensors file, or is cut short, or its header is none.
    """
    if not is_safetensors(place):
        raise corrupt("not a whole safetensors file", path=place.path)
    length = int.from_bytes(place.read(0, 8), "little")
    try:
        tensors = json.loads(place.read(8, length))
        metadata = dict(tensors.pop("__metadata__", {}))
        for entry in tensors.values():
            _ = str(entry["dtype"]), tuple(entry["shape"]), tuple(entry["data_offsets"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise corrupt(f"the header is damaged: {error}", path=place.path) from error
    return tensors, metadata, 8 + length


def metadata(place: Place) -> dict[str, str]:
    """The text metadata of a model, of all of its files."""
    return {key: value for file in files(place) for key, value in header(file)[1].items()}


def tensors(place: Place) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor of a model with its name, one in memory at a time.

    Raises:
        Corrupt: a file is damaged.
        Unsupported: a data type that NumPy cannot hold.
    """
    for file in files(place):
        entries, _, begin = header(file)
        for name, entry in entries.items():
            yield name, _tensor(file, name, entry, begin)


def shapes(place: Place) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and NumPy data type of each tensor, from the headers alone."""
    return {
        name: (tuple(entry["shape"]), _TYPES.get(entry["dtype"], entry["dtype"]))
        for file in files(place)
        for name, entry in header(file)[0].items()
    }


def _tensor(file: Place, name: str, entry: dict[str, Any], begin: int) -> np.ndarray:
    import numpy as np

    dtype = _dtype(entry["dtype"], name, file)
    shape, offsets = tuple(entry["shape"]), tuple(entry["data_offsets"])
    if len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
        raise corrupt("sizes are no numbers", path=file.path, tensor=name)
    first, end = offsets
    if first > end or end - first != math.prod(shape) * dtype.itemsize:
        raise corrupt("offsets do not fit the shape", path=file.path, tensor=name)
    if begin + end > file.size():
        raise corrupt("the file ends within a tensor", path=file.path, tensor=name)
    data = np.empty(end - first, np.uint8)
    if file.read_into(begin + first, memoryview(data)) != end - first:
        raise corrupt("the file ends within a tensor", path=file.path, tensor=name)
    return data.view(dtype).reshape(shape)


def _dtype(code: str, name: str, file: Place) -> np.dtype:
    import numpy as np

    text = _TYPES.get(code)
    if text is None:
        raise unsupported("a data type that NumPy lacks", path=file.path, tensor=name, dtype=code)
    if text.startswith(("bfloat", "float8")):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, text))
    return np.dtype(text)
