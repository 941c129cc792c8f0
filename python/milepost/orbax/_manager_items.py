"""Which handler saves and restores an item: given, or settled by the first use.

An item has a handler from the constructor, from a registry, or from the first args it is saved or
restored with; from then on, args that this handler does not take are an error. Only what succeeded
settles anything. Restoring without args asks the settled handler, then the one that the step
remembers, so that a fresh manager needs to be told nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import _bridge, checkpoint_args
from .handlers import base

SAVE, RESTORE = 0, 1


class ItemHandlers:
    """The handlers of a manager's items, by name."""

    def __init__(
        self,
        given: Mapping[str, Any | None] | None = None,
        registry: Any | None = None,
        *,
        open_names: bool = True,
    ) -> None:
        """`given` handlers (None: by first use); `registry` as Orbax's; `open_names`: further items
        may come."""
        self._handlers = {n: h for n, h in (given or {}).items() if h is not None}
        self._names = None if open_names else frozenset(given or {})
        self._registry = registry

    def for_save(self, name: str, args: Any) -> Any:
        """Returns the handler that saves `args` as the item.

        Raises:
          ValueError: another handler is settled for the item, or none is known for the args.
        """
        self._check_name(name)
        return self._fitting(name, args, SAVE)

    def for_restore(self, name: str, args: Any | None, info: Any) -> Any:
        """Returns the handler that restores the item.

        Args:
          name: the item.
          args: RestoreArgs, or None: as saved.
          info: its `ItemInfo`.

        Raises:
          ValueError: another handler is settled for the item, or nobody knows its own.
        """
        if args is not None:
            return self._fitting(name, args, RESTORE)
        handler = self.known(name, info)
        if handler is None:
            typestr = _bridge.recorded_handler(info)
            raise ValueError(
                f'Item "{name}" was saved by the handler {typestr}, which is not loaded here. '
                "Import its module first, give the manager a handler_registry, or restore with its "
                "args; the files themselves are in `milepost.open(step).files(item)`"
            )
        return handler

    def known(self, name: str, info: Any | None = None) -> Any | None:
        """Returns the settled handler, else the one that the step remembers; None where neither
        is."""
        settled = self._candidates(name)
        if info is None:
            return settled[0] if settled else None
        typestr = _bridge.recorded_handler(info)
        same = [h for h in [*settled, *self._registered()] if _bridge.typestr_of(h) == typestr]
        if same:
            return same[0]
        fits = [h for h in settled if _restores(h, info)]
        return fits[0] if fits else _bridge.handler_of_item(info)

    def settle(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """Remembers the handlers of items that were saved or restored."""
        for name, handler in pairs:
            if not self._candidates(name):
                self._handlers[name] = handler

    def legacy_args(
        self, name: str, which: int, value: Any, kwargs: Mapping[str, Any], info: Any | None = None
    ) -> Any:
        """Returns args of a call that gives a value and keywords, as there was before args."""
        handler = self._legacy_handler(name, info)
        if base.is_native(handler):
            return handler.args_classes()[which](value, **kwargs)
        if checkpoint_args.has_registered_args(handler):
            return checkpoint_args.get_registered_args_cls(handler)[which](value, **kwargs)
        given = () if which == RESTORE and value is None else (value,)
        return base.LegacyCall(given, dict(kwargs))

    def _legacy_handler(self, name: str, info: Any | None) -> Any:
        """Returns the settled handler, else that of trees by the rules of before there were
        args."""
        settled = self._candidates(name)
        if settled:
            return settled[0]
        if info is not None and info.kind != "tree":
            return self.known(name, info)
        from .handlers import PyTreeCheckpointHandler

        return PyTreeCheckpointHandler()

    def close(self) -> None:
        """Closes every handler."""
        for handler in [*self._handlers.values(), *self._registered()]:
            close = getattr(handler, "close", None)
            if callable(close):
                close()

    def _fitting(self, name: str, args: Any, which: int) -> Any:
        registry = self._registry
        if registry is not None and registry.has(name, args):
            return registry.get(name, args)
        settled = self._candidates(name)
        for handler in settled:
            if _takes(handler, args, which, name):
                return handler
        if settled:
            raise ValueError(
                f'Item "{name}" and args "{type(args).__name__}" do not fit the handler that is '
                f"settled for the item: {_taken(settled, which)}. Use its args, or another item"
            )
        if registry is not None and registry.has(None, args):
            return registry.get(None, args)
        return _bridge.default_handler_for(args)

    def _candidates(self, name: str) -> list[Any]:
        if name in self._handlers:
            return [self._handlers[name]]
        if self._registry is None:
            return []
        entries = self._registry.get_all_entries()
        return _unique(handler for (item, _), handler in entries.items() if item == name)

    def _registered(self) -> list[Any]:
        if self._registry is None:
            return []
        return _unique(self._registry.get_all_entries().values())

    def _check_name(self, name: str) -> None:
        if self._names is not None and name not in self._names:
            raise ValueError(
                f'Item "{name}" is not one of the manager\'s items. items=`{sorted(self._names)}`; '
                "leave item_names out to name them as they come"
            )


def _takes(handler: Any, args: Any, which: int, name: str) -> bool:
    if base.is_native(handler):
        try:
            adapt = handler.save_args_of if which == SAVE else handler.restore_args_of
            adapt(args, name)
        except ValueError:
            return False
        return True
    if isinstance(args, base.LegacyCall):
        return True
    if not checkpoint_args.has_registered_args(handler):
        return False
    return isinstance(args, checkpoint_args.get_registered_args_cls(handler)[which])


def _restores(handler: Any, info: Any) -> bool:
    if base.is_native(handler):
        return info.kind in handler.kinds
    return info.kind == "opaque"


def _taken(handlers: Iterable[Any], which: int) -> str:
    taken = []
    for handler in handlers:
        names = ""
        if base.is_native(handler):
            names = handler.args_classes()[which].__name__
        elif checkpoint_args.has_registered_args(handler):
            names = checkpoint_args.get_registered_args_cls(handler)[which].__name__
        taken.append(f"{type(handler).__name__}({names})")
    return ", ".join(taken)


def _unique(handlers: Iterable[Any]) -> list[Any]:
    return list({id(handler): handler for handler in handlers}.values())
