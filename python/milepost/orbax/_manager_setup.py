"""What a manager is made of, from the arguments of its constructor."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import _bridge, multihost
from ._manager_items import ItemHandlers
from ._manager_options import CheckpointManagerOptions
from ._manager_saves import Finish
from ._run_path import is_local
from .options import AsyncOptions

METRICS_ITEM = "metrics"


@dataclasses.dataclass
class Given:
    """The arguments that say how items are handled; the first is of the oldest API."""

    checkpointers: Any | None = None
    item_names: Sequence[str] | None = None
    item_handlers: Any | None = None
    handler_registry: Any | None = None

    def check(self) -> None:
        """Raises a ValueError where they exclude each other."""
        named = {
            "checkpointers": self.checkpointers,
            "item_names": self.item_names,
            "item_handlers": self.item_handlers,
            "handler_registry": self.handler_registry,
        }
        given = [name for name, value in named.items() if value is not None]
        together = given == ["item_names", "item_handlers"] and _is_mapping(self.item_handlers)
        if len(given) > 1 and not together:
            raise ValueError(
                f"{' and '.join(given)} are mutually exclusive: say it by one of them"
            )


def item_handlers(
    given: Given, options: CheckpointManagerOptions
) -> tuple[ItemHandlers, bool | None]:
    """Returns the handlers, and whether the manager saves one thing (None: the first call tells).

    Raises:
      ValueError: arguments that exclude each other, or are no handlers.
    """
    given.check()
    if given.checkpointers is not None:
        if options.multiprocessing_options.primary_host != 0:
            primary = options.multiprocessing_options.primary_host
            raise ValueError(f"checkpointers need primary_host=0. primary_host=`{primary}`")
        handlers = _handlers_of(given.checkpointers)
        return ItemHandlers(handlers), not _is_mapping(given.checkpointers)
    if given.handler_registry is not None:
        return ItemHandlers(registry=given.handler_registry), None
    if given.item_handlers is None and given.item_names is None:
        return ItemHandlers(), None
    if given.item_handlers is not None and not _is_mapping(given.item_handlers):
        return ItemHandlers({_bridge.DEFAULT_ITEM: given.item_handlers}), True
    named = dict.fromkeys(given.item_names or ())
    named.update(given.item_handlers or {})
    return ItemHandlers({**named, METRICS_ITEM: None}, open_names=False), False


def _handlers_of(checkpointers: Any) -> dict[str, Any]:
    if not _is_mapping(checkpointers):
        checkpointers = {_bridge.DEFAULT_ITEM: checkpointers}
    handlers = {}
    for name, checkpointer in checkpointers.items():
        handler = getattr(checkpointer, "handler", None)
        if handler is None:
            raise ValueError(
                f"checkpointers are Checkpointers, one or by item. item=`{name}`, "
                f"type=`{type(checkpointer).__name__}`"
            )
        handlers[name] = handler
    return handlers


def is_async(given: Given, options: CheckpointManagerOptions) -> bool:
    """Tells whether `save` returns before the step is committed; checkpointers say it by their
    class."""
    if given.checkpointers is None:
        return options.enable_async_checkpointing
    several = given.checkpointers if _is_mapping(given.checkpointers) else {"": given.checkpointers}
    return any(is_async_checkpointer(c) for c in several.values())


def async_options(given: Given, options: CheckpointManagerOptions) -> AsyncOptions:
    """Returns the manager's, else what the checkpointers were made with."""
    if options.async_options is not None or given.checkpointers is None:
        return options.async_options or AsyncOptions()
    several = given.checkpointers if _is_mapping(given.checkpointers) else {"": given.checkpointers}
    timeouts = [getattr(c, "_timeout_secs", None) for c in several.values()]
    known = [timeout for timeout in timeouts if timeout]
    return AsyncOptions(timeout_secs=max(known)) if known else AsyncOptions()


def finish_of(options: CheckpointManagerOptions, asynchronous: AsyncOptions) -> Finish:
    """Returns what is done after each commit."""
    sync = asynchronous.barrier_sync_fn
    barrier: Callable[[Any], None] | None = None
    if sync is not None:
        prefix = options.multiprocessing_options.barrier_sync_key_prefix
        timeout_ms = round(asynchronous.timeout_secs * 1000)

        def barrier(step: Any) -> None:
            key = f"milepost_committed_{step}"
            sync(key=f"{prefix}_{key}" if prefix else key, timeout_ms=timeout_ms)

    callback = asynchronous.post_finalization_callback
    processes = options.multiprocessing_options
    mode = options.file_options.path_permission_mode
    mode = mode if multihost.is_committer(processes.primary_host) else None
    return Finish(mode, barrier, callback)


def is_async_checkpointer(checkpointer: Any) -> bool:
    """Tells whether a checkpointer saves in the background."""
    return callable(getattr(checkpointer, "wait_until_finished", None))


def meeting(url: str, options: CheckpointManagerOptions, timeout: float | None) -> Any:
    """Returns with whom this process saves at a place; False: alone."""
    processes = options.multiprocessing_options
    return multihost.together(url, processes.primary_host, processes.active_processes, timeout)


def create_run(url: str, mode: int | None) -> None:
    """Creates a local run's directory; of several processes the one that does sets the mode."""
    if not is_local(url) or os.path.isdir(url):
        return
    os.makedirs(os.path.dirname(url), exist_ok=True)
    try:
        os.mkdir(url)
    except FileExistsError:
        return
    if mode is not None:
        os.chmod(url, mode)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)
