"""This process among others, as far as the drop-in's users ask. JAX is asked, never started."""

from __future__ import annotations

import sys
from collections.abc import Set
from typing import Any

from milepost._errors import Unsupported
from milepost._together import Together, of_jax, running_jax

from ._processes import (
    coordination_timeout,
    get_barrier_sync_fn,
    get_jax_distributed_client,
    is_jax_distributed_client_initialized,
    is_pathways_backend,
    process_index_from_device,
    should_skip_process_sync,
    unique_barrier_key,
    unique_processes_from_devices,
)

__all__ = [
    "broadcast_one_to_all",
    "coordination_timeout",
    "get_barrier_sync_fn",
    "get_jax_distributed_client",
    "is_jax_distributed_client_initialized",
    "is_pathways_backend",
    "is_primary_host",
    "process_count",
    "process_index",
    "process_index_from_device",
    "reached_preemption",
    "refuse_several_processes",
    "should_skip_process_sync",
    "sync_global_processes",
    "together",
    "unique_barrier_key",
    "unique_processes_from_devices",
]


def _jax() -> Any | None:
    return sys.modules.get("jax")


def process_index() -> int:
    """JAX's number of this process; 0 without JAX."""
    jax = _jax()
    return 0 if jax is None else jax.process_index()


def process_count() -> int:
    """How many processes JAX knows; 1 without JAX."""
    jax = _jax()
    return 1 if jax is None else jax.process_count()


def refuse_several_processes(primary_host: int | None = 0) -> None:
    """Refuses what several processes cannot do together: a save in parts.

    Raises:
        milepost.Unsupported: JAX runs on more than one process.
    """
    jax = _jax()
    if primary_host is None or jax is None or not jax.distributed.is_initialized():
        return
    if jax.process_count() > 1:
        raise Unsupported(
            "several processes cannot save one checkpoint in parts",
            context={"processes": str(jax.process_count())},
            hint="save the tree in one call, or set primary_host=None for node-local storage",
        )


def together(
    url: str,
    primary_host: int | None = 0,
    active_processes: Set[int] | None = None,
    timeout: float | None = None,
) -> Together | bool:
    """With whom this process saves at a place: a meeting of JAX's processes; False: alone.

    Where each process is its own primary (``primary_host=None``, node-local storage) each saves for itself. The others are
    waited for `timeout` seconds, ten minutes where it is None.

    Raises:
        milepost.Invalid: this process is none of the active ones.
    """
    state = None if primary_host is None else running_jax()
    if state is None:
        return False
    count = int(state.num_processes)
    members = sorted(range(count) if active_processes is None else active_processes)
    if members == [int(state.process_id)]:
        return False
    # The primary one is first: it deletes old steps, and its metadata is stored.
    members.sort(key=lambda process: process != primary_host)
    meeting = of_jax(url, None if members == list(range(count)) else tuple(members))
    return meeting if timeout is None else meeting.within(timeout)


def is_committer(primary_host: int | None) -> bool:
    """Whether this process looks after what is saved: the primary one of `jax.distributed`'s, or
    this one alone."""
    state = None if primary_host is None else running_jax()
    return state is None or int(state.process_id) == primary_host


def is_primary_host(primary_host: int | None) -> bool:
    """Whether this process is the primary one; None: every process is."""
    return primary_host is None or primary_host == process_index()


def sync_global_processes(
    name: str,
    *,
    timeout: int | None = None,
    processes: set[int] | None = None,
    barrier_sync_fn: Any = None,
    record_event_name: str | None = None,
) -> None:
    """Waits until all processes are here; at once where there is only one.

    Args:
        name: The place's name, the same in every process.
        timeout: Seconds; None: 300.
        processes: The processes that come; None: all. Some of them need a `barrier_sync_fn`.
        barrier_sync_fn: Waits in place of JAX's coordination service.
        record_event_name: The name under which `jax.monitoring` gets the seconds.
    """
    import time

    if process_count() == 1:
        return
    begun = time.monotonic()
    if barrier_sync_fn is not None:
        barrier_sync_fn(key=name, timeout_ms=1000 * (timeout or 300))
    elif processes is not None:
        raise ValueError("a barrier of some processes needs a barrier_sync_fn")
    else:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
    if record_event_name is not None:
        jax = _jax()
        jax.monitoring.record_event_duration_secs(record_event_name, time.monotonic() - begun)


def broadcast_one_to_all(in_tree: Any, is_source: bool | None = None) -> Any:
    """The tree of one process in all of them; the tree itself where there is only one."""
    if process_count() == 1:
        return in_tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(in_tree, is_source=is_source)


def reached_preemption(step: int) -> bool:
    """Whether JAX's coordination service has announced that this process will be stopped."""
    jax = _jax()
    if jax is None:
        return False
    from jax.experimental import multihost_utils

    try:
        return bool(multihost_utils.reached_preemption_sync_point(step))
    except RuntimeError:
        return False
