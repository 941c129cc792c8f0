"""Runs as other libraries write them: the sources of the tests beside this file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp


def tree(seed: int = 0) -> dict[str, Any]:
    """A tree with every kind of leaf that Orbax stores."""
    rng = np.random.default_rng(seed)
    return {
        "layer0": {"w": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32), "b": rng.normal(size=5)},
        "half": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
        "eighth": jnp.asarray(rng.normal(size=3), jnp.float8_e4m3fn),
        "list": [1.5, (jnp.arange(3) + seed,)],
        "step": 7 + seed,
        "name": "text é",
        "key": jax.random.key(seed),
        "none": None,
        "empty": {},
    }


def as_read(tree: Any) -> Any:
    """What a raw NumPy restore of `tree` gives: tuples are lists, arrays NumPy's, keys JAX's."""
    if isinstance(tree, dict):
        return {key: as_read(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [as_read(value) for value in tree]
    if isinstance(tree, jax.Array) and not jax.dtypes.issubdtype(tree.dtype, jax.dtypes.prng_key):
        return np.asarray(tree)
    return tree


def same(left: Any, right: Any) -> bool:
    """Bit for bit: containers, types of scalars, data types, shapes, bytes."""
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and left.keys() == right.keys()
            and all(same(left[key], right[key]) for key in left)
        )
    if isinstance(left, (list, tuple)):
        return (
            type(left) is type(right)
            and len(left) == len(right)
            and all(same(a, b) for a, b in zip(left, right, strict=True))
        )
    if isinstance(left, jax.Array) and jax.dtypes.issubdtype(left.dtype, jax.dtypes.prng_key):
        return left.dtype == right.dtype and same(
            np.asarray(jax.random.key_data(left)), np.asarray(jax.random.key_data(right))
        )
    if hasattr(left, "dtype"):
        a, b = np.asarray(left), np.asarray(right)
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(left) is type(right) and left == right


def manager_run(root: Path, steps: list[int], **options: Any) -> Path:
    """A run as `ocp.CheckpointManager` writes it, with metrics and metadata at every level."""
    settings = ocp.CheckpointManagerOptions(best_fn=lambda m: m["acc"], **options)
    with ocp.CheckpointManager(root, options=settings, metadata={"lr": 0.1}) as manager:
        for step in steps:
            manager.save(
                step,
                args=ocp.args.PyTreeSave(tree(step), custom_metadata={"leafy": step}),
                metrics={"acc": step / 10},
                custom_metadata={"step": step},
                force=True,
            )
    return root


def plain(path: Path, value: Any, *, ocdbt: bool, zarr3: bool) -> Path:
    """A tree that stands alone."""
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=zarr3)
    with contextlib.closing(ocp.Checkpointer(handler)) as checkpointer:
        checkpointer.save(path, value)
    return path


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below `root` with its time of change and its bytes."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
