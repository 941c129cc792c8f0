"""Handlers: what all of them are, and what ours add.

A handler saves one item to a directory and restores it. Orbax's own write files; ours make native
items (`to_item`, `from_item`, `metadata_from`). Called directly on a directory, as a custom handler
may do with a part of its item, ours write a standalone checkpoint there: there is no state in which
files of a handler alone are unreadable.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import sys
import threading
from pathlib import Path
from typing import Any

import milepost as mp

from .. import checkpoint_args
from ..checkpoint_args import CheckpointArgs

ITEM = "default"
_PACKAGE = __name__.rsplit(".", 2)[0]


class CheckpointHandler:
    """Saves one item to a directory and restores it. Subclass it for items of your own.

    Implement ``save(directory, args)`` and ``restore(directory, args)`` with args classes that are
    registered by `register_with_handler`, or ``save(directory, item, …)`` and
    ``restore(directory, …)`` without; `metadata`, `finalize`, `close` and `typestr` are optional. A
    handler never sees the checkpoint, only an empty directory: use it through a Checkpointer or a
    CheckpointManager, which make what it writes atomic.
    """

    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        """Writes the item below `directory`."""
        raise NotImplementedError

    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Reads the item back."""
        raise NotImplementedError

    def metadata(self, directory: Any) -> Any | None:
        """Describes the item without reading it; None where a handler does not."""
        return None

    def finalize(self, directory: Any) -> None:
        """Runs once all is written, before the checkpoint is committed."""

    def close(self) -> None:
        """Frees what the handler holds."""

    @classmethod
    def typestr(cls) -> str:
        """The name by which a checkpoint remembers the handler: the same for ever."""
        return f"{cls.__module__}.{cls.__qualname__}"


class AsyncCheckpointHandler(CheckpointHandler):
    """A handler that copies its item first and returns futures of the writes.

    ``async_save`` must have copied what the caller may change when it returns. The futures need a
    ``result()``.
    """

    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> list[Any] | None:
        """Starts writing, and returns futures, or None where nothing is left to wait for."""
        raise NotImplementedError

    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        """`async_save`, and waits for its futures."""
        wait_for(self.async_save(directory, *args, **kwargs))


