"""Handlers of leaf types: Orbax's registry, and the built-in types as entries of it.

Arrays, scalars, text, bytes and PRNG keys are the engine's own; the classes here that stand for
them (`ArrayHandler`, `NumpyHandler`, …) exist to be registered, looked up and configured. A handler
of your own (a `TypeHandler` with `serialize` and `deserialize`) is called for leaves of the type
that
it is registered for: the files it writes are kept in the item.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ._leaf_args import ArrayRestoreArgs, RestoreArgs, SaveArgs, SingleReplicaArrayRestoreArgs
from ._leaf_requests import PLACEHOLDER

__all__ = [
    "PLACEHOLDER",
    "ArrayHandler",
    "ArrayRestoreArgs",
    "NumpyHandler",
    "ParamInfo",
    "RestoreArgs",
    "SaveArgs",
    "ScalarHandler",
    "SingleReplicaArrayHandler",
    "SingleReplicaArrayRestoreArgs",
    "StringHandler",
    "TypeHandler",
    "TypeHandlerRegistry",
    "create_type_handler_registry",
    "get_type_handler",
    "has_type_handler",
    "is_ocdbt_checkpoint",
    "is_placeholder",
    "is_supported_empty_value",
    "is_supported_type",
    "register_standard_handlers_with_options",
    "register_type_handler",
    "supported_types",
]


@dataclasses.dataclass(kw_only=True)
class ParamInfo:
    """Where a handler of yours finds and puts a leaf.

    Attributes:
        name: The leaf's key path, joined with dots as in Orbax.
        parent_dir: The directory that the handler's leaves share.
        path: ``parent_dir / name``.
        keypath: The key path as a tuple of texts.
        skip_deserialize: Always False: a leaf that is not wanted is not asked for.
        value_typestr: The handler's typestr.
        is_ocdbt_checkpoint, use_compression, use_zarr3: Orbax's formats; False here.
    """

    name: str
    parent_dir: Any
    path: Any = None
    keypath: tuple[str, ...] | None = None
    skip_deserialize: bool | None = False
    value_typestr: str | None = None
    is_ocdbt_checkpoint: bool | None = False
    use_compression: bool | None = False
    use_zarr3: bool | None = False


class TypeHandler:
    """Saves and restores leaves of one type. All four methods but `finalize` are to be written."""

    def typestr(self) -> str:
        """The name by which a checkpoint remembers the handler."""
        raise NotImplementedError

    async def metadata(self, infos: Sequence[ParamInfo]) -> Sequence[Any]:
        """A `metadata.Metadata` for each leaf."""
        raise NotImplementedError

    async def serialize(
        self,
        values: Sequence[Any],
        infos: Sequence[ParamInfo],
        args: Sequence[SaveArgs] | None = None,
    ) -> Sequence[Any]:
        """Writes the leaves below ``infos[i].parent_dir``; returns futures (with ``result()``)."""
        raise NotImplementedError

    async def deserialize(
        self, infos: Sequence[ParamInfo], args: Sequence[RestoreArgs] | None = None
    ) -> Sequence[Any]:
        """Reads the leaves back."""
        raise NotImplementedError

    def finalize(self, directory: Any) -> None:
        """Runs once all leaves of the type are written."""


class NativeTypeHandler(TypeHandler):
    """Stands for leaves that the engine saves itself. It is not called.

    Options are those of Orbax's handlers that tune its own writers (replica-parallel slices,
    metadata files, dispatchers): each process of ours writes one replica of its shards once, so
    they select nothing here. An unknown option is a TypeError.
    """

    name = ""
    options: tuple[str, ...] = ()

    def __init__(self, *positional: Any, **options: Any) -> None:
        given = {**dict(zip(self.options, positional)), **options}
        unknown = sorted(set(given) - set(self.options))
        if unknown or len(positional) > len(self.options):
            raise TypeError(f"{type(self).__name__} has no option {unknown or positional}")
        self.given = given

    def typestr(self) -> str:
        """Orbax's name of the type."""
        return self.name


class ArrayHandler(NativeTypeHandler):
    """`jax.Array`."""

    name = "jax.Array"
    options = (
        "metadata_key",
        "primary_host",
        "replica_id",
        "use_replica_parallel",
        "min_slice_bytes_for_replica_parallel",
        "max_replicas_for_replica_parallel",
        "enable_write_sharding_file",
        "array_metadata_store",
        "enable_replica_parallel_separate_folder",
        "dispatcher",
        "callback",
    )


class SingleReplicaArrayHandler(ArrayHandler):
    """`jax.Array`, restored on one replica and broadcast in Orbax.

    Each process of ours reads what its own devices need, each byte once, so nothing is broadcast.
    """

    options = (
        "replica_axis_index",
        "primary_replica_id",
        "broadcast_memory_limit_bytes",
        "broadcast_memory_scaling_factor",
        *ArrayHandler.options,
    )


class NumpyHandler(NativeTypeHandler):
    """`np.ndarray`. It is copied before a save returns, whatever `deepcopy_host_arrays` says."""

    name = "np.ndarray"
    options = ("metadata_key", "ocdbt_process_id", "deepcopy_host_arrays")


class ScalarHandler(NativeTypeHandler):
    """int, float, bool, complex and NumPy scalars."""

    name = "scalar"
    options = ("metadata_key", "ocdbt_process_id")


