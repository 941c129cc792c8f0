"""Arrays of several processes in Flax's files: a text stands for each, its chunks lie beside the
file.

```text
  checkpoint_5                    msgpack; at the key path a text "//GDAPlaceholder:params/w"
  checkpoint_5_gda/params/w/      the array: Zarr v2 or v3, or a key of an OCDBT database above
```

They are read by TensorStore, which whoever wrote them had. With a target they come back as JAX
arrays with its sharding and the stored shape: so the target says mesh and axes only.
"""

from __future__ import annotations

import os
from typing import Any

from .._errors import Corrupt, NotFound, Unsupported
from .._msgpack import PLACEHOLDER

_ARRAYS = "_gda"


def is_placeholder(value: Any) -> bool:
    """Whether a text stands for an array of several processes."""
    return isinstance(value, str) and value.startswith(PLACEHOLDER)


def read_all(state: Any, path: str) -> Any:
    """The state dict of the file at `path` with all such arrays read, as NumPy arrays; others are
    as they were.
    """
    if is_placeholder(state):
        return _store(path, state).read().result()
    if isinstance(state, dict):
        return {key: read_all(value, path) for key, value in state.items()}
    return state


def restore(
    state: Any, target: Any, path: str, step: Any, gda_manager: Any, allow_partial: bool
) -> Any:
    """The state dict with those arrays read that the target has, by Flax's rules.

    Flax wants arrays of several processes in the target; here any JAX array or `ShapeDtypeStruct`
    with a sharding will do, so that one process can read what many wrote.

    Raises:
        MPACheckpointingRequiredError: there are such arrays and no `gda_manager`.
        MPARestoreTargetRequiredError: the target has no array there, and `allow_partial` is not
            set.
    """
    from flax import errors, serialization

    found = list(_placeholders(state, ()))
    if not found:
        return state
    if gda_manager is None:
        raise errors.MPACheckpointingRequiredError(path, step)
    if target is None and not allow_partial:
        raise errors.MPARestoreTargetRequiredError(path, step)
    gda_manager.wait_until_finished()
    asked = serialization.to_state_dict(target)
    arrays = {}
    for keys, text in found:
        sharding = _sharding(asked, keys)
        if sharding is not None:
            arrays[keys] = _array(_store(path, text), sharding)
        elif not allow_partial:
            raise errors.MPARestoreTargetRequiredError(path, step, keys or None)
    return _replaced(state, arrays, ())


def _placeholders(state: Any, keys: tuple[str, ...]):
    if is_placeholder(state):
        yield keys, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from _placeholders(value, (*keys, key))


def _replaced(state: Any, arrays: dict[tuple[str, ...], Any], keys: tuple[str, ...]) -> Any:
    if keys in arrays:
        return arrays[keys]
    if isinstance(state, dict):
        return {key: _replaced(value, arrays, (*keys, key)) for key, value in state.items()}
    return state


def _sharding(asked: Any, keys: tuple[str, ...]) -> Any:
    """The sharding of the target's leaf at a key path; None where it has no array with one."""
    import jax

    for key in keys:
        if not isinstance(asked, dict) or key not in asked:
            return None
        asked = asked[key]
    return asked.sharding if isinstance(asked, jax.Array | jax.ShapeDtypeStruct) else None


def _array(store: Any, sharding: Any) -> Any:
    """A JAX array of the stored shape: each device gets its part, each part is read once."""
    import jax

    parts: dict[Any, Any] = {}

    def part(index: tuple[slice, ...]) -> Any:
        key = tuple((piece.start, piece.stop) for piece in index)
        if key not in parts:
            parts[key] = store[index].read().result() if index else store.read().result()
        return parts[key]

    return jax.make_array_from_callback(tuple(store.shape), sharding, part)


def _store(path: str, text: str) -> Any:
    """Opens the array that a text stands for.

    Raises:
        NotFound: it is not there.
        Corrupt: the text names a place outside the checkpoint.
        Unsupported: TensorStore is not installed.
    """
    name = text[len(PLACEHOLDER) :]
    segments = name.split("/") if name else []
    if name.startswith("/") or any(segment in ("..", ".") for segment in segments):
        raise Corrupt("an array beside the file is named outside of it", context={"name": name})
    try:
        import tensorstore as ts
    except ImportError as error:
        raise Unsupported(
            "arrays that several processes wrote are read by TensorStore, which is not installed",
            context={"path": path + _ARRAYS},
            hint="pip install tensorstore",
        ) from error
    for spec in _specs(os.path.abspath(path) + _ARRAYS, segments):
        try:
            return ts.open(spec, open=True, read=True).result()
        except ValueError as error:
            if "NOT_FOUND" not in str(error):
                raise Corrupt(
                    f"an array beside the file cannot be read: {error}", context={"array": name}
                ) from error
    raise NotFound("an array beside the file is not there", context={"path": path, "array": name})


def _specs(root: str, segments: list[str]):
    """Where an array may be: in files of its own, as JAX wrote it for Flax, or in an OCDBT
    database.
    """
    directory = os.path.join(root, *segments)
    drivers = ("zarr3", "zarr")
    for driver in drivers:
        yield {"driver": driver, "kvstore": {"driver": "file", "path": directory}}
    if segments and os.path.exists(os.path.join(os.path.dirname(directory), "manifest.ocdbt")):
        base = {"driver": "file", "path": os.path.dirname(directory)}
        for driver in drivers:
            yield {
                "driver": driver,
                "kvstore": {"driver": "ocdbt", "base": base, "path": segments[-1]},
            }
