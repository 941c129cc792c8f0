"""Safetensors files as a source: a flat dict of tensors, read by ranges.

Each process reads the bytes of the shards that its devices hold, and no others. Ranges of one file
are joined to blocks as `ctx.safetensors` allows; blocks are read in pieces, several at a time,
within the byte budget of `ctx.memory.read_concurrent_bytes`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from milepost._foreign.safetensors import _TYPES
from milepost.orbax.v1._context import Context
from milepost.orbax.v1._items import STATE
from milepost.orbax.v1.errors import InvalidLayoutError, MissingCheckpointError
from milepost.orbax.v1.path import is_local

_SUFFIX = ".safetensors"
_HEADER_BYTES_MAX = 100_000_000
_READ_BYTES = 128 << 20
_BUDGET_BYTES = 2 << 30
# Up to this many reads of a file need no joining over gaps.
_READS_MAX = 1024
# Gaps up to a page are cheaper to read than to skip.
_GAP_BYTES = 4096
_THREADS = 8


@dataclasses.dataclass(frozen=True)
class _Tensor:
    file: str
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclasses.dataclass
class _Run:
    """Bytes of a file that go to one place: `target` is a flat view of uint8."""

    offset: int
    target: np.ndarray

    @property
    def end(self) -> int:
        return self.offset + self.target.nbytes


class SafetensorsSource:
    """One file, or all `*.safetensors` of a directory, as one tree."""

    has_names = False
    init_timestamp_nsecs = None

    def __init__(self, location: str):
        self.location = location
        self._files = _files(location)
        self._headers = {file: _header(file) for file in self._files}

    @property
    def custom_metadata(self) -> dict[str, Any] | None:
        found: dict[str, Any] = {}
        for header, _ in self._headers.values():
            found.update(header.get("__metadata__") or {})
        return found

    @property
    def commit_timestamp_nsecs(self) -> int | None:
        return max((os.stat(file).st_mtime_ns for file in self._files), default=None)

    def names(self) -> list[str]:
        return [STATE]

    def is_tree(self, name: str) -> bool:
        return True

    def describe(self, name: str, context: Context) -> Any:
        import jax

        return {
            name: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
            for name, tensor in self._tensors().items()
        }

    def load(self, name: str, abstract: Any, context: Context) -> dict[str, Any]:
        tensors = self._tensors()
        wanted = _wanted(abstract, tensors)
        runs: dict[str, list[_Run]] = {file: [] for file in self._files}
        builds: dict[str, Callable[[], Any]] = {}
        for key, leaf in wanted.items():
            tensor = tensors[key]
            plan = _plan_whole if leaf is None else _plan_sharded
            builds[key] = plan(key, tensor, leaf, runs[tensor.file])
        _read_all(runs, context)
        return {key: builds[key]() for key in wanted}

    def _tensors(self) -> dict[str, _Tensor]:
        """All tensors by name.

        Raises:
          ValueError: Two files have a tensor of the same name, or a file is cut short.
        """
        found: dict[str, _Tensor] = {}
        for file, (header, start) in self._headers.items():
            size = os.stat(file).st_size
            for name, info in header.items():
                if name == "__metadata__":
                    continue
                if name in found:
                    raise ValueError(
                        f"Duplicate tensor {name} found in multiple files: {found[name].file} and "
                        f"{file}"
                    )
                found[name] = tensor = _tensor(file, name, info, start)
                if tensor.end > size:
                    raise ValueError(
                        f"SafeTensors file {file} is truncated: tensor {name} ends at byte "
                        f"{tensor.end}, the file has {size}"
                    )
        return found


def _files(location: str) -> list[str]:
    start = f"Could not recognize the checkpoint at {location} as a valid Safetensors checkpoint"
    if not is_local(location):
        raise NotImplementedError(f"{start}: only local files are read; copy them first")
    if os.path.isfile(location):
        if location.endswith(_SUFFIX):
            return [location]
        raise InvalidLayoutError(f"{start}: the file's name does not end in {_SUFFIX!r}.")
    if not os.path.isdir(location):
        raise MissingCheckpointError(f"{start}: nothing is there.")
    names = sorted(name for name in os.listdir(location) if name.endswith(_SUFFIX))
    if not names:
        raise InvalidLayoutError(f"{start}: the directory has no {_SUFFIX!r} file.")
    return [os.path.join(location, name) for name in names]


def _header(path: str) -> tuple[dict[str, Any], int]:
    """Returns the header and the offset of the first tensor."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _HEADER_BYTES_MAX:
            raise ValueError(f"Could not read header of {path}: it claims {size} bytes")
        text = file.read(size)
    if len(text) != size or size == 0:
        raise ValueError(f"Could not read header content from {path}: the file is cut short")
    try:
        return json.loads(text), 8 + size
    except ValueError as error:
        raise ValueError(f"Could not read header of {path}: it is no JSON") from error


