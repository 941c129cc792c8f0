"""Renames parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from milepost.orbax.experimental.model_surgery.transformations import types

Transformation = types.Transformation


def rename_by_regex(rules: Sequence[tuple[str, str]]) -> Transformation:
    r"""Makes a transformation that rewrites names.

    Example:
      >>> rename_by_regex([(r"^params\.", "")])({"params.w": w})
      {"w": w}

    Args:
      rules: (pattern, replacement), as of `re.sub`; all of them, in order, for every name.

    Raises (when applied):
      ValueError: Two parameters get the same name.
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def transform(*trees: Any) -> dict[str, Any]:
        result: dict[str, Any] = {}
        origin: dict[str, str] = {}
        for key, value in types.one_dict(trees, "rename").items():
            name = key
            for pattern, replacement in compiled:
                name = pattern.sub(replacement, name)
            if name in result:
                raise ValueError(f"{origin[name]!r} and {key!r} would both be renamed to {name!r}")
            result[name], origin[name] = value, key
        return result

    return transform
