"""Legacy Flax checkpoints: one msgpack document, read without flax and without msgpack.

```text
  document   map | array | text | bytes | number | bool | nil | extension
  ext 1      array      [shape, dtype name, bytes in C order]      the three themselves msgpack
  ext 2      complex    [real, imaginary]
  ext 3      scalar     as ext 1, of one element
  chunked    {"__msgpack_chunked_array__": true, "shape": {"0": n, …}, "chunks": {"0": ext 1, …}}
             leaves over 1 GiB
```

The document is walked once through a small window; the bytes of arrays are passed over, then read
straight into arrays of their own, by several threads where there are many. So a state is in memory
once, every array is aligned and writable, and one leaf does not keep the whole file alive. The
`msgpack` package would hold file and arrays at once, and makes room for as many elements as a
header claims before it has seen one of them.

**Invariant:** memory follows the size of the file, never a number that is written in it; whatever
the bytes are, the outcome is a state or `Corrupt` / `Unsupported` with the offset.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from ._errors import Corrupt, Invalid, NotFound, Unsupported

#: What stands in a document for an array that several processes wrote beside it; the rest is its
#: path.
PLACEHOLDER = "//GDAPlaceholder:"

_CHUNKED = "__msgpack_chunked_array__"
#: As deep as a tree of ours may be.
_DEPTH_MAX = 512
#: NumPy's own limit.
_RANK_MAX = 64
#: 100 times the largest tree that we test; a hostile file of empty maps costs 70 times its own
#: size.
_VALUES_MAX = 1 << 24
_WINDOW_BYTES = 1 << 18
_PART_BYTES = 128 << 20
_THREADS_MAX = 32

_ML_DTYPES = {
    name: np.dtype(kind)
    for name, kind in vars(ml_dtypes).items()
    if isinstance(kind, type) and issubclass(kind, np.generic)
}
_PLAIN_DTYPE = re.compile(
    r"bool|u?int(8|16|32|64)|float(16|32|64|80|96|128)|complex(64|128|160|192|256)"
    r"|longdouble|clongdouble|(datetime|timedelta)64(\[\w+\])?"
)
_SIZED_DTYPE = re.compile(r"(str|bytes|void)([0-9]{1,12})")

_FIXED: dict[int, struct.Struct] = {
    0xCA: struct.Struct(">f"), 0xCB: struct.Struct(">d"),
    0xCC: struct.Struct(">B"), 0xCD: struct.Struct(">H"),
    0xCE: struct.Struct(">I"), 0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"), 0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"), 0xD3: struct.Struct(">q"),
}  # fmt: skip
_CONSTANTS: dict[int, bool | None] = {0xC0: None, 0xC2: False, 0xC3: True}
#: First byte → (kind, bytes of the length that follows it).
_SIZED = {
    0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4),
    0xC7: ("ext", 1), 0xC8: ("ext", 2), 0xC9: ("ext", 4),
    0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4),
    0xDC: ("array", 2), 0xDD: ("array", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip


def load(path: str | os.PathLike[str], *, parallel: bool = True, placeholders: str = "read") -> Any:
    """Reads a checkpoint file of `flax.training.checkpoints`: its state dict.

    Arrays are NumPy arrays of their own, scalars NumPy scalars or Python's, as they were saved.
    `parallel` reads large files with several threads. Arrays that several processes wrote beside
    the file (`<path>_gda`) are read, too, through TensorStore; with `placeholders="keep"` the texts
    that stand for them are left.

    Raises:
        NotFound: there is no such file.
        Corrupt: it is damaged, or no such checkpoint.
        Unsupported: it has an extension or data type that is not known here, or TensorStore is
            needed.
    """
    if placeholders not in ("read", "keep"):
        raise Invalid(f'placeholders is "read" or "keep", not {placeholders!r}')
    path = os.fspath(path)
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound("no checkpoint file", context={"path": path}) from error
    try:
        source = _File(file, os.fstat(file).st_size, path)
        state = _state(source, parallel)
    finally:
        os.close(file)
    if placeholders == "read":
        from .flax import _distributed

        state = _distributed.read_all(state, path)
    return state


def loads(data: bytes | bytearray | memoryview, *, where: str = "bytes") -> Any:
    """Reads a checkpoint that is in memory; placeholders are left. `where` names it in errors.

    Raises:
        Corrupt, Unsupported: as `load`.
    """
    return _state(_Memory(memoryview(data).cast("B"), where), parallel=False)


# --- where the bytes are ---


class _Source(Protocol):
    size: int
    name: str

    def read(self, start: int, length: int) -> bytes | memoryview: ...

    def fill(self, start: int, into: memoryview) -> int: ...


@dataclass(frozen=True)
class _File:
    descriptor: int
    size: int
    name: str

    def read(self, start: int, length: int) -> bytes:
        return os.pread(self.descriptor, length, start)

    def fill(self, start: int, into: memoryview) -> int:
        """Reads into `into`; fewer bytes only where the file has become shorter."""
        done = 0
        while done < len(into):
            count = os.preadv(self.descriptor, [into[done:]], start + done)
            if count == 0:
                break
            done += count
        return done


@dataclass(frozen=True)
class _Memory:
    view: memoryview
    name: str

    @property
    def size(self) -> int:
        return len(self.view)

    def read(self, start: int, length: int) -> memoryview:
        return self.view[start : start + length]

    def fill(self, start: int, into: memoryview) -> int:
        part = self.view[start : start + len(into)]
        into[: len(part)] = part
        return len(part)


class _Reader:
    """A position in a source, read through a window; errors name the offset."""

    def __init__(self, source: _Source) -> None:
        self.source = source
        self.at = 0
        self._window: bytes | memoryview = b""
        self._begin = 0

    def corrupt(self, what: str, at: int | None = None) -> Corrupt:
        offset = self.at if at is None else at
        return Corrupt(
            f"not a whole checkpoint of Flax: {what}",
            context={"path": self.source.name, "offset": str(offset)},
        )

    def take(self, length: int, end: int) -> bytes | memoryview:
        """The next bytes; none of them may be beyond `end`."""
        if length > end - self.at:
            raise self.corrupt(f"{length} bytes are named, {max(0, end - self.at)} are left")
        first = self.at - self._begin
        if not 0 <= first <= first + length <= len(self._window):
            wanted = min(max(length, _WINDOW_BYTES), self.source.size - self.at)
            self._window, self._begin, first = self.source.read(self.at, wanted), self.at, 0
            if len(self._window) < length:
                raise self.corrupt("the file has become shorter")
        self.at += length
        return self._window[first : first + length]

    def skip(self, length: int, end: int) -> int:
        """Passes over bytes that are read later, and returns where they begin."""
        begin = self.at
        if length > end - begin:
            raise self.corrupt(f"{length} bytes are named, {max(0, end - begin)} are left")
        self.at += length
        return begin

    def head(self, end: int) -> tuple[str, Any]:
        """The next value's kind and value, or for what has a length its kind and length."""
        first = self.take(1, end)[0]
        if first <= 0x7F:
            return "value", first
        if first >= 0xE0:
            return "value", first - 0x100
        if first <= 0x8F:
            return "map", first & 0x0F
        if first <= 0x9F:
            return "array", first & 0x0F
        if first <= 0xBF:
            return "str", first & 0x1F
        if first in _CONSTANTS:
            return "value", _CONSTANTS[first]
        if first in _FIXED:
            number = _FIXED[first]
            return "value", number.unpack(self.take(number.size, end))[0]
        if 0xD4 <= first <= 0xD8:
            return "ext", 1 << (first - 0xD4)
        if first not in _SIZED:
            raise self.corrupt(f"0x{first:02x} begins no value", self.at - 1)
        kind, width = _SIZED[first]
        return kind, int.from_bytes(self.take(width, end), "big")


