"""PyTreeCheckpointHandler and StandardCheckpointHandler: a pytree as a tree item.

One item kind, two doors. StandardRestore takes its target at its word (structure, shape, dtype,
sharding); PyTreeRestore takes the target for structure only and RestoreArgs for the rest. Either
handler takes the args of both: the args say which door it is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from .. import _leaf_types, _pytree, metadata
from .._targets import flatten_target
from ..checkpoint_args import CheckpointArgs, register_with_handler
from . import base


class TreeHandler(base.NativeHandler):
    """What both handlers share: args of either kind, to a tree item and back."""

    kinds = ("tree",)
    compression: str | None = None
    type_handler_registry: Any = None

    def to_item(self, args: Any) -> tuple[Any, dict[str, Any] | None]:
        """The tree item, and its metadata: `custom_metadata` and the types of its leaves."""
        from .. import _leaf_files

        check_save_args(args, standard=isinstance(args, StandardSaveArgs))
        item, files = _leaf_files.packed(args.item, args.save_args, self.type_handler_registry)
        described = {**_leaf_types.recorded(args.item), **files}
        custom = custom_metadata_of(args)
        if custom:
            described["custom_metadata"] = custom
        return _pytree.tree_item(item, args.save_args, self.compression), described

    def from_item(self, checkpoint: Any, info: Any, args: Any) -> Any:
        """The tree, by the door of the args; without args nested dicts and lists."""
        from .. import _leaf_files

        self.check_kind(checkpoint, info)
        index = checkpoint.index(info.name)
        options = _restore_options(args)
        if _leaf_files.has_files(info.metadata):
            return _leaf_files.restore(index, info.metadata, options, self.type_handler_registry)
        return _pytree.restore_tree(index, metadata=info.metadata, **options)

    def metadata_from(self, checkpoint: Any, info: Any) -> metadata.TreeMetadata:
        """The tree's metadata; no leaf is read."""
        described = _pytree.tree_metadata(
            checkpoint.index(info.name), info.metadata, str(checkpoint.url)
        )
        custom = (info.metadata or {}).get("custom_metadata")
        return metadata.TreeMetadata(described, custom)

    def save_args_of(self, args: Any, name: str) -> Any:
        """Args of either tree handler; the legacy call's are this handler's."""
        if is_tree_save(args):
            return args
        return super().save_args_of(args, name)

    def restore_args_of(self, args: Any, name: str) -> Any:
        """As `save_args_of`; None stays None."""
        if is_tree_restore(args):
            return args
        return super().restore_args_of(args, name)


def _restore_options(args: Any) -> dict[str, Any]:
    if args is None:
        return {}
    item = args.item.tree if isinstance(args.item, metadata.TreeMetadata) else args.item
    options = {"item": item, "exact": getattr(args, "exact", False)}
    standard = args if _is_standard(args) else getattr(args, "standard_target", None)
    if standard is not None:
        return {
            **options,
            "standard": True,
            "partial": standard is not args,
            "strict": standard.strict,
            "fallback_sharding": standard.fallback_sharding,
            "support_layout": standard.support_layout,
        }
    given = args.restore_args
    return {
        **options,
        "restore_args": given.tree if isinstance(given, metadata.TreeMetadata) else given,
        "partial": args.partial_restore,
        "transforms": args.transforms,
        "transforms_default_to_original": args.transforms_default_to_original,
        "legacy_transform_fn": args.legacy_transform_fn,
    }


def _is_standard(args: Any) -> bool:
    return type(args).__name__.startswith("Standard")


def is_tree_save(args: Any) -> bool:
    """Whether args save a pytree."""
    return type(args).__name__ in ("PyTreeSaveArgs", "StandardSaveArgs", "BasePyTreeSaveArgs")


def is_tree_restore(args: Any) -> bool:
    """Whether args restore a pytree."""
    names = ("PyTreeRestoreArgs", "StandardRestoreArgs", "BasePyTreeRestoreArgs")
    return type(args).__name__ in names


