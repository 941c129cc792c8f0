"""States to save, and what it means that two are the same."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from flax import struct
from flax.training import train_state

Pair = collections.namedtuple("Pair", "first second")


@struct.dataclass
class Model:
    params: Any
    batch_stats: Any


@struct.dataclass
class SmallModel:
    params: Any


@struct.dataclass
class Labelled:
    params: Any
    name: str = struct.field(pytree_node=False)


def trained(value: float = 1.0) -> train_state.TrainState:
    params = {"dense": {"kernel": jnp.full((4, 3), value), "bias": jnp.zeros(3, jnp.bfloat16)}}
    state = train_state.TrainState.create(apply_fn=_apply, params=params, tx=_ADAM)
    return state.apply_gradients(grads=params)


def _apply(*_):
    return 0


_ADAM = optax.chain(optax.clip(1.0), optax.adamw(1e-3))

#: By name; each is saved and restored by both libraries.
STATES = {
    "dict": {"w": np.arange(6.0).reshape(2, 3), "b": np.arange(3, dtype=np.int8)},
    "nested": {"a": {"b": {"c": np.ones(2)}}, "a.b": np.zeros(1), "empty": {}},
    "lists": {"xs": [np.ones(1), [2, 3.5]], "ys": (1, (2, np.zeros(2)))},
    "int keys": {1: np.ones(1), 2: {3: np.zeros(1)}},
    "named tuple": Pair(np.ones(2), {"x": Pair(1, 2)}),
    "scalars": {"i": 2**60, "n": -7, "f": 0.1, "t": True, "c": 1 + 2j, "inf": float("inf")},
    "large integer": {"u": 2**64 - 1},
    "text and bytes": {"s": "grüße", "b": b"\x00\xff", "empty": "", "none": None},
    "numpy scalars": {
        "f": np.float32(1.5),
        "i": np.int16(-3),
        "t": np.bool_(True),
        "b": ml_dtypes.bfloat16(2.5),
        "c": np.complex64(1 + 2j),
    },
    "no dimensions": {"np": np.array(3.0), "jax": jnp.float32(4.0)},
    "zero size": {"a": np.zeros((0, 4)), "b": np.zeros((3, 0, 2), np.int32)},
    "small types": {
        "bf": jnp.ones((2, 2), jnp.bfloat16),
        "f8": np.ones(3, ml_dtypes.float8_e4m3fn),
        "f8b": np.ones(3, ml_dtypes.float8_e5m2),
        "i4": np.array([-8, 7], ml_dtypes.int4),
        "u4": np.array([0, 15], ml_dtypes.uint4),
        "h": np.ones(2, np.float16),
    },
    "complex": {"c": np.array([1 + 2j], np.complex64), "d": np.array([[3j]])},
    "raw key": {"rng": jax.random.PRNGKey(0)},
    "frozen": __import__("flax").core.freeze({"params": {"w": jnp.ones((2, 2))}}),
    "dataclass": Model({"w": jnp.ones(2)}, {"mean": jnp.zeros(2)}),
    "static field": Labelled({"w": jnp.ones(2)}, "name"),
    "optax": _ADAM.init({"w": jnp.ones((2, 3))}),
    "train state": trained(),
    "array": np.arange(12).reshape(3, 4),
    "number": 5,
    "nothing": None,
    "fortran order": {"w": np.asfortranarray(np.arange(6).reshape(2, 3)), "v": np.arange(9)[::2]},
}


def as_numpy(tree: Any) -> Any:
    """A tree with NumPy arrays for JAX's."""
    return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


def assert_same(a: Any, b: Any, path: str = "") -> None:
    """Values, types, dtypes and shapes."""
    assert type(a) is type(b), (path, type(a), type(b))
    if isinstance(a, dict):
        assert set(a) == set(b), path
        for key in a:
            assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, np.ndarray | np.generic | jax.Array):
        assert a.dtype == b.dtype and a.shape == b.shape, (path, a.dtype, b.dtype, a.shape, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for at, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}/{at}")
    elif dataclass_fields := getattr(a, "__dataclass_fields__", None):
        for name in dataclass_fields:
            assert_same(getattr(a, name), getattr(b, name), f"{path}.{name}")
    elif hasattr(a, "items"):
        assert_same(dict(a.items()), dict(b.items()), path)
    else:
        assert a == b, (path, a, b)
