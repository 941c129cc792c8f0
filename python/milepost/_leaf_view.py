"""One leaf of a checkpoint: indexed as a NumPy array, it reads the part that is asked for."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from ._arrays import as_numpy, as_saved, numpy_dtype


class LeafView:
    """One leaf, not read yet: index it as a NumPy array to read that part only.

    ``view[0:128]`` reads the chunks that hold these rows; ``np.asarray(view)`` and ``view.value()`` read everything.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.kind, self.implementation = inner.kind

    @property
    def path(self) -> str:
        """The text of its key path."""
        return self._inner.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements an axis."""
        return tuple(self._inner.shape)

    @property
    def dtype(self) -> np.dtype:
        """The NumPy data type."""
        return numpy_dtype(self._inner.data_type)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Decoded size in bytes."""
        return self.size * self.dtype.itemsize

    def value(self) -> Any:
        """Reads everything, as it was saved: an array, a number, text, bytes, a PRNG key."""
        whole = self._inner.read([0] * self.ndim, list(self.shape))
        return as_saved(whole, self.kind, self.implementation)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a leaf is read from its store: it cannot be had without a copy")
        array = as_numpy(self._inner.read([0] * self.ndim, list(self.shape)))
        return array if dtype is None else array.astype(dtype, copy=False)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a 0-d leaf has no length")
        return self.shape[0]

    def __getitem__(self, selection: Any) -> Any:
        start, size, rest = _box(selection, self.shape)
        return as_numpy(self._inner.read(start, size))[rest]

    def __repr__(self) -> str:
        return f"<LeafView {self.path or '(root)'}: {self.kind} {self.dtype}{list(self.shape)}>"


def _box(selection: Any, shape: tuple[int, ...]) -> tuple[list[int], list[int], tuple]:
    """The box that holds a NumPy selection, and what is picked from it.

    Raises what NumPy raises: an array of one byte is asked first.
    """
    np.broadcast_to(np.uint8(0), shape)[selection]
    parts = _indices(selection if isinstance(selection, tuple) else (selection,))
    used = sum(map(_takes_axis, parts))
    if not any(part is Ellipsis for part in parts):
        parts.append(Ellipsis)
    start: list[int] = []
    size: list[int] = []
    rest: list[Any] = []
    for part in parts:
        axis = len(start)
        if part is Ellipsis:
            gap = len(shape) - used
            start += [0] * gap
            size += shape[axis : axis + gap]
            rest.append(part)
        elif _takes_axis(part):
            first, length, picked = _axis(part, shape[axis])
            start.append(first)
            size.append(length)
            rest.append(picked)
        else:
            rest.append(part)
    return start, size, tuple(rest)


def _indices(parts: tuple) -> list[Any]:
    """The parts of a selection as slices, integers, integer arrays, and what takes no axis; masks are their places."""
    found: list[Any] = []
    for part in parts:
        if part is None or part is Ellipsis or isinstance(part, slice):
            found.append(part)
        elif isinstance(part, (bool, np.bool_)):
            found.append(bool(part))
        elif hasattr(part, "__index__") and not hasattr(part, "shape"):
            found.append(operator.index(part))
        else:
            chosen = np.asarray(part)
            if chosen.dtype == bool:
                found.extend(chosen.nonzero() if chosen.ndim else (bool(chosen),))
            else:
                found.append(chosen.astype(np.intp) if chosen.size == 0 else chosen)
    return found


def _takes_axis(part: Any) -> bool:
    return not (part is None or part is Ellipsis or isinstance(part, bool))


def _axis(part: Any, length: int) -> tuple[int, int, Any]:
    """First index, length and pick on one axis of a valid part."""
    if isinstance(part, slice):
        places = range(*part.indices(length))
        if not places:
            return 0, 0, slice(None)
        low, high = min(places[0], places[-1]), max(places[0], places[-1])
        stop = places[-1] - low + (1 if places.step > 0 else -1)
        return low, high - low + 1, slice(places[0] - low, stop if stop >= 0 else None, places.step)
    if isinstance(part, int):
        return part % length, 1, 0
    if part.size == 0:
        return 0, 0, part
    chosen = np.where(part < 0, part + length, part)
    low = int(chosen.min())
    return low, int(chosen.max()) - low + 1, chosen - low
