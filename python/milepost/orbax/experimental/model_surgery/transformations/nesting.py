"""Nests parameters."""

from __future__ import annotations

import logging
from typing import Any

from milepost.orbax._targets import flatten_target
from milepost.orbax.experimental.model_surgery.transformations import types

Transformation = types.Transformation
_LOG = logging.getLogger("milepost.orbax.experimental")


def unflatten(separator: str = ".", *, inplace: bool = False, target: Any = None) -> Transformation:
    """Makes a transformation from names with separators to nested dicts.

    Example:
      >>> unflatten()({"a.w": w, "a.b": b})
      {"a": {"w": w, "b": b}}

    Args:
      separator: Between the parts of a name.
      inplace: Take each parameter out of the given dict as it is placed, to free memory.
      target: A tree whose containers the result gets. Parameters that it lacks are left out; its
        own values stay where there is no parameter, with a warning.

    Raises (when applied):
      ValueError: A name is also the beginning of another one.
    """

    def transform(*trees: Any) -> Any:
        given = types.one_dict(trees, "unflatten")
        if inplace and not isinstance(given, dict):
            raise ValueError("Inplace operations require parameters to be a dict.")
        take = given.pop if inplace else given.__getitem__
        if target is not None:
            return _into(target, given, take, separator)
        result: dict[str, Any] = {}
        for key in list(given):
            *parents, last = key.split(separator)
            node = result
            for part in parents:
                node = node.setdefault(part, {})
                if not isinstance(node, dict):
                    raise ValueError(f"{key!r} is below another parameter")
            if last in node:
                raise ValueError(f"{key!r} is a parameter, and others are below it")
            node[last] = take(key)
        return result

    return transform


def _into(target: Any, given: Any, take: Any, separator: str) -> Any:
    flat = flatten_target(target)
    values: dict[Any, Any] = {}
    missing = []
    for path, own in flat.leaves.items():
        name = separator.join(path)
        if name in given:
            values[path] = take(name)
        else:
            missing.append(name)
            values[path] = own
    if missing:
        _LOG.warning(
            "%d parameters are not in the checkpoint and keep the target's values: %s",
            len(missing),
            missing[:10],
        )
    return flat.rebuild(values)
