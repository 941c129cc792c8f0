"""Whether preemption was signalled."""

from __future__ import annotations

import sys
from typing import Any


def is_signalled(manager: Any, step: int) -> bool:
    """Returns whether the manager was told of preemption, or JAX's service was at `step`."""
    if manager._is_signalled():
        return True
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return False
    from jax.experimental import multihost_utils

    try:
        reached = bool(multihost_utils.reached_preemption_sync_point(step))
    except RuntimeError:  # the service does not watch for it
        return False
    if reached:
        manager.preempt()
    return reached
