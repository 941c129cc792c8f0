"""CompositeCheckpointHandler: several items in one checkpoint, each with its own handler.

Which handler an item has: the one given for its name, else the registry's entry for it, else the
    one
that its args are registered with; at a restore without args, the one that the checkpoint remembers.
No item is locked to the args it was first saved with: each checkpoint knows its own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import milepost as mp

from .. import checkpoint_args, metadata
from .._composite import CompositeArgs, CompositeResults
from . import base, registry
from .pytree import TreeHandler, is_tree_restore, is_tree_save


@dataclasses.dataclass
class CompositeOptions:
    """Options that Orbax passes on to the parts of a composite save.

    Attributes:
        multiprocessing_options, file_options, async_options, atomicity_options: As a
            Checkpointer's, which is where ours take effect.
        temporary_path_class: Orbax's way to change how a save becomes visible. Ours is one atomic
            publish of the whole checkpoint; only None.
    """

    multiprocessing_options: Any = None
    temporary_path_class: Any = None
    file_options: Any = None
    atomicity_options: Any = None
    async_options: Any = None

    def __post_init__(self) -> None:
        if self.temporary_path_class is not None:
            raise ValueError("temporary_path_class: a checkpoint is published whole; leave it None")


class CompositeCheckpointHandler(base.AsyncCheckpointHandler):
    """Saves and restores items by name; args are `args.Composite`.

    Args:
        item_names: Names of items whose handlers follow from their args.
        composite_options: A `CompositeOptions`.
        handler_registry: Handlers by item and args type. Not together with handlers by name.
        items_and_handlers: Handlers by item name.

    Raises:
        ValueError: Handlers by name and a registry.
    """

    def __init__(
        self,
        *item_names: str,
        composite_options: CompositeOptions | None = None,
        handler_registry: Any = None,
        **items_and_handlers: Any,
    ) -> None:
        if handler_registry is not None and items_and_handlers:
            raise ValueError("Cannot provide both `handler_registry` and `items_and_handlers`.")
        self.item_names = item_names
        self.composite_options = composite_options or CompositeOptions()
        self.handler_registry = (
            None
            if handler_registry is None
            else registry.DefaultCheckpointHandlerRegistry(handler_registry)
        )
        self._named = {name: h for name, h in items_and_handlers.items() if h is not None}
        self._made: dict[type, Any] = {}

    @classmethod
    def typestr(cls) -> str:
        """The name of the handler; checkpoints remember those of their items instead."""
        return f"{base.package()}.{cls.__qualname__}"

    def handler_for_save(self, name: str, args: Any) -> Any:
        """The handler that saves an item.

        Raises:
            ValueError: The args are no args, or not those of the item's handler.
        """
        found = self._handler_of(name, args, is_tree_save(args))
        if found is None:
            raise ValueError(_unfit(name, args))
        return found

    def handler_for_restore(self, name: str, args: Any, info: Any) -> Any:
        """The handler that restores a stored item (`info`); args may be None.

        Raises:
            ValueError: No handler fits, or the one that the checkpoint remembers is not loaded.
        """
        from .. import _bridge

        if args is not None:
            found = self._handler_of(name, args, is_tree_restore(args))
            if found is None:
                raise ValueError(_unfit(name, args))
            return found
        found = self._named.get(name) or registry.any_of_item(self.handler_registry, name)
        found = found or _bridge.handler_of_item(info)
        if found is None:
            typestr = _bridge.recorded_handler(info)
            raise ValueError(
                f'item "{name}" was saved by the handler {typestr}, which is not loaded '
                "here: import its module, give item_handlers or a handler_registry, or "
                "name the items to restore in args.Composite(…)"
            )
        return found

    def _handler_of(self, name: str, args: Any, is_tree: bool) -> Any | None:
        if not checkpoint_args.is_args(args):
            return None
        named = self._named.get(name)
        if named is not None:
            return named if _fits(named, args, is_tree) else None
        found = registry.find(self.handler_registry, name, args)
        if found is not None:
            return found
        kind = type(args)
        if kind not in self._made:
            try:
                self._made[kind] = checkpoint_args.get_registered_handler_cls(kind)()
            except (TypeError, ValueError):
                return None
        return self._made[kind]

    def pairs_of(self, args: Any) -> dict[str, tuple[Any, Any]]:
        """The handler and args of each item of a composite; an item that is None is skipped."""
        if not isinstance(args, dict) and not hasattr(args, "items"):
            raise ValueError(f"CompositeCheckpointHandler takes args.Composite, not {type(args)}")
        return {
            name: (self.handler_for_save(name, given), given)
            for name, given in args.items()
            if given is not None
        }

    def restore_from(self, checkpoint: Any, args: Any = None) -> CompositeResults:
        """The items that args name, or all, from an open checkpoint.

        Raises:
            KeyError: The checkpoint lacks an item; the message lists those it has.
        """
        from .. import _bridge

        wanted = dict(args.items()) if args else dict.fromkeys(sorted(checkpoint.items))
        chosen = {}
        for name, given in wanted.items():
            info = _bridge.item_info(checkpoint, name)
            chosen[name] = (self.handler_for_restore(name, given, info), given)
        restored = {
            name: _bridge.restored(handler, given, checkpoint, name)
            for name, (handler, given) in chosen.items()
        }
        return CompositeResults(**restored)

    def metadata_from(self, checkpoint: Any) -> metadata.StepMetadata:
        """The metadata of all items; None for an item whose handler is not loaded."""
        from .. import _bridge

        items, handlers = {}, {}
        for name, info in checkpoint.items.items():
            named = self._named.get(name) or registry.any_of_item(self.handler_registry, name)
            items[name] = _bridge.metadata_of(named, checkpoint, name)
            handlers[name] = _bridge.recorded_handler(info)
        return metadata.step_metadata(checkpoint, CompositeResults(**items), handlers)

    async def async_save(self, directory: Any, args: Any = None) -> list[Any] | None:
        """Writes a standalone checkpoint to `directory`; there is nothing left to wait for."""
        self.save(directory, args)
        return None

    def save(self, directory: Any, args: Any = None) -> None:
        """Writes a standalone checkpoint to `directory`, which may be there but for our own."""
        from .. import _bridge

        prepared = _bridge.items_of(self.pairs_of(args))
        place = base.place_in(Path(directory), type(self).__name__)
        try:
            mp.save(
                str(place),
                items=prepared.items,
                item_metadata=prepared.item_metadata,
                together=False,
            )
        finally:
            prepared.close()

    def restore(self, directory: Any, args: Any = None) -> CompositeResults:
        """Restores what `save` wrote to the directory."""
        return self.restore_from(base.open_in(Path(directory), type(self).__name__), args)

    def metadata(self, directory: Any) -> metadata.StepMetadata:
        """Describes what `save` wrote to the directory."""
        return self.metadata_from(base.open_in(Path(directory), type(self).__name__))

    def close(self) -> None:
        """Closes the handlers."""
        handlers = [*self._named.values(), *self._made.values()]
        if self.handler_registry is not None:
            handlers.extend(self.handler_registry.get_all_entries().values())
        for handler in {id(one): one for one in handlers}.values():
            close = getattr(handler, "close", None)
            if close is not None:
                close()


def _fits(handler: Any, args: Any, is_tree: bool) -> bool:
    """Whether a handler takes these args: its class' own, or tree args of either kind."""
    if isinstance(args, base.LegacyCall):
        return True
    if isinstance(handler, TreeHandler) and is_tree:
        return True
    for kind in type(handler).__mro__:
        if checkpoint_args.has_registered_args(kind):
            return isinstance(args, checkpoint_args.get_registered_args_cls(kind))
    return True


def _unfit(name: str, args: Any) -> str:
    if checkpoint_args.is_args(args):
        return (
            f'Item "{name}" and args "{type(args).__name__}" does not match with any registered '
            "handler! Register them with register_with_handler, or give a handler that takes them"
        )
    return (
        f'item "{name}" is a {type(args).__name__}, not args: wrap it, for example in '
        "args.StandardSave(…) or args.StandardRestore(…)"
    )


checkpoint_args.register_with_handler(
    CompositeCheckpointHandler, for_save=True, for_restore=True
)(CompositeArgs)
