"""Stacks numbered parameters."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from milepost.orbax.experimental.model_surgery.transformations import types

Transformation = types.Transformation
_LOG = logging.getLogger("milepost.orbax.experimental")


def stack(
    pattern: str,
    *,
    expected_count: int | None = None,
    axis: int = 0,
    filler_mapping: Mapping[str, float] | None = None,
    default_filler: float | None = None,
    inplace: bool = False,
    sort_by_size: bool = True,
    target_sharding: Any = None,
) -> Transformation:
    r"""Makes a transformation that stacks parameters that differ in a number.

    Example:
      >>> stack(r"experts\.(\d+\.)")({"experts.0.w": a, "experts.1.w": b})
      {"experts.w": stack([a, b])}

    Args:
      pattern: A regular expression with one group, which holds one number and is left out of the
        new name. Names that it does not match stay as they are.
      expected_count: How many each stack has. None: the highest number of all, plus one.
      axis: The new axis.
      filler_mapping: By pattern of the new name: the value for numbers that are missing.
      default_filler: The same for other names. Without any, a missing number is an error.
      inplace: Take the parameters out of the given dict, to free memory.
      sort_by_size: Stack the largest first, which keeps the peak of memory low.
      target_sharding: Where the stacks are put.

    Raises (when applied):
      ValueError: The group does not hold one number, a number is there twice, or is missing.
    """
    compiled = re.compile(pattern)
    if compiled.groups != 1:
        raise ValueError(
            f"pattern must have exactly 1 capture group for the index, got {compiled.groups}: "
            f"{pattern}."
        )

    def transform(*trees: Any) -> dict[str, Any]:
        params = types.one_dict(trees, "stack")
        if inplace and not isinstance(params, dict):
            raise ValueError("Inplace operations require parameters to be a dict.")
        groups, result = _grouped(params, compiled, inplace)
        if not groups:
            return result
        count = expected_count
        if count is None:
            count = 1 + max(max(members) for members in groups.values())
        names = list(groups)
        if sort_by_size:
            names.sort(key=lambda name: -sum(one.nbytes for one in groups[name].values()))
        for name in names:
            filler = _filler(name, filler_mapping, default_filler)
            result[name] = _stacked(name, groups.pop(name), count, axis, filler, target_sharding)
        return result

    return transform


def _grouped(
    params: Any, pattern: re.Pattern[str], inplace: bool
) -> tuple[dict[str, dict[int, Any]], dict[str, Any]]:
    """The members of each stack by number, and what is no member of any."""
    groups: dict[str, dict[int, Any]] = {}
    others: dict[str, Any] = {}
    for key in list(params):
        match = pattern.search(key)
        if match is None:
            others[key] = params[key]
            continue
        numbers = re.findall(r"\d+", match[1] or "")
        if len(numbers) != 1:
            raise ValueError(f"the group must hold exactly one number, got {match[1]!r} in {key!r}")
        name = key[: match.start(1)] + key[match.end(1) :]
        members = groups.setdefault(name, {})
        if int(numbers[0]) in members:
            raise ValueError(f"Duplicate index {numbers[0]} found for base_key {name}")
        members[int(numbers[0])] = params.pop(key) if inplace else params[key]
    return groups, others


def _filler(
    name: str, mapping: Mapping[str, float] | None, default: float | None
) -> float | None:
    for pattern, value in (mapping or {}).items():
        if re.search(pattern, name):
            return value
    return default


def _stacked(
    name: str, members: dict[int, Any], count: int, axis: int, filler: float | None, sharding: Any
) -> Any:
    beyond = sorted(number for number in members if number >= count)
    missing = [number for number in range(count) if number not in members]
    if (missing or beyond) and filler is None:
        raise ValueError(
            f'Stacking "{name}": Found keys {sorted(members)}, but expected indices '
            f"0..{count - 1} when padding is disabled (no filler_mapping or default_filler was "
            "provided)."
        )
    if len(members) > count:
        raise ValueError(f"Found {len(members)} items, but expected maximum {count} for {name}")
    if missing or beyond:
        _LOG.warning(
            "stacking %s: %s are missing and filled with %s, %s are left out",
            name,
            missing,
            filler,
            beyond,
        )
    module = types.numpy_or_jax(members.values())
    like = next(iter(members.values()))
    parts = [
        members[number]
        if number in members
        else (module.ones(like.shape, like.dtype) * filler).astype(like.dtype)
        for number in range(count)
    ]
    stacked = module.stack(parts, axis=axis)
    if sharding is None:
        return stacked
    import jax

    return jax.device_put(stacked, sharding)
