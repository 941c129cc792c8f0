"""A checkpoint of ours as a source of checkpointables."""

from __future__ import annotations

from typing import Any

import milepost as mp
from milepost.orbax import _metrics
from milepost.orbax.v1 import _items, _tree_load
from milepost.orbax.v1._context import Context
from milepost.orbax.v1._operation import Loop
from milepost.orbax.v1.handlers import _registry
from milepost.orbax.v1.handlers._json import JsonHandler, MetricsHandler
from milepost.orbax.v1.handlers._pytree import PyTreeHandler

_TREES = ("tree", "array")
# Classes that load an item of this kind where the item does not say who saved it.
_KINDS = {
    "tree": PyTreeHandler,
    "array": PyTreeHandler,
    "json": JsonHandler,
    "bytes": PyTreeHandler,
}


class MilepostSource:
    """A committed checkpoint.

    Args:
      location: Where it is.
      engine: Reads it; None: the process's own.
      checkpoint: The same, open already.
      lease: Kept as long as the source lives.
    """

    has_names = True

    def __init__(
        self, location: str, engine: Any = None, checkpoint: Any = None, lease: Any = None
    ):
        self.location = location
        self._lease = lease
        if checkpoint is None or engine is not None:
            checkpoint = mp.open(location, engine=engine)
        self._checkpoint = checkpoint

    @property
    def custom_metadata(self) -> dict[str, Any] | None:
        """The caller's metadata; None where the save had none."""
        metadata = dict(self._checkpoint.metadata or {})
        metadata.pop(_metrics.MEMBER, None)
        return metadata or None

    @property
    def init_timestamp_nsecs(self) -> int | None:
        return _nanoseconds(self._checkpoint.created)

    @property
    def commit_timestamp_nsecs(self) -> int | None:
        return _nanoseconds(self._checkpoint.committed)

    def names(self) -> list[str]:
        return [name for name in self._checkpoint.items if name not in _items.RESERVED]

    def is_tree(self, name: str) -> bool:
        return self._checkpoint.items[name].kind in _TREES

    def load(self, name: str, abstract: Any, context: Context) -> Any:
        handler = self._handler(name, abstract, context)
        info = self._checkpoint.items[name]
        if isinstance(handler, PyTreeHandler) and info.kind in (*_TREES, "bytes"):
            if abstract is not None:
                _tree_load.check_abstract(abstract)
            return _tree_load.load_tree(
                self._checkpoint.index(name), abstract, info.metadata, context
            )
        if info.kind == "json" and isinstance(handler, (JsonHandler, MetricsHandler)):
            return self._checkpoint.json(name)

        def use(directory: Any) -> Any:
            with Loop() as loop:
                return loop.run(loop.run(handler.load(directory, abstract)))

        return _items.with_directory(self._checkpoint, name, context, use)

    def describe(self, name: str, context: Context) -> Any:
        handler = self._handler(name, None, context)
        info = self._checkpoint.items[name]
        if isinstance(handler, PyTreeHandler) and info.kind in (*_TREES, "bytes"):
            return _tree_load.describe_tree(self._checkpoint.index(name), info.metadata, context)
        if info.kind == "json":
            return None

        def use(directory: Any) -> Any:
            with Loop() as loop:
                try:
                    return loop.run(handler.metadata(directory))
                except NotImplementedError:
                    return None

        return _items.with_directory(self._checkpoint, name, context, use)

    def _handler(self, name: str, abstract: Any, context: Context) -> Any:
        info = self._checkpoint.items[name]
        saved = info.handler or (info.metadata or {}).get("handler")
        registry = context.checkpointables.registry
        default = _KINDS.get(info.kind)
        try:
            handler = _registry.resolve_for_load(registry, abstract, name, saved)
        except _registry.NoEntryError:
            if default is None:
                raise
            return default()
        if info.kind == "json" and isinstance(handler, PyTreeHandler):
            # An object that describes nothing in particular: the item itself knows better.
            return JsonHandler()
        return handler


def _nanoseconds(moment: Any) -> int | None:
    if moment is None:
        return None
    # In whole microseconds: a float of seconds has not the digits.
    whole = int(moment.replace(microsecond=0).timestamp())
    return whole * 1_000_000_000 + moment.microsecond * 1_000