def check_save_args(args: Any, *, standard: bool) -> None:
    """Refuses what the args' own handler in Orbax refuses for good reason.

    Raises:
        ValueError: No item; metadata as an item; an `aggregate` SaveArgs under StandardSave.
        TypeError: `custom_metadata` is not JSON.
    """
    if isinstance(args.item, metadata.TreeMetadata):
        raise ValueError("Cannot save TreeMetadata: give the tree itself, not its description.")
    if standard and args.item is None:
        raise ValueError("Must provide item to save.")
    if standard and args.save_args is not None:
        for path, given in flatten_target(args.save_args).leaves.items():
            if getattr(given, "aggregate", False):
                raise ValueError(f"Unsupported option `aggregate` for key: {'/'.join(path)}.")
    custom = custom_metadata_of(args)
    if custom:
        json.dumps(custom)


def custom_metadata_of(args: Any) -> dict[str, Any] | None:
    """The custom metadata of save args, by either name; save_args may carry it, too."""
    custom = getattr(args, "custom_metadata", None)
    return dict(custom) if custom else None


def _one_metadata(
    custom: dict[str, Any] | None, given: dict[str, Any] | None, name: str
) -> dict[str, Any] | None:
    if given is None:
        return custom
    if custom is not None and custom != given:
        raise ValueError(f"{name}: `metadata` is `custom_metadata` by another name: give one")
    return given


def _split_save_args(save_args: Any, custom: Any) -> tuple[Any, Any]:
    """An args object in the slot of SaveArgs: its own save_args and metadata are meant."""
    if not is_tree_save(save_args):
        return save_args, custom
    inner = custom_metadata_of(save_args)
    return save_args.save_args, custom if inner is None else {**(custom or {}), **inner}


class StandardCheckpointHandler(TreeHandler):
    """Saves a pytree; restores it as its target says.

    Args:
        compression: ``"none"``, ``"zstd"``, ``"zstd:LEVEL"``, … Orbax compresses with zstd; we do
            not unless told, as parameters hardly shrink.
        save_concurrent_gb, restore_concurrent_gb: Limits of Orbax's own writers. The engine has one
            byte budget for all it does, so these bound nothing further; they must be positive.
        multiprocessing_options: `options.MultiprocessingOptions`; each process writes its own
            shards.
        pytree_metadata_options: Orbax's choice whether containers' types are recorded. They always
            are; `exact=True` at restore gives them back.
        use_ocdbt: Names a format of Orbax's. What we write is Zarr v3 in any case.
    """

    def __init__(
        self,
        *,
        save_concurrent_gb: int = 96,
        restore_concurrent_gb: int = 96,
        multiprocessing_options: Any = None,
        pytree_metadata_options: Any = None,
        use_ocdbt: bool = True,
        compression: str | None = None,
    ) -> None:
        _check_concurrent(save_concurrent_gb, restore_concurrent_gb)
        self.compression = compression
        self.multiprocessing_options = multiprocessing_options


