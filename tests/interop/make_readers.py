"""Makes readers.toml: every row with chunks built by hand, so that no peer's writer stands behind its own reading.

    .venv/bin/python tests/interop/make_readers.py

A new trait is a new `row(...)`; run it, look at the diff, run the tests. Only blosc's bytes come from its makers.
"""

import gzip
import json
import struct
import tempfile
import zlib
from pathlib import Path

import crc32c as C
import numpy as np
import tensorstore as ts
import zstandard
from numcodecs import Blosc

rows = []


def row(id, what, reads, document, files, values=None, ours="reads", note=None):
    rows.append(
        dict(
            id=id,
            what=what,
            tensorstore="reads" if "t" in reads else "refuses",
            zarr_python="reads" if "z" in reads else "refuses",
            milepost=ours,
            document=document,
            files=files,
            values=values,
            note=note,
        )
    )


V = "0100020003000400"  # uint16 1 2 3 4
raw = bytes.fromhex(V)
B = {"name": "bytes", "configuration": {"endian": "little"}}


def shard(chunks, at_start=False, crc=True, codec=lambda b: b):
    parts = [None if c is None else codec(c) for c in chunks]
    n = len(parts) * 16 + (4 if crc else 0)
    off = n if at_start else 0
    idx = b""
    body = b""
    for p in parts:
        if p is None:
            idx += b"\xff" * 16
        else:
            idx += struct.pack("<QQ", off + len(body), len(p))
            body += p
    if crc:
        idx += struct.pack("<I", C.crc32c(idx))
    return idx + body if at_start else body + idx


def sh(chunk, codecs=[B], loc="end", crc=True):
    return {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": chunk,
            "codecs": codecs,
            "index_codecs": [B] + ([{"name": "crc32c"}] if crc else []),
            "index_location": loc,
        },
    }


Z = {"name": "zstd", "configuration": {"level": 3, "checksum": False}}
zs = zstandard.ZstdCompressor(level=3).compress
two = [raw[:4], raw[4:]]
row("plain", "core types, `bytes`", "tz", {}, {"c/0": raw})
row(
    "big-endian",
    "big endian values",
    "tz",
    {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]},
    {"c/0": np.frombuffer(raw, "<u2").astype(">u2").tobytes()},
)
row(
    "default-keys",
    "`default` keys without configuration",
    "tz",
    {"chunk_key_encoding": {"name": "default"}},
    {"c/0": raw},
)
row(
    "v2-keys",
    "`v2` keys",
    "tz",
    {"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}}},
    {"0": raw},
)
row("missing-chunk", "a missing chunk is fill", "tz", {"fill_value": 7}, {}, bytes.fromhex("0700" * 4))
row(
    "crc32c",
    "`crc32c` after `bytes`",
    "tz",
    {"codecs": [B, {"name": "crc32c"}]},
    {"c/0": raw + struct.pack("<I", C.crc32c(raw))},
)
row("zstd", "`zstd` with `checksum`", "tz", {"codecs": [B, Z]}, {"c/0": zs(raw)})
row(
    "zstd-without-checksum-key",
    "`zstd` whose `checksum` key is absent",
    "tz",
    {"codecs": [B, {"name": "zstd", "configuration": {"level": 3}}]},
    {"c/0": zs(raw)},
)
row(
    "gzip",
    "`gzip`",
    "tz",
    {"codecs": [B, {"name": "gzip", "configuration": {"level": 5}}]},
    {"c/0": gzip.compress(raw, mtime=0)},
)
row(
    "blosc-lz4",
    "`blosc` with lz4, blosclz, zlib, zstd",
    "tz",
    {
        "codecs": [
            B,
            {
                "name": "blosc",
                "configuration": {
                    "cname": "lz4",
                    "clevel": 5,
                    "shuffle": "shuffle",
                    "typesize": 2,
                    "blocksize": 0,
                },
            },
        ]
    },
    {"c/0": bytes(Blosc("lz4", 5, 1).encode(np.frombuffer(raw, "<u2")))},
)
d = tempfile.mkdtemp()
sn = {
    "name": "blosc",
    "configuration": {"cname": "snappy", "clevel": 5, "shuffle": "shuffle", "typesize": 2, "blocksize": 0},
}
a = ts.open(
    {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": d},
        "metadata": {"data_type": "uint16", "shape": [256], "codecs": [B, sn]},
    },
    create=True,
).result()
a.write(np.full(256, 513, "<u2")).result()
row(
    "blosc-snappy",
    "`blosc` with snappy",
    "t",
    {
        "shape": [256],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [256]}},
        "codecs": [B, sn],
    },
    {"c/0": open(d + "/c/0", "rb").read()},
    bytes.fromhex("0102" * 256),
)
row(
    "transpose",
    "`transpose`",
    "tz",
    {
        "shape": [2, 2],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 2]}},
        "codecs": [{"name": "transpose", "configuration": {"order": [1, 0]}}, B],
    },
    {"c/0/0": bytes.fromhex("0100030002000400")},
)
row("sharding-end", "sharding, index at the end", "tz", {"codecs": [sh([2])]}, {"c/0": shard(two)})
row(
    "sharding-start",
    "sharding, index at the start",
    "tz",
    {"codecs": [sh([2], loc="start")]},
    {"c/0": shard(two, True)},
)
row(
    "sharding-without-crc",
    "sharding, index without crc32c",
    "tz",
    {"codecs": [sh([2], crc=False)]},
    {"c/0": shard(two, crc=False)},
)
row(
    "sharding-gaps",
    "sharding, gaps between chunks and one absent",
    "tz",
    {"codecs": [sh([1])], "fill_value": 9},
    {
        "c/0": (lambda idx: raw[:2] + b"\0" * 14 + raw[4:6] + idx + struct.pack("<I", C.crc32c(idx)))(
            struct.pack("<QQ", 0, 2) + b"\xff" * 16 + struct.pack("<QQ", 16, 2) + b"\xff" * 16
        )
    },
    bytes.fromhex("0100090003000900"),
)
row(
    "sharding-nested",
    "nested sharding",
    "tz",
    {"codecs": [sh([2], [sh([1])])]},
    {"c/0": shard([shard([raw[:2], raw[2:4]]), shard([raw[4:6], raw[6:]])])},
)
row("sharding-outer-codec", "a codec after sharding", "z", {"codecs": [sh([2]), Z]}, {"c/0": zs(shard(two))})
row(
    "sharding-0d",
    "sharding of a 0-d array",
    "tz",
    {
        "shape": [],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": []}},
        "codecs": [sh([])],
    },
    {"c": shard([raw[:2]])},
    raw[:2],
)
row(
    "rectilinear",
    "rectilinear grid",
    "",
    {"chunk_grid": {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": [[1, 3]]}}},
    {"c/0": raw[:2], "c/1": raw[2:]},
)
row(
    "zero-d",
    "shape `[]`",
    "tz",
    {"shape": [], "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": []}}},
    {"c": raw[:2]},
    raw[:2],
)
row("zero-length", "a zero-length dimension", "tz", {"shape": [0]}, {}, b"")


