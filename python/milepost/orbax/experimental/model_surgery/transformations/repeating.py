"""Repeats elements of parameters."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from milepost.orbax.experimental.model_surgery.transformations import types

Transformation = types.Transformation
_LOG = logging.getLogger("milepost.orbax.experimental")


def _repeated(value: Any, dimension: int, repeat_count: int) -> Any:
    return types.numpy_or_jax([value]).repeat(value, repeat_count, axis=dimension)


def repeat_by_pattern(*, pattern: str, dimension: int, repeat_count: int) -> Transformation:
    r"""Makes a transformation that repeats elements of the parameters that a pattern matches.

    Example:
      >>> repeat_by_pattern(pattern=r".*\.w$", dimension=0, repeat_count=2)({"a.w": [1, 2]})
      {"a.w": [1, 1, 2, 2]}

    Args:
      pattern: A regular expression, matched from the beginning of the name.
      dimension: The axis.
      repeat_count: How often each element is there afterwards.
    """
    compiled = re.compile(pattern)

    def transform(*trees: Any) -> dict[str, Any]:
        return {
            key: _repeated(value, dimension, repeat_count) if compiled.match(key) else value
            for key, value in types.one_dict(trees, "repeat").items()
        }

    return transform


def repeat_by_keys(
    *, target_keys: Sequence[str], dimension: int, repeat_count: int
) -> Transformation:
    """Makes a transformation that repeats elements of the named parameters.

    Args:
      target_keys: Names; those that are not there are warned about.
      dimension: The axis.
      repeat_count: How often each element is there afterwards.
    """

    def transform(*trees: Any) -> dict[str, Any]:
        result = dict(types.one_dict(trees, "repeat"))
        missing = [key for key in target_keys if key not in result]
        if missing:
            _LOG.warning("these keys are not there and were not repeated: %s", missing)
        for key in target_keys:
            if key in result:
                result[key] = _repeated(result[key], dimension, repeat_count)
        return result

    return transform
