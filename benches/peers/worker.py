"""One operation of one peer, in a process of its own: `worker.py PEER OPERATION DIR SIZE`.

Operations: save (timed to the end of syncfs), restore (the whole state as NumPy arrays), one (a single
parameter). Making the state, imports and checks are outside the clock. Prints one JSON object: seconds, and the
peak of resident memory from the start of the operation on, the state of a save included.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

import state as states

BLOCK_BYTES = 8 << 20
THREADS = 2


def syncfs(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(descriptor)


class Safetensors:
    """One file, safetensors' own NumPy functions."""

    def __init__(self, folder: Path, size: str):
        from safetensors import numpy, safe_open

        self.file, self.io, self.open = folder / "state.safetensors", numpy, safe_open

    def save(self, flat):
        self.io.save_file(flat, self.file)

    def restore(self):
        return self.io.load_file(self.file)

    def one(self, path):
        with self.open(self.file, "numpy") as file:
            return file.get_tensor(path)


class TensorStore:
    """An uncompressed zarr3 array a leaf; all written, then one syncfs instead of one fsync a chunk."""

    chunk_bytes = 64 << 20

    def __init__(self, folder: Path, size: str):
        import tensorstore

        self.ts, self.folder, self.leaves = tensorstore, folder, states.leaves(size)
        self.context = tensorstore.Context({"file_io_sync": False})

    def spec(self, path):
        return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(self.folder / path)}}

    def chunk(self, array):
        if array.ndim == 0 or array.nbytes <= self.chunk_bytes:
            return list(array.shape)
        rows = max(1, array.shape[0] * self.chunk_bytes // array.nbytes)
        return [rows, *array.shape[1:]]

    def save(self, flat):
        opened = {}
        for path, array in flat.items():
            metadata = {
                "shape": list(array.shape),
                "data_type": str(array.dtype),
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": self.chunk(array)}},
                "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            }
            spec = {**self.spec(path), "metadata": metadata}
            opened[path] = self.ts.open(spec, create=True, context=self.context)
        writes = [
            store.result().write(flat[path], can_reference_source_data_indefinitely=True)
            for path, store in opened.items()
        ]
        for write in writes:
            write.result()

    def restore(self):
        opened = {p: self.ts.open(self.spec(p), open=True, context=self.context) for p in self.leaves}
        reads = {path: store.result().read() for path, store in opened.items()}
        return {path: read.result() for path, read in reads.items()}

    def one(self, path):
        return self.ts.open(self.spec(path), open=True, context=self.context).result().read().result()


class ZarrPython:
    """An uncompressed array a leaf, one chunk each, stock zarr-python."""

    def __init__(self, folder: Path, size: str):
        import zarr

        self.zarr, self.folder, self.leaves = zarr, folder, states.leaves(size)

    def save(self, flat):
        root = self.zarr.create_group(str(self.folder / "state.zarr"), zarr_format=3)
        for path, array in flat.items():
            root.create_array(path, data=array, chunks=array.shape or "auto", compressors=None)

    def restore(self):
        root = self.zarr.open_group(str(self.folder / "state.zarr"), mode="r")
        return {path: np.asarray(root[path][...]) for path in self.leaves}

    def one(self, path):
        return self.zarr.open_group(str(self.folder / "state.zarr"), mode="r")[path][...]


class Orbax:
    """PyTreeCheckpointer as it comes: OCDBT, zstd."""

    compress = True

    def __init__(self, folder: Path, size: str):
        os.environ["JAX_PLATFORMS"] = "cpu"
        import orbax.checkpoint

        self.ocp, self.target, self.size = orbax.checkpoint, folder.absolute() / "state", size
        handler = self.ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_compression=self.compress)
        self.checkpointer = self.ocp.Checkpointer(handler)

    def save(self, flat):
        self.checkpointer.save(self.target, args=self.ocp.args.PyTreeSave(states.nest(flat)))

    def _restore(self, paths, partial):
        arguments = self.ocp.RestoreArgs(restore_type=np.ndarray)
        wanted = states.nest({path: 0 for path in paths})
        restore_args = states.nest({path: arguments for path in paths})
        restore = self.ocp.args.PyTreeRestore(
            item=wanted, restore_args=restore_args, **({"partial_restore": True} if partial else {})
        )
        return states.flatten(self.checkpointer.restore(self.target, args=restore))

    def restore(self):
        return self._restore(states.leaves(self.size), partial=False)

    def one(self, path):
        return self._restore([path], partial=True)[path]


class OrbaxUncompressed(Orbax):
    """The same without zstd."""

    compress = False


class Plain:
    """One file, leaf after leaf, buffered: what a loop of `write` does."""

    def __init__(self, folder: Path, size: str):
        self.file, self.leaves = folder / "state.bin", states.leaves(size)

    def places(self):
        offset = 0
        for path, shape in self.leaves.items():
            dtype = np.dtype(np.int32 if path.endswith("count") else np.float32)
            yield path, shape, dtype, offset
            offset += dtype.itemsize * int(np.prod(shape, dtype=np.int64))

    def save(self, flat):
        with self.file.open("wb", buffering=0) as file:
            for array in flat.values():
                rest = memoryview(array.reshape(-1)).cast("B")
                while rest:  # one write call takes 2 GiB at most
                    rest = rest[file.write(rest) :]

    def _read(self, file, shape, dtype, offset):
        file.seek(offset)
        return np.fromfile(file, dtype, int(np.prod(shape, dtype=np.int64))).reshape(shape)

    def restore(self):
        with self.file.open("rb", buffering=0) as file:
            return {p: self._read(file, shape, dtype, at) for p, shape, dtype, at in self.places()}

    def one(self, path):
        with self.file.open("rb", buffering=0) as file:
            place = next(place for place in self.places() if place[0] == path)
            return self._read(file, *place[1:])


class Ceiling:
    """The machine's own rate: the same bytes by O_DIRECT, 2 threads, 8 MiB blocks, preallocated.

    A warm restore is copied from the page cache into touched memory. Nothing is decoded and the buffers are
    reused, so no checkpoint can be faster.
    """

    checks = False

    def __init__(self, folder: Path, size: str):
        self.file = folder / "ceiling.bin"
        self.bytes = -(-states.state_bytes(size) // 4096) * 4096
        self.one_bytes = -(-4 * int(np.prod(states.leaves(size)[states.ONE])) // 4096) * 4096
        self.warm = os.environ.get("MILEPOST_BENCH_CACHE") == "warm"
        count = self.bytes if self.warm else THREADS * BLOCK_BYTES
        self.memory = mmap.mmap(-1, -(-count // 4096) * 4096)
        noise = np.random.default_rng(1).bytes(1 << 20)
        for at in range(0, len(self.memory), len(noise)):  # touched, and nothing that compresses
            part = noise[: len(self.memory) - at]
            self.memory[at : at + len(part)] = part

    def _threads(self, flags: int, total: int, move):
        descriptor = os.open(self.file, flags)
        failures = []

        def work(thread: int) -> None:
            try:
                for at in range(thread * BLOCK_BYTES, total, THREADS * BLOCK_BYTES):
                    start = at if self.warm else thread * BLOCK_BYTES
                    part = memoryview(self.memory)[start : start + min(BLOCK_BYTES, total - at)]
                    if move(descriptor, [part], at) != len(part):
                        raise OSError("short read or write")
            except OSError as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.close(descriptor)
        if failures:
            raise failures[0]

    def save(self, flat):
        descriptor = os.open(self.file, os.O_CREAT | os.O_WRONLY)
        os.posix_fallocate(descriptor, 0, self.bytes)
        os.close(descriptor)
        self._threads(os.O_WRONLY | os.O_DIRECT, self.bytes, os.pwritev)

    def restore(self):
        self._threads(os.O_RDONLY | (0 if self.warm else os.O_DIRECT), self.bytes, os.preadv)

    def one(self, path):
        self._threads(os.O_RDONLY | (0 if self.warm else os.O_DIRECT), self.one_bytes, os.preadv)


PEERS = {
    "ceiling": Ceiling,
    "plain": Plain,
    "safetensors": Safetensors,
    "tensorstore": TensorStore,
    "zarr-python": ZarrPython,
    "orbax": Orbax,
    "orbax-uncompressed": OrbaxUncompressed,
}


def check(size: str, restored: dict[str, np.ndarray], paths) -> None:
    """A restore that is fast and wrong is not fast."""
    for path in paths:
        if not np.array_equal(np.asarray(restored[path]), states.value(size, path)):
            raise SystemExit(f"{path} came back different")


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    name, operation, folder, size = sys.argv[1:]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    flat = states.state(size) if operation == "save" and name != "ceiling" else {}
    peer = PEERS[name](folder, size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    start = time.perf_counter()
    if operation == "save":
        peer.save(flat)
        syncfs(folder)
        result = None
    else:
        result = peer.restore() if operation == "restore" else {states.ONE: peer.one(states.ONE)}
    seconds = time.perf_counter() - start
    peak = peak_bytes()
    if result is not None and getattr(peer, "checks", True):
        paths = (
            [states.ONE] if operation == "one" else [states.ONE, "opt_state/count", "opt_state/nu/ln_f/bias"]
        )
        if operation == "restore" and len(result) != len(states.leaves(size)):
            raise SystemExit("leaves are missing")
        check(size, result, paths)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