def dt(name, reads, size, fill=0.0, ours="reads", what=None):
    v = bytes([1] * (4 * size))
    codecs = [{"name": "bytes"}] if size == 1 else [B]
    row(
        name,
        what or f"`{name}`",
        reads,
        {"data_type": name, "fill_value": fill, "codecs": codecs},
        {"c/0": v},
        v,
        ours,
    )


dt("bfloat16", "t", 2)
for n in [
    "float8_e3m4",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e4m3b11fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn",
]:
    dt(n, "t", 1, 1.0 if n == "float8_e8m0fnu" else 0.0)
dt("int2", "t", 1, 0)
dt("int4", "t", 1, 0)
for n in ["float8_e4m3", "float6_e2m3fn", "float6_e3m2fn"]:
    dt(n, "", 1)
dt("uint2", "", 1, 0)
dt("uint4", "", 1, 0)
row(
    "raw-bits",
    "`r16`, opaque bytes",
    "",
    {"data_type": "r16", "fill_value": [0, 0], "codecs": [{"name": "bytes"}]},
    {"c/0": raw},
)
s = b"".join(struct.pack("<I", len(x)) + x for x in [b"a", b"bc", b"", b"d"])
row(
    "string",
    "`string` with `vlen-utf8`",
    "z",
    {"data_type": "string", "fill_value": "", "codecs": [{"name": "vlen-utf8"}]},
    {"c/0": struct.pack("<I", 4) + s},
    None,
    "refuses",
)
row(
    "endian-absent",
    "a two-byte type with `bytes` that lacks `endian`",
    "z",
    {"codecs": [{"name": "bytes"}]},
    {"c/0": raw},
    None,
    "refuses",
)
row(
    "codec-shorthand",
    "a codec as a bare string",
    "",
    {"codecs": [B, "crc32c"]},
    {"c/0": raw + struct.pack("<I", C.crc32c(raw))},
)
row(
    "numcodecs",
    "codecs by `numcodecs.*` names",
    "z",
    {"codecs": [B, {"name": "numcodecs.zlib", "configuration": {"level": 1}}]},
    {"c/0": zlib.compress(raw, 1)},
    None,
    "refuses",
)
row(
    "unknown-codec",
    "an unknown codec, `must_understand: false`",
    "",
    {"codecs": [B, {"name": "example.unheard", "configuration": {}, "must_understand": False}]},
    {"c/0": raw},
    None,
    "refuses",
)
row(
    "unknown-key",
    "an unknown key, an object with `must_understand: false`",
    "tz",
    {"example": {"must_understand": False}},
    {"c/0": raw},
)
row(
    "unknown-key-fatal",
    "an unknown key that must be understood",
    "",
    {"example": {}},
    {"c/0": raw},
    None,
    "refuses",
)
out = [
    """# What each reader can open, one row a trait of Zarr v3 arrays.
#
# Every row is a whole array: `document` is laid over BASE (test_reader_gaps.py), `files` are its chunks in hex,
# `values` what a reader returns (C order, little endian; default: those of BASE). Each cell is tested.
# The table in README is `python tests/interop/readers.py`; a test keeps the two equal.
"""
]
for r in rows:
    out.append("[[row]]")
    for k in ("id", "what", "tensorstore", "zarr_python", "milepost"):
        out.append(f"{k} = {json.dumps(r[k])}")
    out.append(f"document = '{json.dumps(r['document'])}'")
    out.append("files = { " + ", ".join(f'"{k}" = "{v.hex()}"' for k, v in r["files"].items()) + " }")
    if r["values"] is not None:
        out.append(f'values = "{r["values"].hex()}"')
    out.append("")
Path(__file__).with_name("readers.toml").write_text("\n".join(out))