@dataclasses.dataclass
class LegacyCall(CheckpointArgs):
    """The arguments of a handler that has no registered args: passed on as they are."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)


class NativeHandler(AsyncCheckpointHandler):
    """Base of the built-in handlers: args to a native item and back.

    Subclasses set `kinds` (the kinds of items they restore) and implement `to_item` and
    `from_item`.
    """

    kinds: tuple[str, ...] = ()

    @classmethod
    def typestr(cls) -> str:
        """``milepost.orbax.<class>`` for ours, the full name for a subclass of yours."""
        if cls.__module__.startswith(_PACKAGE):
            return f"{_PACKAGE}.{cls.__qualname__}"
        return f"{cls.__module__}.{cls.__qualname__}"

    def to_item(self, args: Any) -> tuple[Any, dict[str, Any] | None]:
        """The native item, and what its metadata shall remember."""
        raise NotImplementedError

    def from_item(self, checkpoint: Any, info: Any, args: Any) -> Any:
        """The item's value. `args` is None where the caller gave none."""
        raise NotImplementedError

    def metadata_from(self, checkpoint: Any, info: Any) -> Any:
        """What Orbax calls the item's metadata; None where it has none."""
        return None

    def save_args_of(self, args: Any, name: str) -> Any:
        """Checks that args are this handler's, or turns what evidently means the same into them.

        Raises:
            ValueError: They are another handler's.
        """
        return self._own(args, 0, name)

    def restore_args_of(self, args: Any, name: str) -> Any:
        """As `save_args_of`; None stays None."""
        return None if args is None else self._own(args, 1, name)

    def _own(self, args: Any, which: int, name: str) -> Any:
        own = self.args_classes()[which]
        if isinstance(args, LegacyCall):
            args = own(*args.args, **args.kwargs)
        if isinstance(args, own) or type(args).__name__ == own.__name__:
            return args
        raise ValueError(
            f'Item "{name}" and args "{type(args).__name__}" do not fit the handler '
            f"{type(self).__name__}, which takes {own.__name__}"
        )

    @classmethod
    def args_classes(cls) -> tuple[type, type]:
        """The (save, restore) args classes; a subclass without its own has its parent's."""
        for kind in cls.__mro__:
            if checkpoint_args.has_registered_args(kind):
                return checkpoint_args.get_registered_args_cls(kind)
        raise ValueError(f"{cls.__name__} has no registered args")

    def check_kind(self, checkpoint: Any, info: Any) -> None:
        """Raises a ValueError where the item is of a kind that this handler does not restore."""
        if info.kind not in self.kinds:
            wanted = " or ".join(self.kinds)
            raise ValueError(
                f'item "{info.name}" of {checkpoint.url} is a {info.kind}, {type(self).__name__} '
                f"restores {wanted}"
            )

    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> list[Any] | None:
        """Writes a standalone checkpoint to `directory`; there is nothing left to wait for."""
        self.save(directory, *args, **kwargs)
        return None

    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        """Writes a standalone checkpoint to `directory`, which may be there but for our own.

        Takes the legacy ``(directory, item, save_args=…)`` and ``(directory, args=…)``.
        """
        from .. import _bridge

        prepared = _bridge.native_item_of(self, legacy_args(self, args, kwargs, 0), ITEM)
        place = place_in(Path(directory), type(self).__name__)
        metadata = {ITEM: prepared.metadata} if prepared.metadata else None
        try:
            mp.save(str(place), items={ITEM: prepared.item}, item_metadata=metadata, together=False)
        finally:
            prepared.close()

    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Restores what `save` wrote to the directory."""
        given = legacy_args(self, args, kwargs, 1) if args or kwargs else None
        checkpoint = open_in(Path(directory), type(self).__name__)
        info = checkpoint.items[ITEM]
        return self.from_item(checkpoint, info, self.restore_args_of(given, ITEM))

    def metadata(self, directory: Any) -> Any | None:
        """Describes what `save` wrote to the directory."""
        checkpoint = open_in(Path(directory), type(self).__name__)
        return self.metadata_from(checkpoint, checkpoint.items[ITEM])


def place_in(directory: Path, name: str) -> Path:
    """Where a built-in handler writes in a directory that it was given.

    The directory itself while it is empty, else one in it: other handlers share it.
    """
    if not directory.exists():
        return directory
    if not any(directory.iterdir()):
        directory.rmdir()
        return directory
    return directory / f"{name}.milepost"


def open_in(directory: Path, name: str) -> Any:
    """Opens what `place_in` gave."""
    beside = directory / f"{name}.milepost"
    return mp.open(str(beside if beside.exists() else directory))


def package() -> str:
    """The name of the package that our handlers' typestrs begin with."""
    return _PACKAGE


def legacy_args(
    handler: Any, args: tuple[Any, ...], kwargs: dict[str, Any], which: int
) -> CheckpointArgs:
    """Args of a call that gives either ``args=…`` or the arguments of before there were args."""
    given = kwargs.get("args")
    if given is None and len(args) == 1 and checkpoint_args.is_args(args[0]):
        given = args[0]
    if given is not None:
        return given
    return handler.args_classes()[which](*args, **kwargs)


def is_native(handler: Any) -> bool:
    """Whether a handler is ours and its `save` and `restore` were not overridden."""
    if not isinstance(handler, NativeHandler):
        return False
    names = ("save", "async_save", "restore")
    owners = (getattr(type(handler), name).__module__ for name in names)
    return all(owner.startswith(f"{_PACKAGE}.") for owner in owners)


