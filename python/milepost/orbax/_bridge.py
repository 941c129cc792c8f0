"""Handlers and args on one side, the items of a Milepost checkpoint on the other.

A built-in handler turns its args into a native item (a tree, an array, JSON, bytes) and back; no
file of its own exists. Any other handler — the user's, or one of another library — writes files
into an empty scratch directory; these become an opaque item that remembers the handler's typestr,
so that a fresh process restores it with the same class, once that class is loaded or registered.

The life of a save: `items_of` (or `item_of` for one) → `mp.save(…, items=…, item_metadata=…)` →
`close()` once `save` or `save_async` has returned: it removes scratch directories.

**Invariant:** no module is imported because a checkpoint names its handler.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import milepost as mp
from milepost._together import declining

from . import checkpoint_args
from ._shared_items import share_items
from .handlers import base

DEFAULT_ITEM = "default"
"""The item of a checkpointer or manager that saves one thing."""


@dataclasses.dataclass
class Prepared:
    """One item, ready to be saved.

    Attributes:
        item: The native item: `mp.Tree`, `mp.Array`, `mp.Json`, `mp.Bytes` or `mp.Files`.
        metadata: The item's metadata: Orbax's `custom_metadata`, and which leaves were
            `jax.Array`s. Goes into ``item_metadata[name]``. None where there is nothing to
            remember.
        close: Removes the scratch directory, if there is one. Call it when `save` has returned.
    """

    item: Any
    metadata: dict[str, Any] | None = None
    close: Callable[[], None] = lambda: None


@dataclasses.dataclass
class PreparedItems:
    """All items of one checkpoint: the arguments of `mp.save` and `CheckpointManager.save`."""

    items: dict[str, Any] = dataclasses.field(default_factory=dict)
    item_metadata: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    _closers: list[Callable[[], None]] = dataclasses.field(default_factory=list)

    def add(self, name: str, prepared: Prepared) -> None:
        """Takes one more item."""
        self.items[name] = prepared.item
        if prepared.metadata is not None:
            self.item_metadata[name] = prepared.metadata
        self._closers.append(prepared.close)

    def close(self) -> None:
        """Removes scratch directories. Safe to call twice."""
        while self._closers:
            self._closers.pop()()


def item_of(handler: Any, args: Any, name: str = DEFAULT_ITEM) -> Prepared:
    """The native item of what `args` (a SaveArgs object of the handler) asks to save.

    Args:
        handler: A built-in handler, or any object with ``save(directory, …)``.
        args: Its args; for a handler without registered args a `handlers.base.LegacyCall`.
        name: The item's name, for errors.

    Raises:
        ValueError: The args are not the handler's.
    """
    if base.is_native(handler):
        return native_item_of(handler, args, name)
    return _item_of_files(handler, args, name)


def native_item_of(handler: Any, args: Any, name: str = DEFAULT_ITEM) -> Prepared:
    """As `item_of` for a built-in handler, also for a subclass that overrides its `save`."""
    native, metadata = handler.to_item(handler.save_args_of(args, name))
    native = dataclasses.replace(native, handler=typestr_of(handler))
    return Prepared(native, metadata or None)


def items_of(
    pairs: Mapping[str, tuple[Any, Any]], together: mp.Together | None = None
) -> PreparedItems:
    """The items of several (handler, args), by name. Names are sorted, as Orbax's are.

    Args:
        together: The processes that save them; all of them call it.
    """
    prepared = PreparedItems()
    try:
        with declining(together):
            for name in sorted(pairs):
                prepared.add(name, item_of(*pairs[name], name))
        if together is not None:
            share_items(together, prepared.items, prepared.item_metadata)
    except BaseException:
        prepared.close()
        raise
    return prepared


def _item_of_files(handler: Any, args: Any, name: str) -> Prepared:
    """Lets a handler write its files, and makes them an opaque item."""
    scratch = Path(tempfile.mkdtemp(prefix="milepost-handler-"))

    def close() -> None:
        shutil.rmtree(scratch, ignore_errors=True)

    try:
        base.call_save(handler, base.directory_for_handler(scratch / name), args)
        custom = getattr(args, "custom_metadata", None)
        item = mp.Files(scratch / name, handler=typestr_of(handler))
    except BaseException:
        close()
        raise
    return Prepared(item, {"custom_metadata": custom} if custom else None, close)


def restored(handler: Any, args: Any, checkpoint: Any, item_name: str = DEFAULT_ITEM) -> Any:
    """Restores one item.

    Args:
        handler: The item's handler; see `handler_of_item` where the caller has none.
        args: Its RestoreArgs object, or None: as saved.
        checkpoint: A `milepost.Checkpoint`.
        item_name: The item.

    Raises:
        KeyError: The checkpoint has no such item; the message lists those it has.
        ValueError: The item is of another kind than the handler restores.
    """
    info = item_info(checkpoint, item_name)
    if base.is_native(handler):
        return handler.from_item(checkpoint, info, handler.restore_args_of(args, item_name))
    if info.kind != "opaque":
        raise ValueError(
            f'item "{item_name}" of {checkpoint.url} is a {info.kind}: the handler '
            f"{typestr_of(handler)} reads files that it wrote itself. Restore it with "
            f"{recorded_handler(info) or 'StandardRestore / PyTreeRestore'}"
        )
    scratch = Path(tempfile.mkdtemp(prefix="milepost-handler-"))
    try:
        checkpoint.extract(item_name, scratch / item_name)
        directory = base.directory_for_handler(scratch / item_name)
        return base.call_restore(handler, directory, args)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def metadata_of(handler: Any, checkpoint: Any, item_name: str = DEFAULT_ITEM) -> Any:
    """What Orbax calls the item's metadata: a tree of ArrayMetadata …, None where there is none."""
    info = item_info(checkpoint, item_name)
    if handler is None:
        handler = handler_of_item(info)
    if handler is None:
        return None
    if base.is_native(handler):
        return handler.metadata_from(checkpoint, info)
    if info.kind != "opaque" or not hasattr(handler, "metadata"):
        return None
    scratch = Path(tempfile.mkdtemp(prefix="milepost-handler-"))
    try:
        checkpoint.extract(item_name, scratch / item_name)
        return handler.metadata(base.directory_for_handler(scratch / item_name))
    except NotImplementedError:
        return None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def item_info(checkpoint: Any, item_name: str) -> Any:
    """The item's `ItemInfo`.

    Raises:
        ItemNotFound: A KeyError that lists the items there are.
    """
    infos = checkpoint.items
    if item_name in infos:
        return infos[item_name]
    listed = sorted(infos)
    raise mp.ItemNotFound(
        f'Item "{item_name}" was not found in the checkpoint. Available items: {listed}',
        context={"store": str(checkpoint.url), "item": item_name},
    )


