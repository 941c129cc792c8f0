"""Reads a Milepost checkpoint with NumPy, json and nothing of ours: the proof that the specification suffices.

Usage: reader.py CHECKPOINT   prints one line a leaf: item/path, data type, shape, sha256 of its C-order little-endian bytes.
Codecs: none, zstd (needs the package `zstandard`), gzip. Every crc32c is checked.
"""
import functools, gzip, hashlib, itertools, json, pathlib, re, sys
import numpy as np

TABLE = list(range(256))
for _ in range(8):
    TABLE = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in TABLE]


def checked(data):  # splits the crc32c off the end
    assert crc32c(data[:-4]).to_bytes(4, "little") == data[-4:], "checksum mismatch"
    return data[:-4]


def crc32c(data):
    return functools.reduce(lambda crc, byte: crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF], data, 0xFFFFFFFF) ^ 0xFFFFFFFF


def unzstd(data):
    import zstandard  # only where a codec needs it
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def dtype(name):  # the data types that NumPy lacks are read as unsigned integers of their size
    known = re.fullmatch(r"bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128)", name)
    raw = f"V{int(name[1:]) // 8}" if re.fullmatch(r"r\d+", name) else "uint8"
    return np.dtype(name if known else {"bfloat16": "uint16"}.get(name, raw)).newbyteorder("<")


def decode(data, codecs, kind, shape):
    undo = {"crc32c": checked, "zstd": unzstd, "gzip": gzip.decompress}
    for codec in reversed(codecs):
        name, conf = codec["name"], codec.get("configuration", {})
        if name in undo:
            data = undo[name](data)
        elif name == "bytes":
            order = codecs[0]["configuration"]["order"] if codecs[0]["name"] == "transpose" else range(len(shape))
            data = np.frombuffer(data, kind).reshape([shape[axis] for axis in order])
        elif name == "transpose":
            data = data.transpose(np.argsort(conf["order"]))
        elif name == "sharding_indexed":
            data = unshard(data, conf, kind, shape)
        else:
            sys.exit(f"this reader does not know the codec {name}")
    return data


def unshard(data, conf, kind, shape):
    chunk = conf["chunk_shape"]
    counts = [s // c for s, c in zip(shape, chunk)]
    crc = conf["index_codecs"][-1]["name"] == "crc32c"
    size = 16 * int(np.prod(counts)) + 4 * crc
    index = data[-size:] if conf["index_location"] == "end" else data[:size]
    pairs = np.frombuffer(checked(index) if crc else index, "<u8").reshape(-1, 2).tolist()
    out = np.zeros(shape, kind)
    for cell, (offset, length) in zip(itertools.product(*map(range, counts)), pairs):
        if offset != 2**64 - 1:
            out[tuple(slice(i * c, (i + 1) * c) for i, c in zip(cell, chunk))] = decode(data[offset : offset + length], conf["codecs"], kind, chunk)
    return out


def document(node, entry):
    text = (node / "zarr.json").read_bytes()
    assert [len(text), crc32c(text)] == entry["document"][:2], node
    return json.loads(text)


def leaf(node, entry):
    array = document(node, entry)
    shape, kind, grid = array["shape"], dtype(array["data_type"]), array["chunk_grid"]["configuration"]["chunk_shape"]
    out, separator = np.zeros(shape, kind), array["chunk_key_encoding"]["configuration"]["separator"]
    cells = itertools.product(*(range(-(-n // g)) for n, g in zip(shape, grid)))
    for cell, (size, crc, _) in zip(cells, entry["objects"], strict=True):
        data = (node / separator.join(["c", *map(str, cell)])).read_bytes()
        assert (len(data), crc32c(data)) == (size, crc), (node, cell)
        box = tuple(slice(i * g, min((i + 1) * g, n)) for i, g, n in zip(cell, grid, shape))
        out[box] = decode(data, array["codecs"], kind, grid)[tuple(slice(0, b.stop - b.start) for b in box)]
    return out, array["data_type"]


def read(root):
    record = json.loads((root / "zarr.json").read_bytes())["attributes"]["milepost"]
    assert record["kind"] == "checkpoint" and record["version"][0] == 1 and not record["requires"]
    for item in record["items"]:
        index = json.loads(unzstd(checked((root / "_milepost" / item["name"] / "c.0").read_bytes())))
        assert index["version"][0] == 1 and not index["requires"]
        for group in index["groups"]:
            document(root / item["name"] / group["path"], group)
        for entry in index["leaves"]:
            yield item["name"], entry, *leaf(root / item["name"] / entry["path"], entry)


if __name__ == "__main__":
    for item, entry, value, stored in read(pathlib.Path(sys.argv[1])):
        name, digest = "/".join(filter(None, [item, entry["path"]])), hashlib.sha256(value.tobytes()).hexdigest()
        print(name, stored, json.dumps(entry["shape"], separators=(",", ":")), digest)
