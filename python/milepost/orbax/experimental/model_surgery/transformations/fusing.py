"""Joins several parameters to one."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from milepost.orbax.experimental.model_surgery.transformations import types

Transformation = types.Transformation
_LOG = logging.getLogger("milepost.orbax.experimental")


def _fuse(params: dict[str, Any], keys: Sequence[str], name: str, axis: int) -> None:
    """Replaces the named parameters by one; they are joined in the given order."""
    arrays = [params.pop(key) for key in keys]
    params[name] = types.numpy_or_jax(arrays).concatenate(arrays, axis=axis)


def fuse_by_pattern(
    *, pattern: str, unique_parts: Sequence[str], fused_unique_part: str, axis: int = 0
) -> Transformation:
    r"""Makes a transformation that joins parameters whose names differ in one part.

    Example:
      >>> fuse_by_pattern(
      ...     pattern=r".*\.(gate|up)$", unique_parts=["gate", "up"], fused_unique_part="gate_up"
      ... )({"0.gate": a, "0.up": b})
      {"0.gate_up": concatenate([a, b])}

    Args:
      pattern: A regular expression of the names that count, matched from their beginning.
      unique_parts: The parts in which they differ, in the order in which they are joined.
      fused_unique_part: The part in the new name.
      axis: Along which they are joined.

    A set that is not complete is left as it is, with a warning.
    """
    compiled = re.compile(pattern)
    unique = re.compile("|".join(re.escape(part) for part in unique_parts))

    def transform(*trees: Any) -> dict[str, Any]:
        params = dict(types.one_dict(trees, "fuse"))
        groups: dict[str, dict[str, str]] = {}
        for key in params:
            found = unique.search(key) if compiled.match(key) else None
            if found is not None:
                name = unique.sub(lambda _: fused_unique_part, key)
                groups.setdefault(name, {})[found[0]] = key
        for name, members in groups.items():
            if len(members) == len(unique_parts):
                _fuse(params, [members[part] for part in unique_parts], name, axis)
            else:
                _LOG.warning(
                    "%s is not fused: of %s there are %s", name, list(unique_parts), list(members)
                )
        return params

    return transform


def fuse_by_keys(
    *, source_keys: Sequence[str], target_key: str, axis: int = 0
) -> Transformation:
    """Makes a transformation that joins the named parameters to one.

    Args:
      source_keys: Names, in the order in which they are joined.
      target_key: The new name.
      axis: Along which they are joined.

    Where some are missing, nothing is joined, with a warning.
    """

    def transform(*trees: Any) -> dict[str, Any]:
        params = dict(types.one_dict(trees, "fuse"))
        found = [key for key in source_keys if key in params]
        if len(found) == len(source_keys):
            _fuse(params, source_keys, target_key, axis)
        elif found:
            _LOG.warning(
                "%s is not fused: of %s there are %s", target_key, list(source_keys), found
            )
        return params

    return transform