def _tensor(file: str, name: str, info: Mapping[str, Any], start: int) -> _Tensor:
    code = info["dtype"]
    if code not in _TYPES:
        raise ValueError(f"Unsupported dtype in SafeTensors header: {code} of {name} in {file}")
    dtype = _numpy_dtype(_TYPES[code])
    shape = tuple(int(size) for size in info["shape"])
    begin, end = (start + int(offset) for offset in info["data_offsets"])
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"tensor {name} of {file} has {end - begin} bytes, not those of its shape")
    return _Tensor(file, dtype, shape, begin, end)


def _numpy_dtype(name: str) -> np.dtype:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


def _wanted(abstract: Any, tensors: Mapping[str, _Tensor]) -> dict[str, Any]:
    if abstract is None:
        return dict.fromkeys(tensors)
    flat = isinstance(abstract, Mapping) and not any(
        isinstance(leaf, (Mapping, list, tuple)) for leaf in abstract.values()
    )
    if not flat:
        raise ValueError("The PyTree is not a flat dictionary: safetensors hold tensors by name")
    missing = [name for name in abstract if name not in tensors]
    if missing:
        raise KeyError(f"Tensor {missing[0]!r} not found in Safetensors checkpoint.")
    return {name: leaf for name, leaf in abstract.items() if leaf is not ...}


