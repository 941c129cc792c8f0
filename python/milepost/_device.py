"""Arrays on accelerators: they come to the host before `save` returns, and are written meanwhile.

A jitted function may take the memory of an array that is donated to it, whoever else holds the array. So a save is
captured when every shard was brought over once. Copies are started ahead, and wait for the writers where much lies on
the host: a large state needs no host memory of its size.

JAX keeps the host copy of an array as long as the array: so each copy is made of an alias of the shard, and dropped with it
after its last element was given.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _milepost
from ._arrays import box_of, data_type_name

AHEAD_BYTES = 128 << 20
HELD_BYTES_MAX = 1 << 30
_POLL_SECONDS = 0.05


class Arrivals:
    """The device arrays of one save."""

    def __init__(self) -> None:
        self._shards: list[_Shard] = []
        self._leaves = 0
        self._held_bytes = 0
        self._changed = threading.Condition()

    def leaf(self, array: Any, is_held: bool = False):
        """A leaf over a device array; ``is_held``: others have the rest, and what counts are the boxes that this process
        is to write."""
        self._leaves += 1
        numbers = _own(array, self._leaves) if is_held else _distinct(array)
        shards = [_Shard(array, number, self._count) for number in numbers]
        self._shards.extend(shards)
        held = _OnDevice(np.dtype(array.dtype), shards)
        name, shape = data_type_name(held.dtype), list(array.shape)
        if not is_held:
            return _milepost.Leaf.provider(name, shape, held.part)
        boxes = [(shard.start_index, shard.shape) for shard in shards]
        return _milepost.Leaf.held_provider(name, shape, boxes, held.part)

    def wait(self, has_ended: Callable[[], bool]) -> None:
        """Returns when every shard was on the host once: from then on the arrays may be donated."""
        # The largest first, as they are written.
        shards = sorted(self._shards, key=lambda shard: -shard.nbytes)
        self._shards = []
        begun, begun_bytes = 0, 0
        for shard in shards:
            while begun < len(shards) and begun_bytes < AHEAD_BYTES:
                shards[begun].start()
                begun_bytes += shards[begun].nbytes
                begun += 1
            if not self._has_room(shard.nbytes, has_ended):
                return
            try:
                shard.bring()
            except Exception:
                # The writers ask for it, too: their failure is the save's, and names the leaf.
                pass
            begun_bytes -= shard.nbytes

    def _has_room(self, nbytes: int, has_ended: Callable[[], bool]) -> bool:
        """Waits for room on the host; False where the save has ended."""
        with self._changed:
            while self._held_bytes and self._held_bytes + nbytes > HELD_BYTES_MAX:
                if has_ended():
                    return False
                self._changed.wait(_POLL_SECONDS)
        return True

    def _count(self, nbytes: int) -> None:
        with self._changed:
            self._held_bytes += nbytes
            self._changed.notify_all()


def _distinct(array: Any) -> list[int]:
    """The numbers of the shards that are no replicas of others."""
    shards = array.addressable_shards
    return [number for number, shard in enumerate(shards) if shard.replica_id == 0]


def _own(array: Any, turn: int) -> list[int]:
    """The numbers of the shards that this process writes: every box has one writer, by turns among those who have it.

    Each process finds the same writers, so that no shard comes to a host which does not write it.
    """
    holders: dict[tuple, list] = {}
    for device, index in array.sharding.devices_indices_map(array.shape).items():
        start, shape = box_of(index, array.shape)
        holders.setdefault((tuple(start), tuple(shape)), []).append(device)
    writers = set()
    for number, box in enumerate(sorted(holders)):
        # The lowest device of each process that has the box.
        by_process = {d.process_index: d for d in sorted(holders[box], key=lambda d: -d.id)}
        processes = sorted(by_process)
        writers.add(by_process[processes[(turn + number) % len(processes)]])
    return [n for n, shard in enumerate(array.addressable_shards) if shard.device in writers]


class _Shard:
    """One shard: on its device, on its way, on the host, given away."""

    def __init__(self, array: Any, number: int, count: Callable[[int], None]) -> None:
        shard = array.addressable_shards[number]
        self._array, self._number, self._count = array, number, count
        self.start_index, self.shape = box_of(shard.index, array.shape)
        self.nbytes = math.prod(self.shape) * np.dtype(array.dtype).itemsize
        self._alias: Any = None
        self._host: np.ndarray | None = None
        self._given, self._was_given = 0, False
        self._own = threading.Lock()

    def start(self) -> None:
        """Starts the copy, unless it is under way or done."""
        with self._own:
            if self._alias is None and self._host is None and not self._was_given:
                self._alias = self._array.addressable_shards[self._number].data
                self._alias.copy_to_host_async()

    def bring(self) -> None:
        """Has it on the host, unless it was written already."""
        with self._own:
            if not self._was_given:
                self._arrived()

    def _arrived(self) -> np.ndarray:
        if self._host is None:
            alias = self._alias
            if alias is None:
                alias = self._array.addressable_shards[self._number].data
            self._host, self._alias = np.asarray(alias), None
            self._count(self.nbytes)
        return self._host

    def give(self, start: Sequence[int], shape: Sequence[int], out: np.ndarray, at: tuple) -> None:
        """Copies a box, in coordinates of the array, to a place of ``out``."""
        with self._own:
            host = self._arrived()
        inner = tuple(
            slice(s - o, s - o + n) for s, o, n in zip(start, self.start_index, shape, strict=True)
        )
        out[at] = host[inner]
        with self._own:
            self._given += math.prod(shape)
            if self._given >= math.prod(self.shape) and self._host is not None:
                # A save that is tried again asks again: it comes over once more, if it was not donated.
                self._host, self._given, self._was_given = None, 0, True
                self._count(-self.nbytes)


class _OnDevice:
    """A device array as the writers see it."""

    def __init__(self, dtype: np.dtype, shards: list[_Shard]) -> None:
        self.dtype, self._shards = dtype, shards

    def part(self, start: tuple[int, ...], shape: tuple[int, ...]) -> Any:
        """The bytes of a box of the array, gathered of the shards that hold a part of it."""
        out = np.empty(shape, self.dtype)
        for shard in self._shards:
            both = _intersection(start, shape, shard.start_index, shard.shape)
            if both is not None:
                first, size = both
                at = tuple(slice(f - s, f - s + n) for f, s, n in zip(first, start, size, strict=True))
                shard.give(first, size, out, at)
        return out.reshape(-1).view(np.uint8) if out.size else b""


def _intersection(
    start: Sequence[int], shape: Sequence[int], other: Sequence[int], size: Sequence[int]
) -> tuple[list[int], list[int]] | None:
    """The box that two boxes share; None where there is none."""
    first = [max(a, b) for a, b in zip(start, other, strict=True)]
    last = [
        min(a + n, b + m) for a, n, b, m in zip(start, shape, other, size, strict=True)
    ]
    extent = [b - a for a, b in zip(first, last, strict=True)]
    return (first, extent) if all(n > 0 for n in extent) else None