def call_save(handler: Any, directory: Any, args: Any) -> None:
    """Lets a handler that is not ours write its files, and waits for all that it has begun.

    `async_save` is called where there is one, as a checkpointer that saves in the background does:
    Orbax's own `save` calls it, too, so that a subclass may override either.
    """
    positional, named = _call_of(args)
    if not _saved_async(handler, directory, positional, named):
        result = handler.save(directory, *positional, **named)
        if inspect.iscoroutine(result):
            wait_for(result)
    finalize = getattr(handler, "finalize", None)
    if finalize is not None:
        finalize(directory)


def _saved_async(
    handler: Any, directory: Any, positional: tuple[Any, ...], named: dict[str, Any]
) -> bool:
    """Whether the handler has an `async_save` of its own, which then has saved."""
    begin = getattr(handler, "async_save", None)
    if begin is None or getattr(type(handler), "async_save", None) is AsyncCheckpointHandler.async_save:
        return False
    try:
        wait_for(begin(directory, *positional, **named))
    except NotImplementedError:
        if not hasattr(handler, "save"):
            raise
        return False
    return True


def call_restore(handler: Any, directory: Any, args: Any) -> Any:
    """Lets a handler that is not ours read its files."""
    if args is None and checkpoint_args.has_registered_args(handler):
        args = _default_of(checkpoint_args.get_registered_args_cls(handler)[1])
    positional, named = _call_of(args)
    return handler.restore(directory, *positional, **named)


def _default_of(kind: type) -> Any:
    try:
        return kind()
    except TypeError:
        return None


def _call_of(args: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args is None:
        return (), {}
    if isinstance(args, LegacyCall):
        return args.args, args.kwargs
    return (), {"args": args}


def run_coroutine(awaitable: Any) -> Any:
    """Runs a coroutine to its end, also where this thread has a running loop."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((asyncio.run(_collect(awaitable)), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, name="milepost-handler")
    thread.start()
    thread.join()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def wait_for(awaitable: Any) -> None:
    """Runs a coroutine that gives futures, and waits for these."""
    for future in run_coroutine(awaitable) or []:
        future.result()


async def _collect(awaitable: Any) -> Any:
    return await awaitable


def directory_for_handler(path: Path) -> Any:
    """The directory as handlers expect it: an `epath.Path` where that library is loaded."""
    path.mkdir(parents=True, exist_ok=True)
    epath = sys.modules.get("etils.epath")
    return epath.Path(path) if epath is not None else path


_by_kind: dict[str, type] = {}


def register_kind(kind: str, handler_cls: type) -> None:
    """Makes a built-in handler the one for items of a kind."""
    _by_kind[kind] = handler_cls


def handler_of_kind(kind: str) -> Any | None:
    """A fresh built-in handler for a kind of item; None where there is none."""
    cls = _by_kind.get(kind)
    return None if cls is None else cls()


def handler_of_typestr(typestr: str) -> Any | None:
    """A fresh handler of a class that is loaded: ours, or one with registered args, or a subclass.

    Orbax's own names mean our handler of the same class name.
    """
    name = typestr.rsplit(".", 1)[-1]
    known = [*checkpoint_args.registered_handlers(), *_subclasses(CheckpointHandler)]
    for cls in dict.fromkeys(known):
        own = getattr(cls, "typestr", None)
        ours = f"{cls.__module__}.{cls.__qualname__}" if own is None else own()
        orbax = typestr.startswith("orbax.checkpoint.") and cls.__module__.startswith(_PACKAGE)
        if ours == typestr or (orbax and cls.__name__ == name):
            return _instance(cls)
    return None


def _instance(cls: type) -> Any | None:
    """A handler made without arguments; None where its class needs some."""
    try:
        return cls()
    except TypeError:
        return None


def _subclasses(cls: type) -> list[type]:
    found = []
    for kind in cls.__subclasses__():
        found.extend([kind, *_subclasses(kind)])
    return found