class StringHandler(NativeTypeHandler):
    """str. `filename` named Orbax's file of texts; ours are leaves."""

    name = "string"
    options = ("filename",)


class TypeHandlerRegistry:
    """Which handler a leaf type has: the newest entry whose test says yes."""

    def __init__(self, *handlers: tuple[Any, TypeHandler]) -> None:
        self._entries: list[tuple[Any, Callable[[Any], bool], TypeHandler]] = []
        for kind, handler in handlers:
            self.add(kind, handler)

    def add(
        self,
        ty: Any,
        handler: TypeHandler,
        func: Callable[[Any], bool] | None = None,
        override: bool = False,
        ignore_warnings: bool = False,
    ) -> None:
        """Registers a handler for a type.

        Args:
            ty: The type.
            handler: Its handler.
            func: Tells of a type whether the entry is for it. None: subclasses of `ty`.
            override: Replace an entry for the type.
            ignore_warnings: Orbax's word for silence; there is nothing to be silent about.

        Raises:
            ValueError: The type has a handler and `override` is False.
        """
        if func is None:
            func = lambda other: isinstance(other, type) and issubclass(other, ty)  # noqa: E731
        known = [entry for entry in self._entries if entry[0] is ty or entry[1](ty)]
        if known and not override:
            raise ValueError(f'A TypeHandler for "{ty}" is already registered.')
        self._entries = [entry for entry in self._entries if entry[0] is not ty]
        self._entries.insert(0, (ty, func, handler))

    def get(self, ty: Any) -> TypeHandler:
        """The handler of a type, or of a typestr.

        Raises:
            ValueError: None is registered.
        """
        found = self._find(ty)
        if found is None:
            raise ValueError(f'Unknown type: "{ty}". Must register a TypeHandler.')
        return found

    def has(self, ty: Any) -> bool:
        """Whether a type has a handler."""
        return self._find(ty) is not None

    def supported_types(self) -> list[Any]:
        """The types that were registered."""
        return [entry[0] for entry in self._entries]

    def custom(self) -> list[TypeHandler]:
        """The handlers that are not the engine's own."""
        return [entry[2] for entry in self._entries if not is_native(entry[2])]

    def _find(self, ty: Any) -> TypeHandler | None:
        for _, test, handler in self._entries:
            if isinstance(ty, str):
                if handler.typestr() == ty:
                    return handler
            elif test(ty):
                return handler
        return None


def is_native(handler: Any) -> bool:
    """Whether leaves of this handler are the engine's: ours, or the installed Orbax's own class."""
    if isinstance(handler, NativeTypeHandler):
        return type(handler).serialize is TypeHandler.serialize
    return type(handler).__module__.startswith("orbax.checkpoint._src.")


def _is_jax_type(kind: Any) -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(kind, type) and issubclass(kind, jax.Array)


def _default_entries(registry: TypeHandlerRegistry, **array_options: Any) -> None:
    scalar, text = ScalarHandler(), StringHandler()
    for kind in (int, float, complex, np.number, np.bool_):
        registry.add(kind, scalar, override=True)
    for kind in (str, bytes):
        registry.add(kind, text, override=True)
    registry.add(np.ndarray, NumpyHandler(), override=True)
    registry.add("jax.Array", ArrayHandler(**array_options), func=_is_jax_type, override=True)


_global = TypeHandlerRegistry()
_default_entries(_global)


def global_registry() -> TypeHandlerRegistry:
    """The registry that is used where a handler names none."""
    return _global


def create_type_handler_registry(*handlers: tuple[Any, TypeHandler]) -> TypeHandlerRegistry:
    """A registry of (type, handler) pairs."""
    return TypeHandlerRegistry(*handlers)


def register_type_handler(
    ty: Any,
    handler: TypeHandler,
    func: Callable[[Any], bool] | None = None,
    override: bool = False,
) -> None:
    """Registers a handler for leaves of a type, for every tree from now on.

    Raises:
        ValueError: The type has one and `override` is False.
    """
    _global.add(ty, handler, func, override)


def register_standard_handlers_with_options(**kwargs: Any) -> None:
    """Registers the built-in types anew; the options are `ArrayHandler`'s."""
    _default_entries(_global, **kwargs)


def get_type_handler(ty: Any) -> TypeHandler:
    """The handler of a type. Raises a ValueError where none is registered."""
    return _global.get(ty)


def has_type_handler(ty: Any) -> bool:
    """Whether a type has a handler."""
    return _global.has(ty)


def supported_types() -> list[Any]:
    """The types that have handlers."""
    return _global.supported_types()


def is_supported_empty_value(value: Any, *_: Any) -> bool:
    """Whether a value is None or an empty container."""
    from ._targets import flatten_target

    return not flatten_target(value).leaves


def is_supported_type(value: Any, *_: Any) -> bool:
    """Whether a leaf can be saved."""
    return is_supported_empty_value(value) or _global.has(type(value))


def is_placeholder(value: Any) -> bool:
    """Whether a leaf is `...`."""
    return value is PLACEHOLDER


def is_ocdbt_checkpoint(path: Any) -> bool:
    """Whether a directory is an Orbax checkpoint in its OCDBT format. Ours never are."""
    import os

    return os.path.exists(os.path.join(os.fspath(path), "manifest.ocdbt"))
