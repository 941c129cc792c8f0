"""The processes of a program, as JAX counts them; one where JAX is not in use."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Collection


def process_index() -> int:
    """Returns the number of this process."""
    jax = sys.modules.get("jax")
    return 0 if jax is None else int(jax.process_index())


def process_count() -> int:
    """Returns how many processes there are."""
    jax = sys.modules.get("jax")
    return 1 if jax is None else int(jax.process_count())


def is_primary_host(primary_host: int | None) -> bool:
    """Returns whether this process is the primary one; None: every process is."""
    return primary_host is None or process_count() == 1 or process_index() == primary_host


def is_pathways_backend() -> bool:
    """Returns whether JAX runs on Pathways."""
    jax = sys.modules.get("jax")
    if jax is None:
        return False
    version = str(getattr(jax.devices()[0].client, "platform_version", ""))
    return "pathways" in version.lower()


async def sync_global_processes(
    key: str,
    *,
    operation_id: str,
    timeout: int | None = None,
    processes: Collection[int] | None = None,
    record_event_name: str = "/jax/checkpoint/sync_global_devices_duration_sec",
) -> None:
    """Waits until every process has called this with the same key; at once where there is one.

    Args:
      key: Of the barrier; once per use.
      operation_id: Makes the key unique.
      timeout: Seconds; None: 1,200.
      processes: Those that take part; None: all.
      record_event_name: The name under which `jax.monitoring` gets the seconds waited.

    Raises:
      RuntimeError: There are several processes, but `jax.distributed` does not run.
    """
    if process_count() == 1 or (processes is not None and len(processes) <= 1):
        return
    import jax
    from jax._src import distributed

    client = distributed.global_state.client
    if client is None:
        raise RuntimeError(
            "barriers between processes need jax.distributed.initialize() to have been called"
        )
    begun = time.monotonic()
    milliseconds = int((1200 if timeout is None else timeout) * 1000)
    members = None if processes is None else sorted(processes)
    await asyncio.to_thread(client.wait_at_barrier, f"{operation_id}_{key}", milliseconds, members)
    jax.monitoring.record_event_duration_secs(record_event_name, time.monotonic() - begun)
