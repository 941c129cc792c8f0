"""Trees and comparisons that several tests share."""

from __future__ import annotations

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Pair = collections.namedtuple("Pair", "x y")
Nothing = collections.namedtuple("Nothing", "")


def state() -> dict[str, Any]:
    """Arrays of JAX and NumPy, scalars and nested containers that Orbax saves, too."""
    return {
        "params": {"w": jnp.arange(6.0).reshape(2, 3), "b": np.arange(4, dtype=np.int32)},
        "half": jnp.arange(4, dtype=jnp.bfloat16),
        "layers": [jnp.ones(3), np.full((2, 2), 7.0)],
        "pair": (1, 2.5),
        "step": 7,
        "lr": 0.125,
        "done": True,
    }


def kinds(tree: Any) -> Any:
    """Each leaf as (type, dtype, shape, values): equal where two restores gave the same."""

    def kind(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return "key", str(leaf.dtype), np.asarray(jax.random.key_data(leaf)).tolist()
            name = "jax"
        elif isinstance(leaf, np.ndarray):
            name = "numpy"
        else:
            return type(leaf).__name__, leaf
        values = np.asarray(leaf).astype(np.float64).tolist()
        return name, str(leaf.dtype), tuple(leaf.shape), values

    return jax.tree.map(kind, tree)
