"""What a checkpoint says of itself without a leaf being read: Orbax's metadata objects.

`StepMetadata` is of a checkpoint, `RootMetadata` of a run, `TreeMetadata` of a tree item; its
leaves are `ArrayMetadata`, `ScalarMetadata` and `StringMetadata`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = [
    "ArrayMetadata",
    "Metadata",
    "NamedShardingMetadata",
    "RootMetadata",
    "ScalarMetadata",
    "ShardingMetadata",
    "SingleDeviceShardingMetadata",
    "StepMetadata",
    "StorageMetadata",
    "StringMetadata",
    "TreeMetadata",
    "get_step_metadata",
    "tree",
    "value",
]


@dataclasses.dataclass
class Metadata:
    """Base of what describes a leaf.

    Attributes:
        name: The leaf's key path in its item, as text.
        directory: The checkpoint's url, or None.
    """

    name: str
    directory: Any | None = None


@dataclasses.dataclass(frozen=True)
class StorageMetadata:
    """How an array is stored.

    Attributes:
        chunk_shape: Shape of the unit that is encoded.
        write_shape: Shape of a stored object: the shard, or the chunk where there are no shards.
    """

    chunk_shape: tuple[int, ...] | None
    write_shape: tuple[int, ...] | None = None


@dataclasses.dataclass
class ArrayMetadata(Metadata):
    """A stored array.

    Attributes:
        shape: Its shape.
        sharding: The `ShardingMetadata` of a `jax.Array`; None of a NumPy array.
        dtype: Its NumPy dtype.
        storage: Its chunks.
    """

    shape: tuple[int, ...] = ()
    sharding: Any | None = None
    dtype: Any | None = None
    storage: StorageMetadata | None = None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ArrayMetadata)
            and self.shape == other.shape
            and self.sharding == other.sharding
            and self.dtype == other.dtype
            and self.storage == other.storage
        )

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def from_shape_dtype_struct(
        cls, s: Any, name: str | None = None, directory: Any | None = None
    ) -> ArrayMetadata:
        """The metadata of a `jax.ShapeDtypeStruct`."""
        return cls(name or "", directory, tuple(s.shape), s.sharding, s.dtype)


@dataclasses.dataclass(eq=False)
class ScalarMetadata(ArrayMetadata):
    """A stored scalar of the language; `dtype` is the type it is stored as."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScalarMetadata) and self.dtype == other.dtype

    __hash__ = None  # type: ignore[assignment]