def _buffer(shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    flat = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    return flat.view(dtype).reshape(shape), flat


def _plan_whole(name: str, tensor: _Tensor, leaf: None, runs: list[_Run]) -> Callable[[], Any]:
    array, flat = _buffer(tensor.shape, tensor.dtype)
    runs.append(_Run(tensor.begin, flat))
    return lambda: array


def _plan_sharded(name: str, tensor: _Tensor, leaf: Any, runs: list[_Run]) -> Callable[[], Any]:
    """Plans the runs of the shards that this process' devices hold."""
    shape = getattr(leaf, "shape", None)
    if shape is not None and tuple(shape) != tensor.shape:
        raise ValueError(
            f"Shape mismatch: abstract state has {tuple(shape)}, the checkpoint has "
            f"{tensor.shape}. tensor=`{name}`"
        )
    named = getattr(leaf, "dtype", None)
    dtype = tensor.dtype if named is None else np.dtype(named)
    if isinstance(leaf, np.ndarray) or (isinstance(leaf, type) and issubclass(leaf, np.ndarray)):
        build = _plan_whole(name, tensor, None, runs)
        return lambda: build().astype(dtype, copy=False)
    import jax

    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    shards: dict[tuple[tuple[int, int], ...], np.ndarray] = {}
    for index in sharding.addressable_devices_indices_map(tensor.shape).values():
        box = tuple(part.indices(size)[:2] for part, size in zip(index, tensor.shape))
        if box not in shards:
            array, flat = _buffer(tuple(stop - start for start, stop in box), tensor.dtype)
            _append_runs(tensor, box, flat, runs)
            shards[box] = array

    def part_of(index: tuple[slice, ...]) -> np.ndarray:
        box = tuple(part.indices(size)[:2] for part, size in zip(index, tensor.shape))
        return shards[box].astype(dtype, copy=False)

    return lambda: jax.make_array_from_callback(tensor.shape, sharding, part_of)


def _append_runs(
    tensor: _Tensor, box: tuple[tuple[int, int], ...], flat: np.ndarray, runs: list[_Run]
) -> None:
    """Appends the contiguous byte ranges of a box of the tensor, in C order."""
    whole = len(box)
    while whole and box[whole - 1] == (0, tensor.shape[whole - 1]):
        whole -= 1
    if flat.nbytes == 0:
        return
    strides = [tensor.dtype.itemsize] * len(box)
    for axis in range(len(box) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * tensor.shape[axis + 1]
    outer = [range(start, stop) for start, stop in box[: max(whole - 1, 0)]]
    length = flat.nbytes // math.prod(len(one) for one in outer)
    first = box[whole - 1][0] * strides[whole - 1] if whole else 0
    place = 0
    for index in itertools.product(*outer):
        offset = sum(number * stride for number, stride in zip(index, strides))
        runs.append(_Run(tensor.begin + offset + first, flat[place : place + length]))
        place += length


def _read_all(runs: Mapping[str, list[_Run]], context: Context) -> None:
    options, budget = context.safetensors, context.memory.read_concurrent_bytes
    if options.read_chunk_bytes is not None and options.read_chunk_bytes <= 0:
        raise ValueError(f"read_chunk_bytes must be positive, got {options.read_chunk_bytes}.")
    ratio = options.max_over_read_ratio
    if ratio is not None and ratio < 1.0:
        raise ValueError(f"max_over_read_ratio must be >= 1.0, got {ratio}.")
    budget = _BUDGET_BYTES if budget is None else int(budget)
    piece = min(options.read_chunk_bytes or _READ_BYTES, budget)
    # What is in flight is at most one piece a thread.
    threads = max(1, min(_THREADS, budget // piece))
    with concurrent.futures.ThreadPoolExecutor(threads, "milepost-safetensors") as pool:
        pending = []
        for file, wanted in runs.items():
            for block in blocks(wanted, ratio):
                for start in range(block[0].offset, max(run.end for run in block), piece):
                    pending.append(pool.submit(_read_piece, file, start, start + piece, block))
        for future in pending:
            future.result()


def blocks(runs: list[_Run], ratio: float | None) -> list[list[_Run]]:
    """Joins runs to blocks that are read as one span each.

    Args:
      runs: Of one file.
      ratio: Bytes read for one wanted; None: 1.0 up to 1,024 reads, else without limit.
    """
    ordered = sorted((run for run in runs if run.target.nbytes), key=lambda run: run.offset)
    if ratio is None:
        gaps = sum(b.offset - a.end > _GAP_BYTES for a, b in zip(ordered, ordered[1:]))
        ratio = 1.0 if gaps < _READS_MAX else math.inf
    found: list[list[_Run]] = []
    begin = end = needed = 0
    for run in ordered:
        span = max(end, run.end) - begin
        joins = run.offset - end <= _GAP_BYTES or span <= ratio * (needed + run.target.nbytes)
        if found and joins:
            found[-1].append(run)
            end, needed = max(end, run.end), needed + run.target.nbytes
        else:
            found.append([run])
            begin, end, needed = run.offset, run.end, run.target.nbytes
    return found


def _read_piece(file: str, start: int, stop: int, block: list[_Run]) -> None:
    """Reads `[start, stop)` of a block and copies what the runs want of it."""
    parts = [run for run in block if run.offset < stop and run.end > start]
    if not parts:
        return
    begin = max(start, parts[0].offset)
    end = min(stop, max(run.end for run in parts))
    descriptor = os.open(file, os.O_RDONLY)
    try:
        if len(parts) == 1:
            run = parts[0]
            _read_into(descriptor, run.target[begin - run.offset : end - run.offset], begin, file)
            return
        span = np.empty(end - begin, np.uint8)
        _read_into(descriptor, span, begin, file)
    finally:
        os.close(descriptor)
    for run in parts:
        low, high = max(run.offset, begin), min(run.end, end)
        run.target[low - run.offset : high - run.offset] = span[low - begin : high - begin]


def _read_into(descriptor: int, target: np.ndarray, offset: int, file: str) -> None:
    view = memoryview(target)
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise ValueError(f"SafeTensors file {file} is truncated at byte {offset + done}")
        done += count
