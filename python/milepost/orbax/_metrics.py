"""Metrics of a step: any JSON that Orbax takes, kept in a record that holds flat names and floats.

```text
  {"eval": {"loss": 0.5}}           record.metrics   {"eval/loss": 0.5}
  {"loss": 0.5, "epoch": 3}         record.metrics   {"loss": 0.5, "epoch": 3.0}
                                    record.metadata  {"milepost.orbax": {"metrics": …as saved…}}
```

Numbers are always in `record.metrics`, where native policies and the CLI find them. Where those
alone do not give back what was saved (integers, booleans, text, lists), the whole of it is in the
metadata besides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

#: The member of a record's metadata that is ours; the caller's own metadata is beside it.
MEMBER = "milepost.orbax"


def plain(value: Any, path: str = "metrics") -> Any:
    """Returns metrics as JSON gives them back: numpy and jax scalars are numbers, keys are text,
    tuples are lists.

    Raises:
      TypeError: what JSON cannot hold, with its key path.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else _float(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {_key(k, path): plain(v, f"{path}/{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(member, f"{path}/{i}") for i, member in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return plain(value.item(), path)
    shape = getattr(value, "shape", None)
    what = type(value).__name__ if shape is None else f"{type(value).__name__} of shape {shape}"
    raise TypeError(
        f"metrics are numbers, text, lists and dicts of them. path=`{path}`, type=`{what}`"
    )


def recorded(metrics: Any) -> tuple[dict[str, float], Any]:
    """Returns what the record's metrics hold of `plain` ones, and what its metadata must hold
    besides (or None)."""
    flat = dict(_numbers(metrics, ()))
    return flat, (None if _is_whole(metrics) else metrics)


def beside(custom_metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the caller's metadata, checked.

    Raises:
      ValueError: it has a member that is ours.
    """
    metadata = dict(custom_metadata or {})
    if MEMBER in metadata:
        raise ValueError(f"custom_metadata has a member that is Milepost's: `{MEMBER}`")
    return metadata


def add(metadata: dict[str, Any], metrics: Any) -> dict[str, float]:
    """Returns what the record holds of `plain` metrics; the rest goes into the metadata."""
    numbers, rest = recorded(metrics)
    if rest is not None or metrics == {}:
        metadata[MEMBER] = {"metrics": rest if rest is not None else {}}
    return numbers


def saved(flat: Mapping[str, float], member: Any) -> Any | None:
    """Returns the metrics that were saved, from the record's metrics and our member of its
    metadata; None for none."""
    if isinstance(member, Mapping) and "metrics" in member:
        return member["metrics"]
    if not flat:
        return None
    tree: dict[str, Any] = {}
    for name, number in flat.items():
        *parents, last = [_unescaped(segment) for segment in name.split("/")]
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                return dict(flat)
        node[last] = number
    return tree


def of_checkpoint(checkpoint: Any) -> Any | None:
    """Returns the metrics that a `milepost.Checkpoint` was saved with; None for none."""
    return saved(checkpoint.metrics, checkpoint.metadata.get(MEMBER))


def _key(key: Any, path: str) -> str:
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, (bool, int, float)):
        return json.dumps(key)
    raise TypeError(f"a metric's name is text. path=`{path}`, type=`{type(key).__name__}`")


def _numbers(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, member in value.items():
            yield from _numbers(member, (*keys, key))
    elif isinstance(value, list):
        for i, member in enumerate(value):
            yield from _numbers(member, (*keys, str(i)))
    elif isinstance(value, (bool, int, float)):
        yield "/".join(map(_escaped, keys)), _float(value)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _is_whole(value: Any) -> bool:
    """Tells whether the numbers alone give it back: non-empty dicts with floats as leaves."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(m, float) or _is_whole(m) for m in value.values())


def _escaped(segment: str) -> str:
    return segment.replace("~", "~0").replace("/", "~1")


def _unescaped(segment: str) -> str:
    return segment.replace("~1", "/").replace("~0", "~")
