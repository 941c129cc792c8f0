"""Makes the seeds that others can write: Zarr documents, shard indexes, safetensors headers. Run once, by hand.

Seeds of `record`, `index_chunk` and `index_json` are steps of our own: `tests/fuzz/seeds.py STEP` takes them
from one (every item's index chunk and the root document).
"""

import json
import struct
import sys
import tempfile
from pathlib import Path

import crc32c
import numpy as np
import zstandard
from safetensors.numpy import save

sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))
import cases  # noqa: E402
from peers import PEERS, document  # noqa: E402
from readers import BASE, rows  # noqa: E402

SEEDS = Path(__file__).parent / "seeds"


def put(target: str, name: str, data: bytes) -> None:
    (SEEDS / target).mkdir(parents=True, exist_ok=True)
    (SEEDS / target / name).write_bytes(data)


def documents() -> None:
    for row in rows():
        put("zarr3_document", row.id, json.dumps({**BASE, **row.document}).encode())
    for case in cases.theirs(count=30, seed=1):
        for peer in PEERS:
            if not peer.lacks(case):
                with tempfile.TemporaryDirectory() as folder:
                    peer.write(case, Path(folder) / "a")
                    text = (Path(folder) / "a" / "zarr.json").read_bytes()
                put("zarr3_document", f"{peer.name}-{case.number}", text)
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"a": [1, 2.5, None, "x"]}}
    put("zarr3_document", "group", json.dumps(group).encode())
    member = document(cases.theirs(count=1, seed=2)[0])
    inline = {"kind": "inline", "must_understand": False, "metadata": {"a/b": member, "a": group}}
    put("zarr3_document", "consolidated", json.dumps({**group, "consolidated_metadata": inline}).encode())


def shard_indexes() -> None:
    for chunks in (0, 1, 4, 9):
        table = b"".join(struct.pack("<QQ", 100 * i, 100) for i in range(chunks))
        if chunks:
            table = table[:-16] + b"\xff" * 16
        crc = struct.pack("<I", crc32c.crc32c(table))
        for flags, tail in ((0, b""), (1, crc), (2, b""), (3, crc)):
            head = struct.pack("<HHI", chunks, flags, 100 * chunks)
            put("zarr3_shard_index", f"{chunks}-{flags}", head + table + tail)


def safetensors_headers() -> None:
    files = {
        "empty": save({}),
        "one": save({"a": np.zeros((2, 3), "<f4")}),
        "metadata": save({"a.b": np.zeros((), "<i8"), "a.c": np.zeros(0, "u1")}, {"format": "pt"}),
        "many": save({f"layers.{i}.w": np.zeros((i, 2), "<f2") for i in range(8)}),
    }
    for name, data in files.items():
        (length,) = struct.unpack("<Q", data[:8])
        put("safetensors_header", name, struct.pack("<I", len(data)) + data[: 8 + length])


def step(root: Path) -> None:
    put("record", "checkpoint", (root / "zarr.json").read_bytes())
    for chunk in sorted((root / "_milepost").rglob("c.0")):
        stored = chunk.read_bytes()
        text = zstandard.ZstdDecompressor().decompressobj().decompress(stored[:-4])
        put("index_chunk", chunk.parent.name, struct.pack("<I", len(text)) + stored)
        put("index_json", chunk.parent.name, text)


if __name__ == "__main__":
    documents()
    shard_indexes()
    safetensors_headers()
    for argument in sys.argv[1:]:
        step(Path(argument))
