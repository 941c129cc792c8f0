"""A target meets what another library stored: differences by key path, then leaves."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._structure import flatten, key_paths, rebuild
from .mistake import mismatch

#: From a data type's kind to its rank: a cast up the ranks or within one loses at most precision.
_RANKS = {"bool": 0, "uint": 1, "int": 2, "float": 3, "complex": 4}


@dataclass(frozen=True)
class Stored:
    """What a stored leaf is: `kind` is array, scalar, str, bytes, or key."""

    kind: str
    shape: tuple[int, ...] = ()
    dtype: Any = None

    def __str__(self) -> str:
        if self.kind in ("str", "bytes"):
            return self.kind
        return f"{self.kind} {self.dtype}{list(self.shape)}"


def texts(path: Any) -> tuple[str, ...]:
    """A key path of JAX's or of ours as plain text, key by key, as Orbax and Flax have it."""
    return tuple(_text(key) for key in path)


def _text(key: Any) -> str:
    if isinstance(key, (str, int)):
        return str(key)
    for name in ("key", "idx", "name", "position"):
        value = getattr(key, name, None)
        if value is not None and not callable(value):
            return str(value)
    return str(key)


def described(value: Any) -> Stored:
    """What a leaf in memory is, as if it were stored."""
    if isinstance(value, (str, bytes)):
        return Stored(type(value).__name__)
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return Stored("scalar", (), type(value).__name__)
    if str(dtype).startswith("key<"):
        return Stored("key", tuple(value.shape), dtype)
    return Stored("array", tuple(value.shape), dtype)


def compare(
    stored: Mapping[tuple[str, ...], Stored], target: Any, path: str, item: str, cast: str
) -> None:
    """Passes where `target` has the structure and shapes of what is stored.

    Raises:
        TreeMismatch: with every difference by its key path.
    """
    wanted = targets(target)
    found: list[tuple[str, str]] = []
    for keys in sorted(stored.keys() - wanted.keys()):
        found.append(("/".join(keys), f"stored ({stored[keys]}), not in the target"))
    for keys in sorted(wanted.keys() - stored.keys()):
        found.append(("/".join(keys), f"in the target ({described(wanted[keys])}), not stored"))
    for keys in sorted(wanted.keys() & stored.keys()):
        what = _difference(stored[keys], wanted[keys], cast)
        if what is not None:
            found.append(("/".join(keys), what))
    if found:
        raise mismatch(found, path=path, item=item or "(root)")


def targets(target: Any) -> dict[tuple[str, ...], Any]:
    """The leaves of a target by key path."""
    node, leaves = flatten(target)
    return {texts(keys): leaf for keys, leaf in zip(key_paths(node), leaves, strict=True)}


def _difference(stored: Stored, leaf: Any, cast: str) -> str | None:
    if leaf is ...:
        return None
    wanted = described(leaf)
    if wanted.kind in ("str", "bytes") or stored.kind in ("str", "bytes"):
        return None if wanted.kind == stored.kind else f"stored {stored}, target {wanted}"
    if wanted.kind == "key":
        return None if stored.kind == "key" else f"stored {stored}, target {wanted}"
    if stored.kind == "key":
        return f"stored {stored}, target {wanted}"
    if wanted.shape != stored.shape:
        return f"stored {stored}, target {wanted}"
    if cast == "same_kind" and not _same_kind(stored.dtype, wanted.dtype):
        return f"stored {stored.dtype}, target {wanted.dtype}: not of the same kind"
    return None


def _same_kind(source: Any, wanted: Any) -> bool:
    first, second = _rank(source), _rank(wanted)
    return first is None or second is None or first <= second


def _rank(dtype: Any) -> int | None:
    text = str(dtype)
    if text.startswith("bfloat"):
        return _RANKS["float"]
    return next((rank for kind, rank in _RANKS.items() if text.startswith(kind)), None)


def fit(tree: Any, target: Any, path: str, *, strict: bool, cast: str) -> Any:
    """The leaves of `tree` in the containers of `target`, as the target's leaves ask for them.

    Not strict: shapes and data types are as stored, and stored leaves that the target lacks are
    left out.

    Raises:
        TreeMismatch: the target has leaves that are not stored, or, if strict, other shapes or
            fewer leaves.
    """
    have = targets(tree)
    node, leaves = flatten(target)
    paths = [texts(keys) for keys in key_paths(node)]
    have = _joined_if_flat(have, paths)
    stored = {keys: described(value) for keys, value in have.items()}
    if strict:
        compare(stored, target, path, "", cast)
    missing = [("/".join(keys), "in the target, not stored") for keys in paths if keys not in have]
    if missing:
        raise mismatch(missing, path=path)
    values = [
        _like(have[keys], leaf) if strict else have[keys]
        for keys, leaf in zip(paths, leaves, strict=True)
    ]
    return rebuild(target, values)


def _joined_if_flat(
    have: dict[tuple[str, ...], Any], paths: list[tuple[str, ...]]
) -> dict[tuple[str, ...], Any]:
    """Names such as `h.0.kernel` under the target's nested key paths that they stand for."""
    if any(len(keys) != 1 for keys in have) or all(len(keys) == 1 for keys in paths):
        return have
    by_name = {".".join(keys): keys for keys in paths}
    return {by_name.get(keys[0], keys): value for keys, value in have.items()}


def _like(value: Any, leaf: Any) -> Any:
    import numpy as np

    if leaf is ... or isinstance(leaf, (str, bytes)) or described(leaf).kind == "key":
        return value
    if isinstance(leaf, (bool, int, float, complex)) and not isinstance(leaf, np.generic):
        return type(leaf)(np.asarray(value).item())
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        return jax.device_put(np.asarray(value).astype(leaf.dtype), leaf.sharding)
    made = np.asarray(value).astype(leaf.dtype, copy=False)
    return made[()] if isinstance(leaf, np.generic) else made
