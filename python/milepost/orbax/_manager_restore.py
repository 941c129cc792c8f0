"""What a manager gives of an open step: its values, and what is known of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import milepost as mp

from . import _bridge, _manager_foreign, _metrics
from ._composite import CompositeArgs
from ._manager_items import ItemHandlers
from ._manager_setup import METRICS_ITEM
from .metadata import StepMetadata, step_metadata


def restore(
    opened: mp.Checkpoint, items: ItemHandlers, args: Any | None, default: bool | None
) -> Any:
    """Restores the one item, or a Composite by item; metrics are one of these, as in Orbax.

    Args:
      opened: the step.
      items: the manager's handlers.
      args: RestoreArgs of the one item, or a Composite of them; None or empty: all as saved.
      default: whether it is the one item that is wanted.

    Raises:
      ItemNotFound: an item is not there.
      ValueError: args that do not fit an item.
    """
    if default:
        return _item(opened, items, _bridge.DEFAULT_ITEM, args)
    metrics = None if METRICS_ITEM in opened.items else _metrics.of_checkpoint(opened)
    if args is None or not len(args):
        names = {*opened.items, *([METRICS_ITEM] if metrics is not None else [])}
        args = dict.fromkeys(sorted(names))
    values = {}
    for name in sorted(args):
        if name == METRICS_ITEM and metrics is not None:
            values[name] = metrics
        else:
            values[name] = _item(opened, items, name, args[name])
    return CompositeArgs(**values)


def _item(opened: mp.Checkpoint, items: ItemHandlers, name: str, args: Any | None) -> Any:
    info = _bridge.item_info(opened, name)
    handler = items.for_restore(name, args, info)
    value = _bridge.restored(handler, args, opened, name)
    if args is not None:
        items.settle([(name, handler)])
    return value


def described(opened: mp.Checkpoint, items: ItemHandlers, default: bool | None) -> StepMetadata:
    """Returns what is known of a step; `default` None: its items tell."""
    infos = opened.items
    metadata_of = {
        name: _bridge.metadata_of(items.known(name, info), opened, name)
        for name, info in infos.items()
    }
    if default is None:
        default = _manager_foreign.is_default(opened)
    metadata = step_metadata(
        opened,
        metadata_of.get(_bridge.DEFAULT_ITEM) if default else CompositeArgs(**metadata_of),
        {name: _bridge.recorded_handler(info) for name, info in infos.items()},
    )
    custom = {k: v for k, v in metadata.custom_metadata.items() if k != _metrics.MEMBER}
    metrics = _metrics.of_checkpoint(opened)
    return dataclasses.replace(
        metadata, metrics={} if metrics is None else metrics, custom_metadata=custom
    )
