"""`metadata` and `checkpointables_metadata`: what a checkpoint is, without loading it."""

from __future__ import annotations

import datetime
import pprint
from typing import Any, Generic, TypeAlias, TypeVar

from milepost.orbax.v1._context import get_context
from milepost.orbax.v1._items import AUTO
from milepost.orbax.v1.path import PathLike, path_of

T = TypeVar("T")

PyTreeMetadata: TypeAlias = Any
"""A tree of containers and abstract leaves, as `load` takes it for `abstract_state`."""


class CheckpointMetadata(Generic[T]):
    """What a checkpoint says of itself.

    Attributes:
      path: Where it is.
      metadata: Of `metadata()`: a tree of abstract leaves; of `checkpointables_metadata()`: what
        describes each item, by name.
      init_timestamp_nsecs, commit_timestamp_nsecs: When its save began, and when it was committed:
        nanoseconds since 1970, None where it does not say.
      custom_metadata: What the caller saved with it.
    """

    def __init__(
        self,
        path: Any,
        *,
        metadata: T,
        init_timestamp_nsecs: int | None = None,
        commit_timestamp_nsecs: int | None = None,
        custom_metadata: Any = None,
    ):
        self._path = path
        self._metadata = metadata
        self._init_timestamp_nsecs = init_timestamp_nsecs
        self._commit_timestamp_nsecs = commit_timestamp_nsecs
        self._custom_metadata = custom_metadata

    @property
    def path(self) -> Any:
        return self._path

    @property
    def metadata(self) -> T:
        return self._metadata

    @property
    def init_timestamp_nsecs(self) -> int | None:
        return self._init_timestamp_nsecs

    @property
    def commit_timestamp_nsecs(self) -> int | None:
        return self._commit_timestamp_nsecs

    @property
    def init_timestamp(self) -> datetime.datetime | None:
        """When the save began (UTC)."""
        return _moment(self._init_timestamp_nsecs)

    @property
    def commit_timestamp(self) -> datetime.datetime | None:
        """When the checkpoint was committed (UTC)."""
        return _moment(self._commit_timestamp_nsecs)

    @property
    def custom_metadata(self) -> Any:
        return self._custom_metadata

    def _shown(self) -> dict[str, str]:
        return {
            "metadata": str(self.metadata),
            "init_timestamp_nsecs": str(self.init_timestamp_nsecs),
            "commit_timestamp_nsecs": str(self.commit_timestamp_nsecs),
            "custom_metadata": str(self.custom_metadata),
        }

    def __repr__(self) -> str:
        return f"CheckpointMetadata({pprint.pformat(self._shown())})"


def _moment(nanoseconds: int | None) -> datetime.datetime | None:
    if nanoseconds is None:
        return None
    return datetime.datetime.fromtimestamp(nanoseconds / 1e9, tz=datetime.timezone.utc)


def metadata(
    path: PathLike, checkpointable_name: str | None = AUTO
) -> CheckpointMetadata[PyTreeMetadata]:
    """Returns what a checkpointed pytree is: its containers, and shape and dtype of its leaves.

    The result, or its `.metadata` after changes (other dtypes, shardings), may be passed to `load`
    as the abstract tree. Arrays are `arrays.ArrayMetadata` (saved as `jax.Array`) or
    `arrays.NumpyMetadata`, numbers are `0` of their type, text is `"string"`, bytes `b"bytes"`.

    Args:
      path: See `load`.
      checkpointable_name: See `load`.

    Raises:
      InvalidLayoutError: See `load`.
    """
    from milepost.orbax.v1._source import open_source, tree_name

    context = get_context()
    source = open_source(path, context)
    name = tree_name(source, checkpointable_name)
    return _wrapped(source, source.describe(name, context))


def checkpointables_metadata(path: PathLike) -> CheckpointMetadata[dict[str, Any]]:
    """Returns what describes each item of a checkpoint, by name; None of JSON and opaque ones.

    Raises:
      InvalidLayoutError: See `load`.
    """
    from milepost.orbax.v1._source import open_source

    context = get_context()
    source = open_source(path, context)
    return _wrapped(source, {name: source.describe(name, context) for name in source.names()})


def _wrapped(source: Any, described: Any) -> CheckpointMetadata[Any]:
    return CheckpointMetadata(
        path_of(source.location, get_context().file.path_class),
        metadata=described,
        init_timestamp_nsecs=source.init_timestamp_nsecs,
        commit_timestamp_nsecs=source.commit_timestamp_nsecs,
        custom_metadata=source.custom_metadata,
    )
