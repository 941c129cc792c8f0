"""Small questions about JAX's processes, as `orbax.checkpoint.multihost` answers them."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

BARRIER_SECONDS = 300


def coordination_timeout() -> int:
    """How long processes wait for each other, in seconds."""
    return BARRIER_SECONDS


def unique_barrier_key(key: str, *, prefix: str | None = None, suffix: str | None = None) -> str:
    """The key of a barrier: ``<prefix>_<key>.<suffix>``."""
    head = key if prefix is None else f"{prefix}_{key}"
    return head if suffix is None else f"{head}.{suffix}"


def process_index_from_device(device: Any) -> int:
    """The process that has a device."""
    return int(device.process_index)


def unique_processes_from_devices(device_array: Any) -> set[int]:
    """The processes that have these devices."""
    import numpy as np

    return {process_index_from_device(device) for device in np.asarray(device_array).flat}


def is_jax_distributed_client_initialized() -> bool:
    """Whether `jax.distributed.initialize()` was called."""
    import jax

    return bool(jax.distributed.is_initialized())


def get_jax_distributed_client() -> Any:
    """The client of JAX's coordination service.

    Raises:
        ValueError: `jax.distributed.initialize()` was not called.
    """
    from jax._src import distributed

    client = distributed.global_state.client
    if client is None:
        raise ValueError("there is no coordination service: call jax.distributed.initialize() first")
    return client


def should_skip_process_sync(processes: Set[int] | None = None) -> bool:
    """Whether there is nobody to wait for: one process, or this one alone is meant."""
    import jax

    alone = processes is not None and set(processes) == {jax.process_index()}
    return alone or jax.process_count() == 1


def get_barrier_sync_fn(*, processes: Set[int] | None = None) -> Callable[..., None]:
    """A function ``(*, key, timeout_ms)`` that waits until all processes, or these, have called it.

    With one process it returns at once. Keys may be used from several threads, each key once.
    """
    if should_skip_process_sync(processes):
        return lambda *, key, timeout_ms: None
    client = get_jax_distributed_client()
    members = None if processes is None else sorted(processes)

    def wait(*, key: str, timeout_ms: int) -> None:
        client.wait_at_barrier(key, timeout_ms, process_ids=members)

    return wait


def is_pathways_backend() -> bool:
    """Whether JAX runs on Pathways."""
    import jax

    return "pathways" in str(getattr(jax.devices()[0].client, "runtime_type", ""))
