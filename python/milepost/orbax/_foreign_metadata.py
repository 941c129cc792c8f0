"""The StepMetadata of a checkpoint that another library wrote, as far as it can be told."""

from __future__ import annotations

from typing import Any

from . import _manager_foreign
from ._composite import CompositeResults
from .metadata import ArrayMetadata, ScalarMetadata, StepMetadata, StringMetadata, TreeMetadata


def step_metadata(checkpoint: Any) -> StepMetadata:
    """The metadata of a `_foreign.ForeignCheckpoint`.

    Orbax's trees are described by the installed Orbax; where it cannot, an item's metadata is None.
    """
    items = {name: _tree(item, checkpoint.kind) for name, item in checkpoint.items.items()}
    whole: Any = CompositeResults(**{name or "default": value for name, value in items.items()})
    if _manager_foreign.is_default(checkpoint):
        whole = next(iter(items.values()))
    return StepMetadata(
        item_metadata=whole,
        metrics=dict(checkpoint.metrics or {}),
        commit_timestamp_nsecs=checkpoint.committed_ns,
        custom_metadata=dict(checkpoint.metadata),
    )


def _tree(item: Any, kind: str) -> TreeMetadata | None:
    from ._aliases import real_orbax

    orbax = real_orbax() if kind == "orbax" else None
    if orbax is None:
        return None
    try:
        described = orbax.PyTreeCheckpointHandler().metadata(orbax.path.step.epath.Path(item.path))
    except (FileNotFoundError, ValueError, AttributeError):
        return None
    import jax

    is_leaf = lambda value: hasattr(value, "directory")  # noqa: E731
    return TreeMetadata(jax.tree.map(_own, described.tree, is_leaf=is_leaf), None)


def _own(leaf: Any) -> Any:
    kind = type(leaf).__name__
    if kind == "StringMetadata":
        return StringMetadata(leaf.name, leaf.directory)
    if kind == "ScalarMetadata":
        return ScalarMetadata(leaf.name, leaf.directory, (), None, leaf.dtype)
    if kind == "ArrayMetadata":
        return ArrayMetadata(leaf.name, leaf.directory, leaf.shape, leaf.sharding, leaf.dtype)
    return leaf