def recorded_handler(info: Any) -> str | None:
    """The typestr that an item's save recorded."""
    return info.handler


def handler_of_item(info: Any) -> Any | None:
    """A handler for a stored item: by its recorded typestr, else by the item's kind.

    None where an opaque item names a handler whose class this process has not loaded.
    """
    typestr = recorded_handler(info)
    if typestr is not None:
        handler = default_handler_for(typestr)
        if handler is not None:
            return handler
    return None if info.kind == "opaque" else default_handler_for(info.kind)


def default_handler_for(what: Any) -> Any | None:
    """A fresh handler for args (an object or their class), a typestr, or the kind of an item.

    Kinds: ``tree`` → StandardCheckpointHandler, ``array``, ``json``, ``bytes``.

    Raises:
        ValueError: Args that no handler is registered for.
    """
    if isinstance(what, str):
        by_kind = base.handler_of_kind(what)
        return by_kind if by_kind is not None else base.handler_of_typestr(what)
    return checkpoint_args.get_registered_handler_cls(what)()


def typestr_of(handler: Any) -> str:
    """The name by which a checkpoint remembers a handler."""
    typestr = getattr(handler, "typestr", None)
    if callable(typestr):
        return str(typestr())
    kind = handler if isinstance(handler, type) else type(handler)
    return f"{kind.__module__}.{kind.__qualname__}"


def custom_metadata_of(info: Any) -> dict[str, Any]:
    """The `custom_metadata` that an item's save args had; empty where there was none."""
    return dict((info.metadata or {}).get("custom_metadata") or {})
