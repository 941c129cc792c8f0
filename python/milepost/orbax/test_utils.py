"""What Orbax's guides and tests take from `orbax.checkpoint.test_utils`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ._leaf_requests import is_jax_array, is_prng_key
from ._run_path import path_of, url_of
from ._targets import flatten_target

__all__ = [
    "apply_function",
    "assert_array_equal",
    "assert_tree_equal",
    "assert_tree_same_structure",
    "create_sharded_array",
    "empty_directory",
    "erase_and_create_empty",
    "is_leaf",
    "replicate_sharded_array",
    "setup_pytree",
]


def erase_and_create_empty(directory: Any) -> Any:
    """Removes a local directory with all that is in it, makes it anew, and returns its path.

    Raises:
        ValueError: Not a local path, or a path that nobody means: the root, or the home directory.
    """
    url = url_of(directory)
    if "://" in url:
        raise ValueError(f"{url} is not a local path")
    path = Path(url)
    if path in (Path(path.anchor), Path.home()):
        raise ValueError(f"{path} is not erased")
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path_of(url)


def empty_directory(directory: Any) -> bool:
    """Removes what is in a directory; whether there was a directory."""
    path = Path(url_of(directory))
    if not path.is_dir():
        return False
    for child in path.iterdir():
        shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
    return True


def is_leaf(x: Any) -> bool:
    """Whether a value is an array, a scalar or a text."""
    return isinstance(x, (np.ndarray, int, float, str)) or is_jax_array(x)


def apply_function(tree: Any, function: Callable[[Any], Any]) -> Any:
    """The tree with the function's value for each leaf."""
    flat = flatten_target(tree)
    return flat.rebuild({path: function(leaf) for path, leaf in flat.leaves.items()})


def create_sharded_array(arr: Any, mesh: Any, mesh_axes: Any) -> Any:
    """A `jax.Array` with a `NamedSharding`."""
    import jax

    return jax.device_put(np.asarray(arr), jax.sharding.NamedSharding(mesh, mesh_axes))


def replicate_sharded_array(arr: Any) -> Any:
    """The array, whole on every device."""
    import jax

    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(np.asarray(arr), sharding)


def setup_pytree(add: int = 0) -> Any:
    """A small tree of NumPy arrays; `add` is added to each."""
    tree = {
        "a": np.arange(8),
        "b": np.arange(16).reshape(4, 4),
        "c": {"a": np.arange(8).reshape(2, 4), "e": np.arange(16)},
    }
    return apply_function(tree, lambda leaf: leaf + add)


def assert_array_equal(testclass: Any, v_expected: Any, v_actual: Any) -> None:
    """Fails the test where two arrays differ in kind, dtype, sharding or content."""
    testclass.assertEqual(is_jax_array(v_expected), is_jax_array(v_actual))
    testclass.assertEqual(v_expected.dtype, v_actual.dtype)
    if is_prng_key(v_expected):
        import jax

        v_expected, v_actual = jax.random.key_data(v_expected), jax.random.key_data(v_actual)
    np.testing.assert_array_equal(np.asarray(v_expected), np.asarray(v_actual))


def assert_tree_equal(testclass: Any, expected: Any, actual: Any) -> None:
    """Fails the test where two trees differ in keys or leaves."""
    first, second = flatten_target(expected), flatten_target(actual)
    testclass.assertSequenceEqual(sorted(first.leaves), sorted(second.leaves))
    for path, leaf in first.leaves.items():
        other = second.leaves[path]
        if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
            assert_array_equal(testclass, leaf, other)
        else:
            testclass.assertEqual(leaf, other, "/".join(path))


def assert_tree_same_structure(testclass: Any, expected: Any, actual: Any) -> None:
    """Fails the test where two trees differ in keys."""
    first, second = flatten_target(expected), flatten_target(actual)
    testclass.assertSequenceEqual(sorted(first.leaves), sorted(second.leaves))
    testclass.assertSequenceEqual(sorted(first.empties), sorted(second.empties))