@dataclasses.dataclass
class StringMetadata(Metadata):
    """A stored text."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StringMetadata)

    __hash__ = None  # type: ignore[assignment]


class ShardingMetadata:
    """A sharding without devices. `to_jax_sharding` finds devices of this process for it."""

    def to_jax_sharding(self) -> Any:
        """The `jax.sharding.Sharding`; a ValueError where the devices are not here."""
        raise NotImplementedError


@dataclasses.dataclass
class SingleDeviceShardingMetadata(ShardingMetadata):
    """One device, by its text (``"cpu:0"``); ``"default"`` is JAX's default device.

    Our checkpoints do not hold which device an array was on.
    """

    device_str: str

    @classmethod
    def from_jax_sharding(cls, jax_sharding: Any) -> SingleDeviceShardingMetadata:
        """The metadata of a `SingleDeviceSharding`."""
        return cls(str(next(iter(jax_sharding.device_set))))

    def to_jax_sharding(self) -> Any:
        """A `SingleDeviceSharding` on that device.

        Raises:
            ValueError: This process has no such device.
        """
        import jax

        if self.device_str == "default":
            return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        for device in jax.local_devices():
            if self.device_str in (str(device), f"{device.platform}:{device.id}"):
                return jax.sharding.SingleDeviceSharding(device)
        raise ValueError(f"Device {self.device_str} was not found in jax.local_devices().")


@dataclasses.dataclass
class NamedShardingMetadata(ShardingMetadata):
    """A mesh's shape, axis names and axis types, and the partition of an array over them.

    Attributes:
        axis_types: `jax.sharding.AxisType`s; None: JAX's default for a `Mesh`, which is Auto.
    """

    shape: tuple[int, ...]
    axis_names: tuple[str, ...]
    partition_spec: tuple[Any, ...]
    axis_types: tuple[Any, ...] | None = None

    @classmethod
    def from_jax_sharding(cls, jax_sharding: Any) -> NamedShardingMetadata:
        """The metadata of a `NamedSharding`."""
        mesh = jax_sharding.mesh
        names = tuple(mesh.axis_names)
        shape = tuple(mesh.shape[n] for n in names)
        return cls(shape, names, tuple(jax_sharding.spec), tuple(mesh.axis_types))

    def to_jax_sharding(self) -> Any:
        """A `NamedSharding` over the first devices that JAX has.

        Raises:
            ValueError: There are fewer devices than the mesh has.
        """
        import jax

        devices, count = jax.devices(), int(np.prod(self.shape))
        if count > len(devices):
            raise ValueError(f"The mesh {self.shape} is of more than {len(devices)} devices.")
        chosen = np.array(devices[:count]).reshape(self.shape)
        mesh = jax.sharding.Mesh(chosen, self.axis_names, axis_types=self.axis_types)
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*self.partition_spec))


class TreeMetadata:
    """The metadata of a tree item: indexed and mapped over as the tree itself.

    Attributes:
        tree: Nested dicts and lists with a `Metadata` for each leaf.
        custom_metadata: What the save args had as `custom_metadata`; None where there was none.
    """

    def __init__(self, tree: Any, custom_metadata: dict[str, Any] | None = None) -> None:
        self.tree = tree
        self.custom_metadata = custom_metadata
        _register_with_jax()

    @classmethod
    def build(cls, tree: Any, *, custom_metadata: dict[str, Any] | None = None) -> TreeMetadata:
        """The metadata of a tree of `Metadata`."""
        return cls(tree, custom_metadata)

    def __getitem__(self, key: Any) -> Any:
        return self.tree[key]

    def __contains__(self, key: Any) -> bool:
        return key in self.tree

    def __len__(self) -> int:
        return len(self.tree)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tree)

    def keys(self) -> Any:
        """The keys of the root."""
        return self.tree.keys()

    def values(self) -> Any:
        """The children of the root."""
        return self.tree.values()

    def items(self) -> Any:
        """The keys and children of the root."""
        return self.tree.items()

    def get(self, key: Any, default: Any = None) -> Any:
        """A child of the root, or `default`."""
        return self.tree.get(key, default)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TreeMetadata)
            and self.tree == other.tree
            and self.custom_metadata == other.custom_metadata
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"TreeMetadata(custom_metadata={self.custom_metadata!r}, tree={self.tree!r})"


_registered: list[bool] = []


def _register_with_jax() -> None:
    """Makes TreeMetadata a pytree whose keys are the tree's, once JAX is there."""
    jax = sys.modules.get("jax")
    if _registered or jax is None or not hasattr(jax, "tree_util"):
        return
    _registered.append(True)

    def flatten(metadata: TreeMetadata) -> tuple[list[Any], Any]:
        pairs, definition = jax.tree_util.tree_flatten_with_path(
            metadata.tree, is_leaf=lambda node: node is not metadata.tree
        )
        children = [(keys[0] if keys else None, child) for keys, child in pairs]
        return children, (definition, metadata.custom_metadata)

    def unflatten(static: Any, children: Any) -> TreeMetadata:
        definition, custom = static
        return TreeMetadata(jax.tree_util.tree_unflatten(definition, list(children)), custom)

    class Static(tuple):
        """Auxiliary data that compares by content and hashes by type."""

        def __hash__(self) -> int:
            return hash(self[0])

    def flatten_static(metadata: TreeMetadata) -> tuple[list[Any], Any]:
        children, static = flatten(metadata)
        return children, Static(static)

    jax.tree_util.register_pytree_with_keys(TreeMetadata, flatten_static, unflatten)


