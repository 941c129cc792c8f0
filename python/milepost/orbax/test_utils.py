"""What Orbax's guides and tests take from `orbax.checkpoint.test_utils`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import checkpoint_args, multihost, type_handlers
from ._leaf_args import SingleReplicaArrayRestoreArgs
from ._leaf_requests import is_jax_array, is_prng_key
from ._run_path import path_of, url_of
from ._targets import flatten_target
from .handlers.base import AsyncCheckpointHandler
from .handlers.pytree import PyTreeRestoreArgs, PyTreeSaveArgs
from .multihost import sync_global_processes

__all__ = [
    "ErrorCheckpointHandler",
    "ErrorRestoreArgs",
    "ErrorSaveArgs",
    "apply_function",
    "assert_array_equal",
    "assert_tree_equal",
    "assert_tree_same_structure",
    "create_sharded_array",
    "create_single_replica_restore_args",
    "empty_directory",
    "erase_and_create_empty",
    "is_leaf",
    "print_directory",
    "register_type_handler",
    "replicate_sharded_array",
    "setup_pytree",
    "setup_sharded_pytree",
    "sync_global_processes",
]


def erase_and_create_empty(directory: Any) -> Any:
    """Removes a local directory with all that is in it, makes it anew, and returns its path. In
    several processes all call it: one does it, and it is done when they return.

    Raises:
        ValueError: Not a local path, or a path that nobody means: the root, or the home directory.
    """
    url = url_of(directory)
    if "://" in url:
        raise ValueError(f"{url} is not a local path")
    path = Path(url)
    if path in (Path(path.anchor), Path.home()):
        raise ValueError(f"{path} is not erased")

    def erase() -> None:
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)

    together = multihost.together(f"{url}#erase") or None
    erase() if together is None else together.first(erase)
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
    """Whether a value is an array, a scalar, a text, or a mesh or partition of `setup_sharded_pytree`."""
    named = type(x).__name__ in ("Mesh", "PartitionSpec")
    return named or isinstance(x, (np.ndarray, int, float, str)) or is_jax_array(x)


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


def create_single_replica_restore_args(arr: Any, mesh: Any, pspec: Any) -> Any:
    """RestoreArgs by which one replica reads an array for all."""
    import jax

    return SingleReplicaArrayRestoreArgs(
        sharding=jax.sharding.NamedSharding(mesh, pspec), global_shape=arr.shape, dtype=arr.dtype
    )


def setup_pytree(add: int = 0) -> Any:
    """A small tree of NumPy arrays; `add` is added to each."""
    tree = {
        "a": np.arange(8),
        "b": np.arange(16) * 2,
        "c": {"a": np.arange(8).reshape(2, 4) * 3, "e": np.arange(16).reshape(4, 4) * 4},
    }
    return apply_function(tree, lambda leaf: leaf + add)


def setup_sharded_pytree(
    pytree: Any = None, reverse_devices: bool = False, devices: Any = None
) -> tuple[Any, Any, Any]:
    """`setup_pytree` over all devices: the tree of arrays, of their meshes, of their partitions."""
    import jax

    listed = list(jax.devices() if devices is None else devices)
    line = np.asarray(listed[::-1] if reverse_devices else listed)
    axis = jax.sharding.PartitionSpec
    flat = jax.sharding.Mesh(line, ("x",))
    square = jax.sharding.Mesh(line.reshape(2, len(line) // 2), ("x", "y"))
    meshes = {"a": flat, "b": flat, "c": {"a": square, "e": square}}
    axes = {"a": axis(None), "b": axis("x"), "c": {"a": axis("x", "y"), "e": axis("x", "y")}}
    tree = setup_pytree() if pytree is None else pytree
    return jax.tree.map(create_sharded_array, tree, meshes, axes, is_leaf=is_leaf), meshes, axes


def print_directory(directory: Any, level: int = 0) -> None:
    """Logs what is in a directory and below it.

    Raises:
        ValueError: It is no directory.
    """
    path = Path(url_of(directory))
    if not path.is_dir():
        raise ValueError(f"{path} is no directory")
    log = logging.getLogger("milepost.orbax")
    log.info("%s%s/", ".." * level, path if level == 0 else path.name)
    for child in sorted(path.iterdir()):
        if child.is_dir():
            print_directory(child, level + 1)
        else:
            log.info("%s%s", ".." * (level + 1), child.name)


@contextlib.contextmanager
def register_type_handler(ty: Any, handler: Any, func: Any) -> Iterator[None]:
    """Has a handler for a type within the block, and the one before after it."""
    before = type_handlers.get_type_handler(ty)
    type_handlers.register_type_handler(ty, handler, func, override=True)
    try:
        yield
    finally:
        type_handlers.register_type_handler(ty, before, func, override=True)


class ErrorCheckpointHandler(AsyncCheckpointHandler):
    """Saves with another handler, and fails in the background.

    Args:
        handler: The other one.
        executor: A `concurrent.futures.Executor`: it runs what fails, with a SystemError.
    """

    def __init__(self, handler: Any, executor: Any) -> None:
        self._handler = handler
        self._executor = executor

    def save(self, directory: Any, args: ErrorSaveArgs) -> None:
        """Saves, and does not fail."""
        self._handler.save(directory, args=args)

    def restore(self, directory: Any, args: ErrorRestoreArgs) -> Any:
        """Restores."""
        return self._handler.restore(directory, args=args)

    async def async_save(self, directory: Any, args: ErrorSaveArgs) -> list[Any]:
        """Saves; the last of its futures fails."""

        def fail() -> None:
            raise SystemError("this save was to fail")

        started = await self._handler.async_save(directory, args=args)
        return [*(started or []), self._executor.submit(fail)]


@checkpoint_args.register_with_handler(ErrorCheckpointHandler, for_save=True)
@dataclasses.dataclass
class ErrorSaveArgs(PyTreeSaveArgs):
    """What `ErrorCheckpointHandler` saves: as `PyTreeSave`."""


@checkpoint_args.register_with_handler(ErrorCheckpointHandler, for_restore=True)
@dataclasses.dataclass
class ErrorRestoreArgs(PyTreeRestoreArgs):
    """How `ErrorCheckpointHandler` restores: as `PyTreeRestore`."""


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
