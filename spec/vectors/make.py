"""Writes key_paths.json and content_hash.json: an implementation of spec/layout.md that shares no code with ours.

Needs `numpy` and `xxhash`. The other vectors are written by `MILEPOST_VECTORS=write cargo test -p milepost-formats`.
"""
import itertools, json, pathlib, re
import numpy as np
import xxhash

HERE = pathlib.Path(__file__).parent
SAFE = set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


def segment(key):
    if isinstance(key, int):
        return str(key)
    if isinstance(key, dict):
        key = str(key["index"]) if "index" in key else key["attr"]
    if key == "":
        return "%"
    text = key.encode()
    escape = {i for i, b in enumerate(text) if b not in SAFE}
    if text.startswith(b"__") or key in ("zarr.json", "_milepost"):
        escape.add(0)
    if text.endswith(b"."):
        escape.add(len(text) - 1)
    if set(text) == {ord(".")}:
        escape |= set(range(len(text)))
    out = "".join(f"%{b:02X}" if i in escape else chr(b) for i, b in enumerate(text))
    if len(out) <= 200:
        return out
    prefix = re.sub(r"%.?$", "", out[:160])
    return f"{prefix}%h{xxhash.xxh3_128_hexdigest(text)}"


KEYS = [
    [], ["params", "w"], ["h_0", "kernel"], ["opt", {"index": 0}, {"attr": "mu"}], [-7], [2**63 - 1], ["7"], ["layer-1.weight"],
    ["_private"], [""], ["", ""], ["%"], ["%h"], ["a b"], ["a/b"], ["é"], ["\0"], ["~"], ["日本"], ["😀"], ["e\u0301"], ["__"],
    ["__init__"], [{"attr": "__dict__"}], ["_"], ["a__"], ["."], [".."], ["..."], ["a."], ["a.."], [".a"], ["__."], ["zarr.json"],
    ["zarr.json."], ["Zarr.json"], ["a", "zarr.json"], ["_milepost"], ["_milepost_"], [".milepost"], ["c.0.0"], ["c"], ["['b'][0]"],
    ["a\\b"], ["a:b*?\"<>|"], ["a%20b"], ["a" * 200], ["a" * 201], ["é" * 33], ["é" * 34], ["a" * 158 + " " * 40],
    ["a" * 159 + " " * 40], ["a" * 157 + " " * 40], ["_" * 201], ["." * 70], ["a" * 199 + "."],
]


def content(shape, chunk, shard, data):
    """The content hash of each stored object of an array, in C order of the grid."""
    outer = shard or chunk
    hashes = []
    for cell in itertools.product(*(range(-(-n // g)) for n, g in zip(shape, outer))):
        box = [(c * g, min((c + 1) * g, n)) for c, g, n in zip(cell, outer, shape)]
        part = data[tuple(slice(a, b) for a, b in box)]
        if shard is None:
            hashes.append(xxhash.xxh3_128_hexdigest(part.tobytes()))
            continue
        digests = b""
        for inner in itertools.product(*(range(-(-n // c)) for n, c in zip(part.shape, chunk))):
            piece = part[tuple(slice(i * c, (i + 1) * c) for i, c in zip(inner, chunk))]
            digests += xxhash.xxh3_128_intdigest(piece.tobytes()).to_bytes(16, "little")
        hashes.append(xxhash.xxh3_128_hexdigest(digests))
    return hashes


HASHED = [([], [], None), ([3], [3], None), ([5], [2], None), ([5, 3], [2, 2], None), ([5, 3], [2, 2], [4, 2]),
          ([4, 4], [4, 4], [4, 4]), ([3, 2], [2, 2], [8, 8]), ([0], [4], None), ([600], [256], [512])]

if __name__ == "__main__":
    paths = [{"keys": keys, "node": "/".join(map(segment, keys))} for keys in KEYS]
    contents = []
    for shape, chunk, shard in HASHED:
        data = np.arange(int(np.prod(shape)), dtype="<u2").reshape(shape) * 3
        contents.append({"shape": shape, "chunk_shape": chunk, "shard_shape": shard, "data_type": "uint16",
                         "data": "C-order element i is 3 * i", "content": content(shape, chunk, shard, data)})
    for name, entries in (("key_paths.json", paths), ("content_hash.json", contents)):
        lines = ",\n".join(json.dumps(entry, ensure_ascii=True) for entry in entries)
        (HERE / name).write_text(f"[\n{lines}\n]\n")