@dataclasses.dataclass
class StepMetadata:
    """What is known of one checkpoint.

    Attributes:
        item_handlers: Typestr of each item's handler by name, or the only one's.
        item_metadata: Metadata of each item by name (indexed and by attribute), or the only one's.
        metrics: The metrics of the save.
        performance_metrics: Seconds of each stage of the save, by name.
        init_timestamp_nsecs: When the save began, nanoseconds since 1970, or None.
        commit_timestamp_nsecs: When it was committed.
        custom_metadata: The save's `custom_metadata`.
    """

    item_handlers: dict[str, str] | str | None = None
    item_metadata: Any | None = None
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    performance_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    init_timestamp_nsecs: int | None = None
    commit_timestamp_nsecs: int | None = None
    custom_metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class RootMetadata:
    """What is known of a run.

    Attributes:
        internal_metadata: Orbax's own. Ours has none: always empty.
        custom_metadata: What `CheckpointManager(metadata=…)` had when the run was created.
    """

    internal_metadata: dict[str, Any] | None = dataclasses.field(default_factory=dict)
    custom_metadata: dict[str, Any] | None = dataclasses.field(default_factory=dict)


def of_leaf(
    leaf: Any, *, is_scalar: bool = False, sharding: Any = None, directory: Any = None
) -> Metadata:
    """The metadata of a stored leaf (`LeafInfo`).

    Args:
        leaf: The leaf.
        is_scalar: It was a NumPy scalar.
        sharding: The `ShardingMetadata` of a `jax.Array`.
        directory: The checkpoint's url.
    """
    name = str(leaf.path)
    if leaf.kind in ("str", "bytes"):
        return StringMetadata(name, directory)
    if is_scalar or leaf.kind in ("int", "float", "bool", "complex"):
        return ScalarMetadata(name, directory, (), None, leaf.dtype)
    shard = leaf.shard_shape
    chunks = tuple(leaf.chunk_shape)
    storage = StorageMetadata(chunks, chunks if shard is None else tuple(shard))
    return ArrayMetadata(name, directory, tuple(leaf.shape), sharding, leaf.dtype, storage)


def step_metadata(checkpoint: Any, item_metadata: Any, item_handlers: Any) -> StepMetadata:
    """The StepMetadata of an open checkpoint, with the items' metadata already made."""
    created, committed = checkpoint.created, checkpoint.committed
    return StepMetadata(
        item_handlers=item_handlers,
        item_metadata=item_metadata,
        metrics=dict(checkpoint.metrics or {}),
        performance_metrics=_stages(checkpoint.record),
        init_timestamp_nsecs=_nanoseconds(created),
        commit_timestamp_nsecs=_nanoseconds(committed),
        custom_metadata=dict(checkpoint.metadata or {}),
    )


def get_step_metadata(path: Any) -> StepMetadata:
    """What the checkpoint at a path says of itself; no item is opened, `item_metadata` is None.

    Raises:
        FileNotFoundError: No checkpoint is there.
    """
    from . import _bridge, _foreign_metadata, _place_of_checkpoint

    checkpoint, _ = _place_of_checkpoint.opened(path)
    if _place_of_checkpoint.is_foreign(checkpoint):
        found = _foreign_metadata.step_metadata(checkpoint)
        return dataclasses.replace(found, item_metadata=None)
    handlers = {name: _bridge.recorded_handler(info) for name, info in checkpoint.items.items()}
    return step_metadata(checkpoint, None, handlers)


def _stages(record: Any) -> dict[str, float]:
    timings = record.get("timings") if isinstance(record, dict) else None
    if not isinstance(timings, dict):
        return {}
    return {name: value for name, value in timings.items() if isinstance(value, (int, float))}


def _nanoseconds(moment: Any) -> int | None:
    return None if moment is None else int(round(moment.timestamp() * 1e6)) * 1000


value = sys.modules[__name__]
"""`metadata.value.ArrayMetadata` is `metadata.ArrayMetadata`."""
tree = sys.modules[__name__]
"""`metadata.tree.TreeMetadata` is `metadata.TreeMetadata`."""
