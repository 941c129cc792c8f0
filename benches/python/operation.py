"""One operation of one Python library, in a process of its own: `operation.py PEER OPERATION KIND DIR SIZE`.

Operations: save (to the end of syncfs), restore (the whole state), blocked (how long an asynchronous save keeps its
caller, after a first save of a small state). KIND is what the state is made of: numpy, or jax (arrays on the CPU); a
restore gives the same. Making the state, imports and checks are outside the clock. Prints one JSON object.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))
import state as states
from worker import Ceiling, check, syncfs


class Milepost:
    """`milepost`, as it comes."""

    def __init__(self, folder: Path, kind: str):
        import milepost

        self.mp, self.url, self.kind = milepost, str(folder / "state"), kind

    def save(self, tree):
        self.mp.save(self.url, tree)

    def start(self, tree):
        return self.mp.save_async(self.url, tree)

    def finish(self, handle):
        handle.result()

    def restore(self, target):
        return self.mp.load(self.url, target)


class Orbax:
    """`orbax.checkpoint`, as it comes: OCDBT, zstd."""

    compress = True

    def __init__(self, folder: Path, kind: str):
        import orbax.checkpoint

        self.ocp, self.path, self.kind = orbax.checkpoint, folder.absolute() / "state", kind
        handler = self.ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_compression=self.compress)
        self.checkpointer = self.ocp.Checkpointer(handler)
        self.handler = handler

    def save(self, tree):
        self.checkpointer.save(self.path, args=self.ocp.args.PyTreeSave(tree))

    def start(self, tree):
        checkpointer = self.ocp.AsyncCheckpointer(self.handler)
        checkpointer.save(self.path, args=self.ocp.args.PyTreeSave(tree))
        return checkpointer

    def finish(self, checkpointer):
        checkpointer.wait_until_finished()
        checkpointer.close()

    def restore(self, target):
        arguments = self.ocp.checkpoint_utils.construct_restore_args(target)
        return self.checkpointer.restore(
            self.path, args=self.ocp.args.PyTreeRestore(item=target, restore_args=arguments)
        )


class OrbaxUncompressed(Orbax):
    """The same without zstd."""

    compress = False


PEERS = {"milepost": Milepost, "orbax": Orbax, "orbax-uncompressed": OrbaxUncompressed}


def made(flat: dict[str, np.ndarray], kind: str) -> dict:
    """The state as a tree of NumPy or of JAX arrays, ready."""
    if kind == "jax":
        import jax

        tree = jax.device_put(states.nest(flat))
        return jax.block_until_ready(tree)
    return states.nest(flat)


def target(size: str, kind: str) -> dict:
    """What is asked of a restore: shapes and dtypes, and for JAX the device."""
    dtypes = {path: np.dtype(np.int32 if path.endswith("count") else np.float32) for path in states.leaves(size)}
    if kind == "jax":
        import jax

        where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = {
            path: jax.ShapeDtypeStruct(shape, dtypes[path], sharding=where)
            for path, shape in states.leaves(size).items()
        }
    else:
        abstract = {path: np.empty(shape, dtypes[path]) for path, shape in states.leaves(size).items()}
    return states.nest(abstract)


def ready(tree: dict, kind: str) -> dict:
    """Nothing of a JAX result is still on its way."""
    if kind == "jax":
        import jax

        jax.block_until_ready(tree)
    return tree


def measure(peer, operation: str, kind: str, folder: Path, size: str) -> dict[str, float]:
    """Seconds of one operation."""
    if operation == "restore":
        wanted = target(size, kind)
        begun = time.perf_counter()
        tree = ready(peer.restore(wanted), kind)
        seconds = time.perf_counter() - begun
        flat = states.flatten(tree)
        if len(flat) != len(states.leaves(size)):
            raise SystemExit("leaves are missing")
        import jax

        wrong = {type(v).__name__ for v in flat.values() if isinstance(v, jax.Array) != (kind == "jax")}
        if wrong:
            raise SystemExit(f"restored as {wrong}")
        check(size, flat, [states.ONE, "opt_state/count", "opt_state/nu/ln_f/bias"])
        return {"seconds": seconds}
    tree = made(states.state(size), kind)
    if operation == "blocked":
        first = type(peer)(folder / "first", peer.kind)
        first.finish(first.start(made(states.state("smoke"), kind)))
    gc.collect()  # what made the state is freed now, not under the clock
    syncfs(folder)
    begun = time.perf_counter()
    if operation == "save":
        peer.save(tree)
        syncfs(folder)
        return {"seconds": time.perf_counter() - begun}
    handle = peer.start(tree)
    blocked = time.perf_counter() - begun
    peer.finish(handle)
    return {"seconds": blocked, "until_saved": time.perf_counter() - begun}


def main() -> None:
    name, operation, kind, folder, size = sys.argv[1:]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if name == "ceiling":
        peer = Ceiling(folder, size)
        begun = time.perf_counter()
        if operation == "restore":
            peer.restore()
        else:
            peer.save({})
            syncfs(folder)
        print(json.dumps({"seconds": time.perf_counter() - begun}))
        return
    print(json.dumps(measure(PEERS[name](folder, kind), operation, kind, folder, size)))


if __name__ == "__main__":
    main()