class PyTreeCheckpointHandler(TreeHandler):
    """Saves a pytree; restores it as RestoreArgs say.

    Args:
        aggregate_filename: Named a file of small leaves in Orbax's oldest format. Only None.
        save_concurrent_gb, restore_concurrent_gb, save_device_host_concurrent_gb,
            memory_limit_options: Limits of Orbax's own writers; see `StandardCheckpointHandler`.
        use_ocdbt, use_zarr3: Name formats of Orbax's. What we write is Zarr v3 in any case.
        use_compression: None (the default): as `compression` says. True: zstd at Orbax's level
            (1, with `use_zarr3` 3). False: none.
        multiprocessing_options: `options.MultiprocessingOptions`.
        type_handler_registry: Handlers of leaf types of yours; None: the global registry.
        handler_impl: A `BasePyTreeCheckpointHandler`, whose compression and registry are taken.
        pytree_metadata_options: See `StandardCheckpointHandler`.
        array_metadata_validator: Checks Orbax's own metadata files, which we do not write. Only
            None.
        enable_pinned_host_transfer: How JAX brings arrays to the host is the engine's choice.
        is_prioritized_key_fn: Ordered transfers whose leaves were not safe when save returned. Ours
            all are: the order is the engine's.
        compression: ``"none"``, ``"zstd"``, ``"zstd:LEVEL"``, …

    Raises:
        ValueError: An option that can have no meaning here.
    """

    def __init__(
        self,
        aggregate_filename: str | None = None,
        *,
        save_concurrent_gb: int | None = None,
        restore_concurrent_gb: int | None = None,
        save_device_host_concurrent_gb: int | str | None = None,
        memory_limit_options: Any = None,
        use_ocdbt: bool = True,
        use_zarr3: bool = False,
        use_compression: bool | None = None,
        multiprocessing_options: Any = None,
        type_handler_registry: Any = None,
        handler_impl: Any = None,
        pytree_metadata_options: Any = None,
        array_metadata_validator: Any = None,
        enable_pinned_host_transfer: bool | None = None,
        is_prioritized_key_fn: Callable[[Any], bool] | None = None,
        compression: str | None = None,
    ) -> None:
        if aggregate_filename is not None:
            raise ValueError("aggregate_filename: leaves are not aggregated; leave it None")
        if array_metadata_validator is not None:
            raise ValueError("array_metadata_validator: there is no such metadata; leave it None")
        _check_concurrent(save_concurrent_gb, restore_concurrent_gb, save_device_host_concurrent_gb)
        self.compression = compression_of(use_compression, compression, use_zarr3=use_zarr3)
        self.multiprocessing_options = multiprocessing_options
        self.type_handler_registry = type_handler_registry
        if handler_impl is not None:
            self.compression = self.compression or handler_impl.compression
            self.type_handler_registry = (
                type_handler_registry or handler_impl.type_handler_registry
            )


class BasePyTreeCheckpointHandler(PyTreeCheckpointHandler):
    """As `PyTreeCheckpointHandler`, with limits in bytes."""

    def __init__(
        self,
        *,
        save_concurrent_bytes: int | None = None,
        restore_concurrent_bytes: int | None = None,
        save_device_host_concurrent_bytes: int | str | None = None,
        enable_post_merge_validation: bool = True,
        **options: Any,
    ) -> None:
        limits = (
            save_concurrent_bytes,
            restore_concurrent_bytes,
            save_device_host_concurrent_bytes,
        )
        _check_concurrent(*limits)
        super().__init__(**options)


def compression_of(
    use_compression: bool | None, compression: str | None, *, use_zarr3: bool = False
) -> str | None:
    """The compression that Orbax's flag and ours together name; None: the save's own.

    Raises:
        ValueError: They contradict each other.
    """
    if compression is not None:
        if use_compression is False and compression != "none":
            raise ValueError(f"use_compression=False, but compression={compression!r}")
        return compression
    if use_compression is None:
        return None
    level = 3 if use_zarr3 else 1
    return f"zstd:{level}" if use_compression else "none"


def _check_concurrent(*limits: int | str | None) -> None:
    for limit in limits:
        if limit is None or limit == "auto":
            continue
        if not isinstance(limit, (int, float)) or limit <= 0:
            raise ValueError(f"a limit of concurrent bytes must be positive: {limit!r}")


@register_with_handler(StandardCheckpointHandler, for_save=True)
@dataclasses.dataclass
class StandardSaveArgs(CheckpointArgs):
    """What StandardCheckpointHandler saves.

    Attributes:
        item: The pytree.
        save_args: A tree of SaveArgs of the same structure, or one for all; None: no wishes.
        custom_metadata: A JSON object to keep with the item.
        metadata: The same by the name that guides use.
    """

    item: Any = None
    save_args: Any = None
    custom_metadata: dict[str, Any] | None = None
    metadata: dataclasses.InitVar[dict[str, Any] | None] = None

    def __post_init__(self, metadata: dict[str, Any] | None) -> None:
        self.custom_metadata = _one_metadata(self.custom_metadata, metadata, "StandardSave")
        self.save_args, self.custom_metadata = _split_save_args(
            self.save_args, self.custom_metadata
        )