# --- the document ---


@dataclass
class _Pending:
    """An array whose bytes are still in the source."""

    dtype: np.dtype
    shape: tuple[int, ...]
    segments: list[tuple[int, int]]
    is_scalar: bool = False


@dataclass
class _Open:
    """A container that is being read."""

    value: dict[Any, Any] | list[Any]
    left: int
    key: Any = None
    has_key: bool = False


def _state(source: _Source, parallel: bool) -> Any:
    reader = _Reader(source)
    if source.size == 0:
        raise reader.corrupt("it is empty")
    root = _document(reader)
    if reader.at != source.size:
        raise reader.corrupt(f"{source.size - reader.at} bytes follow the document")
    holder = {"": root}
    _join_chunks(holder, reader)
    pending = [place for place in _places(holder) if isinstance(place[0][place[1]], _Pending)]
    arrays = _read([container[key] for container, key in pending], reader, parallel)
    for (container, key), array in zip(pending, arrays, strict=True):
        container[key] = array
    return holder[""]


def _document(reader: _Reader) -> Any:
    """One value with all that is in it, without recursion."""
    end, values, stack = reader.source.size, 0, list[_Open]()
    while True:
        values += 1
        if values > _VALUES_MAX:
            raise Unsupported(
                f"more than {_VALUES_MAX} values", context={"path": reader.source.name}
            )
        kind, value = reader.head(end)
        if kind in ("map", "array"):
            if value * (2 if kind == "map" else 1) > end - reader.at:
                raise reader.corrupt(f"{value} members are named, {end - reader.at} bytes are left")
            if len(stack) >= _DEPTH_MAX:
                raise reader.corrupt(f"deeper than {_DEPTH_MAX}")
            stack.append(_Open({} if kind == "map" else [], value))
        else:
            done = _leaf(reader, kind, value, end)
            if not stack:
                return done
            _put(stack[-1], done, reader)
        while stack[-1].left == 0:
            done = stack.pop().value
            if not stack:
                return done
            _put(stack[-1], done, reader)


