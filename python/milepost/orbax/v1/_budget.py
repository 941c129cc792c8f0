"""Memory limits of a context, as the byte budget of the engine that saves or loads.

An engine has threads and buffers of its own: one is made for each limit and kept.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import milepost as mp
from milepost.orbax.v1._context import Context

ENGINES_MAX = 4


@functools.lru_cache(maxsize=ENGINES_MAX)
def _engine(limit_bytes: int) -> Any:
    return mp.Engine(memory_bytes=limit_bytes)


def _checked(name: str, limit: Any) -> int:
    if limit <= 0:
        raise ValueError(f"ctx.memory.{name} must be positive: {limit}")
    return int(limit)


def for_save(context: Context) -> Any | None:
    """Returns the engine that a context's limits ask for at a save; None: the process's own.

    Raises:
      ValueError: A limit is not positive.
    """
    memory = context.memory
    limits = [
        _checked(name, getattr(memory, name))
        for name in ("write_concurrent_bytes", "transfer_concurrent_bytes")
        if getattr(memory, name) is not None
    ]
    if memory.regulator_options is not None:
        # The regulated limit takes the place of the fixed one for transfers.
        limits = limits[:1] if memory.write_concurrent_bytes is not None else []
        limits.append(memory.regulator_options.regulator.current_limit_bytes)
    return _engine(min(limits)) if limits else None


def for_load(context: Context) -> Any | None:
    """Returns the engine that a context's limit asks for at a load; None: the process's own."""
    limit = context.memory.read_concurrent_bytes
    return None if limit is None else _engine(_checked("read_concurrent_bytes", limit))


def regulated(context: Context) -> contextlib.ExitStack:
    """Begins the measurement of one save for the context's regulator; `close()` ends it."""
    stack = contextlib.ExitStack()
    options = context.memory.regulator_options
    if options is not None:
        stack.enter_context(
            options.regulator.regulate(expected_surge_bytes=context.memory.expected_surge_bytes)
        )
    return stack