@register_with_handler(StandardCheckpointHandler, for_restore=True)
@dataclasses.dataclass
class StandardRestoreArgs(CheckpointArgs):
    """What StandardCheckpointHandler restores.

    Attributes:
        item: The target: arrays, `jax.ShapeDtypeStruct`s, scalars, or what `metadata` gives.
        strict: False truncates or pads arrays of another shape with zeros.
        support_layout: Take the memory layout of a target's arrays, not only their sharding.
        fallback_sharding: For arrays whose target names no sharding.
        exact: Without a target: the containers and key types that were saved.
    """

    item: Any = None
    strict: bool = True
    support_layout: bool = False
    fallback_sharding: Any = None
    exact: bool = False


@register_with_handler(PyTreeCheckpointHandler, for_save=True)
@dataclasses.dataclass
class PyTreeSaveArgs(CheckpointArgs):
    """What PyTreeCheckpointHandler saves.

    Attributes:
        item: The pytree.
        save_args: As `StandardSaveArgs`.
        ocdbt_target_data_file_size: Size of Orbax's data files in bytes. Ours are as large as the
            engine's shards; a number must not be negative.
        custom_metadata, metadata: As `StandardSaveArgs`.
    """

    item: Any = None
    save_args: Any = None
    ocdbt_target_data_file_size: int | None = None
    custom_metadata: dict[str, Any] | None = None
    metadata: dataclasses.InitVar[dict[str, Any] | None] = None

    def __post_init__(self, metadata: dict[str, Any] | None) -> None:
        size = self.ocdbt_target_data_file_size
        if size is not None and size < 0:
            raise ValueError(f"ocdbt_target_data_file_size must not be negative: {size}")
        self.custom_metadata = _one_metadata(self.custom_metadata, metadata, "PyTreeSave")
        self.save_args, self.custom_metadata = _split_save_args(
            self.save_args, self.custom_metadata
        )


@register_with_handler(PyTreeCheckpointHandler, for_restore=True)
@dataclasses.dataclass
class PyTreeRestoreArgs(CheckpointArgs):
    """What PyTreeCheckpointHandler restores.

    Attributes:
        item: The target's structure; `...` skips a leaf.
        restore_args: A tree of RestoreArgs of that structure, or one for all. An args object here
            (``StandardRestore(item=subset)``) restores what that names.
        transforms: See `transform_utils`.
        transforms_default_to_original: What a leaf without a transform is taken from.
        legacy_transform_fn: A function of your own in place of transforms.
        partial_restore: `item` may lack what the checkpoint has.
        exact: Without an item: the containers and key types that were saved.
    """

    item: Any = None
    restore_args: Any = None
    transforms: Any = None
    transforms_default_to_original: bool = True
    legacy_transform_fn: Any = None
    partial_restore: bool = False
    exact: bool = False
    standard_target: Any = dataclasses.field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        inner = self.restore_args
        if not is_tree_restore(inner):
            return
        self.restore_args = getattr(inner, "restore_args", None)
        self.exact = self.exact or getattr(inner, "exact", False)
        if self.item is None and inner.item is not None:
            self.item, self.partial_restore = inner.item, True
            self.standard_target = inner if _is_standard(inner) else None


@register_with_handler(BasePyTreeCheckpointHandler, for_save=True)
@dataclasses.dataclass
class BasePyTreeSaveArgs(PyTreeSaveArgs):
    """As `PyTreeSaveArgs`."""


@register_with_handler(BasePyTreeCheckpointHandler, for_restore=True)
@dataclasses.dataclass
class BasePyTreeRestoreArgs(PyTreeRestoreArgs):
    """As `PyTreeRestoreArgs`."""


base.register_kind("tree", StandardCheckpointHandler)