def _put(into: _Open, value: Any, reader: _Reader) -> None:
    """Adds a finished value to a container: a key, or a member."""
    if isinstance(into.value, list):
        into.value.append(value)
        into.left -= 1
    elif into.has_key:
        into.value[into.key] = value
        into.has_key = False
        into.left -= 1
    else:
        if not isinstance(value, str | int | bytes | float):
            raise reader.corrupt(f"a key is a {type(value).__name__}")
        if value in into.value:
            raise reader.corrupt(f"the key {value!r} is there twice")
        into.key, into.has_key = value, True


def _leaf(reader: _Reader, kind: str, value: Any, end: int) -> Any:
    if kind == "value":
        return value
    if kind == "bin":
        return bytes(reader.take(value, end))
    if kind == "str":
        try:
            return str(reader.take(value, end), "utf-8")
        except UnicodeDecodeError as error:
            raise reader.corrupt("text is not UTF-8") from error
    code = int.from_bytes(reader.take(1, end), "big", signed=True)
    stop = reader.at + value
    if stop > end:
        raise reader.corrupt(f"{value} bytes are named, {end - reader.at} are left")
    if code == 2:
        result: Any = _complex(reader, stop)
    elif code in (1, 3):
        result = _array(reader, stop, is_scalar=code == 3)
    else:
        raise Unsupported(
            "an extension type that Flax does not write",
            context={"path": reader.source.name, "offset": str(reader.at), "type": str(code)},
        )
    if reader.at != stop:
        raise reader.corrupt("an extension has another size than what is in it")
    return result


def _complex(reader: _Reader, end: int) -> complex:
    parts = []
    if reader.head(end) != ("array", 2):
        raise reader.corrupt("a complex number is not a pair")
    for _ in range(2):
        kind, value = reader.head(end)
        if kind != "value" or value is None:
            raise reader.corrupt("a complex number is not a pair of numbers")
        parts.append(float(value))
    return complex(*parts)


def _array(reader: _Reader, end: int, *, is_scalar: bool) -> _Pending:
    """The shape and data type of an array, and where its bytes are."""
    begin = reader.at
    if reader.head(end) != ("array", 3):
        raise reader.corrupt("an array is not (shape, dtype, bytes)")
    kind, rank = reader.head(end)
    if kind != "array" or rank > _RANK_MAX:
        raise reader.corrupt("a shape is not a list of at most 64 sizes")
    sizes = [reader.head(end) for _ in range(rank)]
    if not all(kind == "value" and type(size) is int and size >= 0 for kind, size in sizes):
        raise reader.corrupt("a shape has something that is no size")
    shape = tuple(size for _, size in sizes)
    kind, length = reader.head(end)
    if kind not in ("str", "bin") or length > 64:
        raise reader.corrupt("a data type is not a name")
    dtype = _dtype(bytes(reader.take(length, end)), reader)
    kind, length = reader.head(end)
    if kind not in ("str", "bin"):
        raise reader.corrupt("an array has no bytes")
    if math.prod(shape) * dtype.itemsize != length:
        raise reader.corrupt(f"{length} bytes are no {dtype.name} of shape {shape}", begin)
    return _Pending(dtype, shape, [(reader.skip(length, end), length)], is_scalar)


