"""Reading the leaves of a restore: cast as asked, but never to another whole number in silence.

Orbax casts as NumPy does: 2**40 asked for as int32 is 0. That is also what a target of int64 comes
to where JAX has no 64 bits. Here whole numbers are narrowed only where each of them fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from milepost._restore import Want
from milepost._restore import read as read_wants


def read(index: Any, wants: Sequence[Want], *, progress: bool | None = False) -> list[Any]:
    """The values of leaves, in the order of the wants; one plan, two where integers are narrowed.

    Raises:
        Invalid: A whole number does not fit the data type that it is asked for as; it names the
            leaf, the number and both types.
    """
    narrowed = [_is_narrowed(want, index.leaves[want.position]) for want in wants]
    if not any(narrowed):
        return read_wants(index, wants, cast="unsafe", progress=progress)
    values: list[Any] = [None] * len(wants)
    for flag, cast in ((False, "unsafe"), (True, "same_kind")):
        chosen = [at for at, narrow in enumerate(narrowed) if narrow is flag]
        found = read_wants(index, [wants[at] for at in chosen], cast=cast, progress=progress)
        for at, value in zip(chosen, found, strict=True):
            values[at] = value
    return values


def _is_narrowed(want: Want, leaf: Any) -> bool:
    """Whether whole numbers become those of a type that does not hold all of the stored one's."""
    stored = _whole(leaf.dtype) if leaf.kind in ("array", "int") else None
    if stored is None:
        return False
    asked = _whole(leaf.dtype if want.dtype is None else want.dtype)
    if want.like == "jax" and asked is not None:
        import jax

        asked = jax.dtypes.canonicalize_dtype(asked)
    # The engine has no such check from signed to unsigned ones.
    return (
        asked is not None
        and not np.can_cast(stored, asked)
        and not (stored.kind == "i" and asked.kind == "u")
    )


def _whole(dtype: Any) -> np.dtype | None:
    """The data type as NumPy's, if it is one of its integers."""
    try:
        known = np.dtype(dtype)
    except TypeError:
        return None
    return known if known.kind in "iu" else None
