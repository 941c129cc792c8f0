"""The newest state, kept in the host's memory.

Orbax's class keeps one copy for each replica and needs Pathways to do so. This one keeps one copy
of every array on the host, which needs nothing; it is lost with the process, as Orbax's is.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from typing import Any

import numpy as np

from milepost import _structure
from milepost.orbax._leaf_requests import is_jax_array, is_prng_key
from milepost.orbax._targets import flatten_target
from milepost.orbax.v1 import _tree_load
from milepost.orbax.v1.path import default_path_class
from milepost.orbax.v1.training.metadata import CheckpointMetadata

_LOG = logging.getLogger("milepost.orbax.v1")


class Snapshotter:
    """Keeps the newest snapshot of a state in host memory.

    Args:
      replica_axis_index: The mesh axis of replicas, as Orbax has it. The host's copy is whole, so
        that any replica can be loaded from it; the number only has to be one of an axis.
    """

    def __init__(self, *, replica_axis_index: int = 0):
        if replica_axis_index < 0:
            raise ValueError(f"replica_axis_index must not be negative: {replica_axis_index}")
        self.replica_axis_index = replica_axis_index
        self._lock = threading.Lock()
        self._latest: tuple[int, Any] | None = None
        self._copying: concurrent.futures.Future[None] | None = None
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "milepost-snapshot")

    def save(self, step: int, state: Any) -> None:
        """Starts a snapshot; one that comes while another is being taken is skipped."""
        if self._copying is not None and not self._copying.done():
            _LOG.warning("a snapshot is being taken: skipping that of step %d", step)
            return
        _, leaves = _structure.flatten(state)
        # NumPy now: its owner may write to it. Arrays of JAX are immutable: in the background.
        held = [leaf.copy() if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
        for leaf in held:
            if is_jax_array(leaf) and not is_prng_key(leaf):
                leaf.copy_to_host_async()
        self._copying = self._pool.submit(self._copy, step, state, held)

    def _copy(self, step: int, state: Any, leaves: list[Any]) -> None:
        copies = [
            np.array(leaf) if is_jax_array(leaf) and not is_prng_key(leaf) else leaf
            for leaf in leaves
        ]
        snapshot = _structure.rebuild(state, copies)
        with self._lock:
            self._latest = (step, snapshot)

    def load(self, abstract_state: Any, *, reset_snapshot_state: bool = True) -> Any:
        """Returns the newest snapshot with the shardings of `abstract_state`.

        Args:
          abstract_state: A tree of the same containers, with `sharding` for arrays.
          reset_snapshot_state: Keep the snapshot for the next load; False frees it.

        Raises:
          RuntimeError: There is no snapshot.
          ValueError: The containers differ.
        """
        import jax

        self.join()
        with self._lock:
            if self._latest is None:
                raise RuntimeError("No snapshots available to restore from.")
            _, snapshot = self._latest
            if not reset_snapshot_state:
                self._latest = None
        target = flatten_target(abstract_state, stop=_tree_load.is_abstract_leaf)
        kept = flatten_target(snapshot).leaves
        if kept.keys() != target.leaves.keys():
            differ = sorted("/".join(path) for path in kept.keys() ^ target.leaves.keys())
            raise ValueError(f"abstract_state and the snapshot differ at {', '.join(differ)}")
        placed = {}
        for path, leaf in kept.items():
            sharding = getattr(target.leaves[path], "sharding", None)
            is_array = isinstance(leaf, np.ndarray) and sharding is not None
            placed[path] = jax.device_put(leaf, sharding) if is_array else leaf
        return target.rebuild(placed)

    def join(self) -> None:
        """Waits until the snapshot that is being taken is there; raises what went wrong."""
        copying, self._copying = self._copying, None
        if copying is not None:
            copying.result()

    @property
    def latest(self) -> CheckpointMetadata[None] | None:
        """The step of the newest snapshot; None where there is none."""
        with self._lock:
            if self._latest is None:
                return None
            return CheckpointMetadata(self._latest[0], default_path_class()(), metadata=None)