def _dtype(name: bytes, reader: _Reader) -> np.dtype:
    """The data type of a name that NumPy or ml_dtypes gave it; no other text reaches NumPy's
    parser.
    """
    text = name.decode("latin-1")
    if text in _ML_DTYPES:
        return _ML_DTYPES[text]
    try:
        if _PLAIN_DTYPE.fullmatch(text):
            return np.dtype(text)
        if sized := _SIZED_DTYPE.fullmatch(text):
            # NumPy counts these in bits; a character of text has 32.
            code, bits = {"str": ("U", 32), "bytes": ("S", 8), "void": ("V", 8)}[sized[1]]
            # NumPy makes room for one where a type has no bytes: that would not follow the file's
            # size.
            if (length := int(sized[2]) // bits) > 0:
                return np.dtype(f"{code}{length}")
    except (TypeError, ValueError):
        pass
    raise Unsupported(
        "an array has a data type that is not known here",
        context={"path": reader.source.name, "offset": str(reader.at), "dtype": text},
    )


def _places(holder: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Every place of a value, as container and key; containers before what is in them."""
    stack: list[Any] = [holder]
    while stack:
        container = stack.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            yield container, key
            if isinstance(container[key], dict | list):
                stack.append(container[key])


def _join_chunks(holder: dict[Any, Any], reader: _Reader) -> None:
    """Makes one pending array of each leaf that was saved in chunks."""
    for container, key in _places(holder):
        value = container[key]
        if isinstance(value, dict) and _CHUNKED in value:
            container[key] = _joined(value, reader)


def _joined(value: dict[Any, Any], reader: _Reader) -> _Pending:
    shape, chunks = _in_order(value.get("shape")), _in_order(value.get("chunks"))
    if shape is None or not chunks or len(shape) > _RANK_MAX:
        raise reader.corrupt("a chunked array has no shape or no chunks", 0)
    if not all(type(size) is int and size >= 0 for size in shape):
        raise reader.corrupt("a chunked array has something that is no size", 0)
    first = chunks[0]
    for chunk in chunks:
        if not isinstance(chunk, _Pending) or len(chunk.shape) != 1 or chunk.dtype != first.dtype:
            raise reader.corrupt("chunks of one array are not flat arrays of one data type", 0)
    if sum(chunk.shape[0] for chunk in chunks) != math.prod(shape):
        raise reader.corrupt(f"chunks do not make up the shape {tuple(shape)}", 0)
    segments = [segment for chunk in chunks for segment in chunk.segments]
    return _Pending(first.dtype, tuple(shape), segments)


def _in_order(value: Any) -> list[Any] | None:
    """The members of a dict with the keys "0", "1", …; None where it is something else."""
    if not isinstance(value, dict):
        return None
    keys = [str(position) for position in range(len(value))]
    return [value[key] for key in keys] if all(key in value for key in keys) else None


# --- the arrays ---


def _read(pending: list[_Pending], reader: _Reader, parallel: bool) -> list[Any]:
    """The arrays, each in memory of its own; together they are not larger than the source."""
    arrays, parts = [], []
    for leaf in pending:
        raw = np.empty(sum(length for _, length in leaf.segments), np.uint8)
        try:
            if raw.size:
                array = raw.view(leaf.dtype).reshape(leaf.shape)
            else:
                array = np.empty(leaf.shape, leaf.dtype)
        except (ValueError, MemoryError, OverflowError) as error:
            raise reader.corrupt(f"no array has the shape {leaf.shape}", 0) from error
        arrays.append(array)
        view, at = memoryview(raw), 0
        for start, length in leaf.segments:
            for part in range(0, length, _PART_BYTES):
                size = min(_PART_BYTES, length - part)
                parts.append((start + part, view[at + part : at + part + size]))
            at += length
    _fill(parts, reader, parallel)
    return [
        array[()] if leaf.is_scalar else array for leaf, array in zip(pending, arrays, strict=True)
    ]


def _fill(parts: list[tuple[int, memoryview]], reader: _Reader, parallel: bool) -> None:
    def fill(part: tuple[int, memoryview]) -> None:
        start, into = part
        if reader.source.fill(start, into) != len(into):
            raise reader.corrupt("the file has become shorter", start)

    # Threads cost more than they bring where everything is one or two requests.
    if parallel and sum(len(into) for _, into in parts) > 2 * _PART_BYTES:
        with ThreadPoolExecutor(min(_THREADS_MAX, len(parts))) as pool:
            for _ in pool.map(fill, parts):
                pass
    else:
        for part in parts:
            fill(part)
